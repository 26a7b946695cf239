"""Pooling: some planes stand for all of them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

from ... import cuda
from ...geometry import Sizes
from ..case import Case, itemsize, normal

_STEPS = "windows read staged rows two columns apart, so from half of the banks; the launch waits for memory"
_ROWS = "a warp's lanes stand in several staged rows or windows, whose banks overlap; the launch waits for memory"


class _Shape(NamedTuple):
    name: str
    planes: int
    size: Sizes
    kernel: int
    stride: int
    padding: int
    conflicts: float = 0.1

    @property
    def out(self) -> Sizes:
        return tuple((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in self.size)

    @property
    def window(self) -> tuple[Sizes, Sizes, Sizes]:
        rank = len(self.size)
        return (self.kernel,) * rank, (self.stride,) * rank, (self.padding,) * rank


_MAX = (
    _Shape("3/2 64x64x112x112", 8, (112, 112), 3, 2, 1, 1.0),
    _Shape("2/2 32x64x224x224", 8, (224, 224), 2, 2, 0, 1.0),
    _Shape("2/2 8x64x16x56x56", 8, (16, 56, 56), 2, 2, 0, 1.0),
)
_AVERAGE = (
    _Shape("3/1 64x288x35x35", 64, (35, 35), 3, 1, 1, 1.0),
    _Shape("global 256x2048x7x7", 512, (7, 7), 7, 7, 0, 1.0),
    _Shape("3/1 64x128x4096", 16, (4096,), 3, 1, 1),
)


def _case(operation: str, shape: _Shape, dtype: str, backward: bool, prepare: Callable, offsets: int) -> Case:
    elements = prod(shape.size) + prod(shape.out)
    return Case(
        operation=f"{operation}{len(shape.size)}d{' backward' if backward else ''}",
        shape=shape.name,
        dtype=dtype,
        prepare=prepare,
        needed=shape.planes * (elements * itemsize(dtype) + offsets * prod(shape.out)),
        most_conflicts=shape.conflicts,
        why="" if shape.conflicts == 0.1 else _STEPS if shape.stride == 2 else _ROWS,
    )


def _max_pool(shape: _Shape, dtype: str, backward: bool) -> Case:
    x_shape, ones = (1, shape.planes, *shape.size), (1,) * len(shape.size)

    def prepare() -> Callable[[], object]:
        x = normal(x_shape, dtype)
        if not backward:
            return lambda: cuda.max_pool(x, *shape.window, ones)
        y, offsets = cuda.max_pool(x, *shape.window, ones)
        return lambda: cuda.max_pool_scatter(y, offsets, x_shape, *shape.window, ones)

    return _case("max_pool", shape, dtype, backward, prepare, offsets=1)


def _avg_pool(shape: _Shape, dtype: str, backward: bool) -> Case:
    x_shape = (1, shape.planes, *shape.size)

    def prepare() -> Callable[[], object]:
        if not backward:
            x = normal(x_shape, dtype)
            return lambda: cuda.avg_pool(x, *shape.window)
        dy = normal((1, shape.planes, *shape.out), dtype)
        return lambda: cuda.avg_pool_input_grad(dy, x_shape, *shape.window, False, True, None)

    return _case("avg_pool", shape, dtype, backward, prepare, offsets=0)


CASES = [
    make(shape, dtype, backward)
    for backward in (False, True)
    for dtype in ("float32", "bfloat16")
    for make, shapes in ((_max_pool, _MAX), (_avg_pool, _AVERAGE))
    for shape in shapes
]
