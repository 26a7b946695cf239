"""Dropout forward and backward."""

from __future__ import annotations

from math import prod

from ..case import Goal, Step, Suite, Timed, itemsize
from ..library import Library

# A hidden layer and a feature map; on a GPU a Transformer's hidden layer, the first also as it is there.
CPU = ((256, 1024), (32, 64, 56, 56))
CUDA = (*CPU, (8, 1024, 4096))


def case(shape: tuple[int, ...], dtype: str = "float32") -> Timed:
    """Dropout with p = 0.1 and the input's gradient."""

    def make(library: Library, dtype: str) -> Step:
        x = library.normal(shape, dtype, 1, requires_grad=True)
        upstream = library.normal(shape, dtype, 2)

        def step() -> tuple:
            y = library.functional.dropout(x, 0.1)
            return (y, *library.grad(y, (x,), upstream))

        return step

    name = "(" + ",".join(map(str, shape)) + ")"
    # Both ways read and write; the numbers differ, so there is nothing to compare.
    return Timed("dropout", name, make, dtype, bytes=4 * itemsize(dtype) * prod(shape), check=False)


SUITE = Suite(
    "dropout",
    cpu=[case(shape) for shape in CPU],
    cuda=[case(shape, dtype) for dtype in ("float32", "bfloat16") for shape in CUDA],
    goals=[Goal("dropout", ratio=1.0)],
)
