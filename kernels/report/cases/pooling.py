"""Pooling: 8 planes stand for all of them."""

from __future__ import annotations

from collections.abc import Callable

from ... import cuda
from ..case import Case, itemsize, normal

_PLANES = 8
_HALO = "one of a thread's columns is a load of its own, which finds its sectors in the L1"


def _max_pool(size: int, window: tuple[int, int, int], shape: str, dtype: str, backward: bool) -> Case:
    kernel, stride, padding = ((n, n) for n in window)
    x_shape, out = (1, _PLANES, size, size), size // 2
    halo = window[0] > window[1]

    def prepare() -> Callable[[], object]:
        x = normal(x_shape, dtype)
        if not backward:
            return lambda: cuda.max_pool2d(x, kernel, stride, padding)
        y, offsets = cuda.max_pool2d(x, kernel, stride, padding)
        return lambda: cuda.max_pool2d_scatter(y, offsets, x_shape, kernel, stride, padding, (1, 1))

    return Case(
        operation="max_pool2d backward" if backward else "max_pool2d",
        shape=shape,
        dtype=dtype,
        prepare=prepare,
        needed=_PLANES * (size**2 * itemsize(dtype) + out**2 * (itemsize(dtype) + 1)),
        most_sectors=1.7 if halo else 1.25,
        why=_HALO if halo else "",
    )


def _avg_pool(size: int, kernel: int, padding: int, planes: int, shape: str, dtype: str, backward: bool) -> Case:
    x_shape, out = (1, planes, size, size), size + 2 * padding - kernel + 1
    pairs = (kernel, kernel), (1, 1), (padding, padding)

    def prepare() -> Callable[[], object]:
        if not backward:
            x = normal(x_shape, dtype)
            return lambda: cuda.avg_pool2d(x, *pairs)
        dy = normal((1, planes, out, out), dtype)
        return lambda: cuda.avg_pool2d_input_grad(dy, x_shape, *pairs, False, True, None)

    return Case(
        operation="avg_pool2d backward" if backward else "avg_pool2d",
        shape=shape,
        dtype=dtype,
        prepare=prepare,
        needed=planes * (size**2 + out**2) * itemsize(dtype),
    )


CASES = [
    case
    for backward in (False, True)
    for dtype in ("float32", "bfloat16")
    for case in (
        _max_pool(112, (3, 2, 1), "3/2 64x64x112x112", dtype, backward),
        _max_pool(224, (2, 2, 0), "2/2 32x64x224x224", dtype, backward),
        _avg_pool(35, 3, 1, 2 * _PLANES, "3/1 64x288x35x35", dtype, backward),
        _avg_pool(7, 7, 0, 256, "global 256x2048x7x7", dtype, backward),
    )
]
