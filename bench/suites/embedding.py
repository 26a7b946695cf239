"""embedding forward and the gradient of its weight."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from ..case import Goal, Step, Suite, Timed, itemsize
from ..library import Library


class Lookup(NamedTuple):
    """weight (rows, columns), indices (batch, length); `skewed`: a few rows are taken often, as words are."""

    rows: int
    columns: int
    batch: int
    length: int
    skewed: bool = True

    def __str__(self) -> str:
        return f"({self.rows},{self.columns})[{self.batch},{self.length}]{'' if self.skewed else ' uniform'}"


# A text classifier, a small Transformer, BERT's and GPT-2's tables at a short batch.
CPU = (Lookup(10000, 64, 64, 50), Lookup(32000, 256, 8, 512), Lookup(32000, 256, 8, 512, False),
       Lookup(30522, 768, 8, 128))  # fmt: skip
CUDA = (Lookup(32000, 512, 32, 512), Lookup(50257, 768, 8, 1024), Lookup(128256, 1024, 4, 2048),
        Lookup(1000000, 64, 8192, 26, False))  # fmt: skip


def case(lookup: Lookup, dtype: str = "float32") -> Timed:
    """The rows taken, and the gradient of the whole weight."""

    def make(library: Library, dtype: str) -> Step:
        rng = np.random.default_rng(0)
        shape = (lookup.batch, lookup.length)
        if lookup.skewed:
            taken = np.minimum(rng.zipf(1.3, shape) - 1, lookup.rows - 1)
        else:
            taken = rng.integers(lookup.rows, size=shape)
        table = library.normal((lookup.rows, lookup.columns), dtype, 1, requires_grad=True)
        indices = library.tensor(taken)
        upstream = library.normal((*shape, lookup.columns), dtype, 2)

        def step() -> tuple:
            y = library.functional.embedding(indices, table)
            return (y, *library.grad(y, (table,), upstream))

        return step

    count = prod((lookup.batch, lookup.length))
    # Forward reads and writes rows; backward reads dy and writes a gradient of the weight's size.
    moved = itemsize(dtype) * lookup.columns * (3 * count + lookup.rows) + 2 * 8 * count
    return Timed("embedding", str(lookup), make, dtype, bytes=moved)


SUITE = Suite(
    "embedding",
    cpu=[case(lookup) for lookup in CPU],
    cuda=[case(lookup, dtype) for dtype in ("float32", "bfloat16") for lookup in CUDA],
    goals=[Goal("embedding", ratio=1.0)],
)
