"""Embedding and its gradient, with fewer rows and indices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ... import cuda
from ..case import Case, itemsize, normal

_ROWS, _COUNT = 300, 320
_SORT = "the sort of the indices, which does not shrink with the columns as bfloat16 does"


def _forward(dim: int, shape: str, dtype: str) -> Case:
    indices = np.random.default_rng(0).permutation(_ROWS)

    def prepare() -> Callable[[], object]:
        weight = normal((_ROWS, dim), dtype)
        return lambda: cuda.embedding(weight, indices)

    return Case("embedding", shape, dtype, prepare, needed=2 * _ROWS * dim * itemsize(dtype) + 8 * _ROWS)


def _backward(dim: int, shape: str, dtype: str) -> Case:
    # Some rows often, some never.
    indices = np.minimum(np.random.default_rng(0).zipf(1.3, _COUNT) - 1, _ROWS - 1)

    def prepare() -> Callable[[], object]:
        dy = normal((_COUNT, dim), dtype)
        return lambda: cuda.embedding_weight_grad(dy, indices, _ROWS)

    return Case(
        "embedding backward",
        shape,
        dtype,
        prepare,
        needed=(_COUNT + _ROWS) * dim * itemsize(dtype) + 8 * _COUNT,
        most_bytes=1.2,
        why=_SORT,
    )


CASES = [
    case(dim, shape, dtype)
    for dim, shape in ((512, "32x512 of 32000x512"), (768, "8x1024 of 50257x768"))
    for dtype in ("float32", "bfloat16")
    for case in (_forward, _backward)
]
