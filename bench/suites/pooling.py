"""Pooling forward and backward: maxima, averages and norms over one, two and three axes, adaptive, and back."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..case import Goal, Step, Suite, Timed, itemsize
from ..library import Library


class Pool(NamedTuple):
    """x (N, C, *size), the same window in each axis."""

    n: int
    c: int
    size: int | tuple[int, ...]
    window: int
    stride: int
    padding: int = 0

    @property
    def axes(self) -> tuple[int, ...]:
        """The sizes of the axes; two equal ones for an int."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def rank(self) -> int:
        return len(self.axes)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.n, self.c, *self.axes)

    @property
    def y_shape(self) -> tuple[int, ...]:
        out = ((n + 2 * self.padding - self.window) // self.stride + 1 for n in self.axes)
        return (self.n, self.c, *out)

    def __str__(self) -> str:
        padding = f" p{self.padding}" if self.padding else ""
        return f"({self.n},{self.c},{_sizes(self.axes)}) {self.window}/{self.stride}{padding}"


class Adaptive(NamedTuple):
    """x (N, C, *axes) pooled to `out`."""

    n: int
    c: int
    axes: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.axes)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.n, self.c, *self.axes)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.n, self.c, *self.out)

    def __str__(self) -> str:
        return f"({self.n},{self.c},{_sizes(self.axes)}) to {_sizes(self.out)}"


def _sizes(axes: tuple[int, ...]) -> str:
    return f"{axes[0]}{' ²³'[len(axes) - 1].strip()}" if len(set(axes)) == 1 else "×".join(map(str, axes))


def case(operation: str, pool: Pool | Adaptive, dtype: str = "float32") -> Timed:
    """The forward pass and the input's gradient; `operation` without its rank, or with it."""
    name = operation if operation.endswith("d") else f"{operation}{pool.rank}d"
    given = pool.y_shape if name.startswith("max_unpool") else pool.x_shape
    result = pool.x_shape if name.startswith("max_unpool") else pool.y_shape

    def make(library: Library, dtype: str) -> Step:
        x = library.normal(given, dtype, 1, requires_grad=True)
        upstream = library.normal(result, dtype, 2)
        call = _call(library, name, pool)

        def step() -> tuple:
            y = call(x)
            return (y, *library.grad(y, (x,), upstream))

        return step

    # Forward reads x and writes y; backward reads dy and writes dx.
    moved = 2 * itemsize(dtype) * (prod(given) + prod(result)) + _of_positions(name, pool, itemsize(dtype))
    return Timed(name, str(pool), make, dtype, bytes=moved)


def _call(library: Library, name: str, pool: Pool | Adaptive) -> Callable[[Any], Any]:
    function = getattr(library.functional, name)
    if isinstance(pool, Adaptive):
        return lambda x: function(x, pool.out)
    if name.startswith("lp"):
        return lambda x: function(x, 2, pool.window, stride=pool.stride)
    if name.startswith("max_unpool"):
        indices = library.tensor(_positions(pool))
        return lambda x: function(x, indices, pool.window, stride=pool.stride, output_size=pool.axes)
    return lambda x: function(x, pool.window, stride=pool.stride, padding=pool.padding)


def _positions(pool: Pool) -> np.ndarray:
    """One position in each window."""
    rng = np.random.default_rng(0)
    indices = np.zeros(pool.y_shape, np.int64)
    for axis, (count, size) in enumerate(zip(pool.y_shape[2:], pool.axes, strict=True), 2):
        start = (np.arange(count) * pool.stride).reshape(-1, *(1,) * (len(pool.y_shape) - axis - 1))
        indices = indices * size + start + rng.integers(0, pool.window, pool.y_shape)
    return indices


def _of_positions(name: str, pool: Pool | Adaptive, of_value: int) -> int:
    """Bytes of what tells where elements come from, or of what a gradient needs besides."""
    outputs = prod(pool.y_shape)
    if name.startswith("max_pool"):
        return 2 * outputs  # an offset is one byte
    if name.startswith(("max_unpool", "adaptive_max")):
        return 2 * 8 * outputs
    if name.startswith("lp"):
        return of_value * (prod(pool.x_shape) + outputs)
    return 0


# LeNet's two at batch 64, a small and a large feature map, a ResNet's stem.
LENET = (Pool(64, 6, 28, 2, 2), Pool(64, 16, 10, 2, 2))
CPU = (*LENET, Pool(32, 64, 56, 2, 2), Pool(8, 64, 112, 3, 2, 1), Pool(16, 128, 28, 3, 1, 1))
# A network for signals and one for videos.
LONG, SHORT = Pool(32, 64, (1024,), 2, 2), Pool(32, 128, (256,), 3, 2, 1)
VIDEO, STEM = Pool(4, 32, (16, 28, 28), 2, 2), Pool(2, 32, (16, 28, 28), 3, 2, 1)
GLOBAL = Adaptive(32, 512, (7, 7), (1, 1))
UNEVEN = Adaptive(16, 128, (13, 13), (6, 6))

LARGE = (Pool(64, 64, 112, 3, 2, 1), Pool(32, 64, 224, 2, 2))
CUDA_LONG, CUDA_VIDEO = Pool(64, 128, (4096,), 2, 2), Pool(8, 64, (16, 56, 56), 2, 2)

SUITE = Suite(
    "pooling",
    cpu=[
        *(case(operation, pool) for operation in ("max_pool", "avg_pool") for pool in (*CPU, LONG, SHORT, VIDEO, STEM)),
        *(case("lp_pool", pool) for pool in (Pool(32, 64, 28, 2, 2), Pool(8, 64, 56, 3, 2), LONG, VIDEO)),
        *(case("max_unpool", pool) for pool in (Pool(8, 64, 112, 2, 2), LONG, Pool(2, 32, (16, 56, 56), 2, 2))),
        *(case("adaptive_avg_pool", pool) for pool in (GLOBAL, UNEVEN, Adaptive(16, 64, (28, 28), (7, 7)))),
        *(case("adaptive_max_pool", pool) for pool in (GLOBAL, UNEVEN, Adaptive(16, 64, (28, 28), (7, 7)))),
    ],
    cuda=[
        timed
        for dtype in ("float32", "bfloat16")
        for timed in (
            *(case("max_pool", pool, dtype) for pool in (*LARGE, *LENET, CUDA_LONG, CUDA_VIDEO)),
            *(case("avg_pool", pool, dtype) for pool in (Pool(64, 288, 35, 3, 1, 1), *LENET, CUDA_LONG, CUDA_VIDEO)),
            case("adaptive_avg_pool", Adaptive(256, 2048, (7, 7), (1, 1)), dtype),
            case("adaptive_avg_pool", Adaptive(128, 256, (13, 13), (6, 6)), dtype),
            case("adaptive_max_pool", Adaptive(128, 256, (13, 13), (6, 6)), dtype),
            case("lp_pool", Pool(64, 64, 112, 3, 2), dtype),
            case("max_unpool", Pool(32, 64, 112, 2, 2), dtype),
        )
    ],
    goals=[
        # Unpooling looks for repeated indices, and PyTorch does not.
        Goal(f"{operation}{rank}d", ratio=2.0 if operation == "max_unpool" else 1.0)
        for operation, ranks in (
            ("max_pool", (1, 2, 3)), ("avg_pool", (1, 2, 3)), ("lp_pool", (1, 2, 3)), ("max_unpool", (1, 2, 3)),
            ("adaptive_avg_pool", (2,)), ("adaptive_max_pool", (2,)),
        )
        for rank in ranks
    ],
)  # fmt: skip
