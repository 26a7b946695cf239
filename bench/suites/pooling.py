"""max_pool2d and avg_pool2d forward and backward."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from ..case import Goal, Step, Suite, Timed
from ..library import Library


class Pool(NamedTuple):
    """x (N, C, H, W), a square window."""

    n: int
    c: int
    size: int
    window: int
    stride: int
    padding: int = 0

    def __str__(self) -> str:
        padding = f" p{self.padding}" if self.padding else ""
        return f"({self.n},{self.c},{self.size}²) {self.window}×{self.window}/{self.stride}{padding}"


# LeNet's two at batch 64, then a small and a large feature map, and a ResNet's stem.
LENET = (Pool(64, 6, 28, 2, 2), Pool(64, 16, 10, 2, 2))
CPU = (*LENET, Pool(32, 64, 56, 2, 2), Pool(8, 64, 112, 3, 2, 1), Pool(16, 128, 28, 3, 1, 1))
CUDA_MAX = (Pool(64, 64, 112, 3, 2, 1), Pool(32, 64, 224, 2, 2), *LENET)
CUDA_AVERAGE = (Pool(64, 288, 35, 3, 1, 1), Pool(256, 2048, 7, 7, 7), *LENET)


def case(operation: str, pool: Pool, dtype: str = "float32") -> Timed:
    """The forward pass and the input's gradient."""
    x_shape = (pool.n, pool.c, pool.size, pool.size)
    out = (pool.size + 2 * pool.padding - pool.window) // pool.stride + 1
    y_shape = (pool.n, pool.c, out, out)

    def make(library: Library, dtype: str) -> Step:
        rng = np.random.default_rng(0)
        x = library.tensor(rng.standard_normal(x_shape, np.float32), dtype, requires_grad=True)
        upstream = library.tensor(rng.standard_normal(y_shape, np.float32), dtype)
        function = getattr(library.functional, operation)

        def step() -> tuple:
            y = function(x, pool.window, stride=pool.stride, padding=pool.padding)
            return (y, *library.grad(y, (x,), upstream))

        return step

    itemsize = 2 if dtype in ("float16", "bfloat16") else 4
    # Forward reads x and writes y; backward reads dy and writes dx. A maximum's position is one byte.
    offsets = 2 * prod(y_shape) if operation == "max_pool2d" else 0
    moved = 2 * itemsize * (prod(x_shape) + prod(y_shape)) + offsets
    return Timed(operation, str(pool), make, dtype, bytes=moved)


SUITE = Suite(
    "pooling",
    cpu=[case(operation, pool) for operation in ("max_pool2d", "avg_pool2d") for pool in CPU],
    cuda=[case("max_pool2d", pool, dtype) for dtype in ("float32", "bfloat16") for pool in CUDA_MAX]
    + [case("avg_pool2d", pool, dtype) for dtype in ("float32", "bfloat16") for pool in CUDA_AVERAGE],
    goals=[Goal("max_pool2d", ratio=1.0)],
)
