"""Softmax and its gradient: a few rows or columns stand for all of them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ... import cuda
from ..case import Case, itemsize, normal


def _case(traced: tuple[int, ...], dim: int, shape: str, dtype: str, backward: bool) -> Case:
    def prepare() -> Callable[[], object]:
        x = normal(traced, dtype)
        if not backward:
            return lambda: cuda.softmax(x, dim)
        dy = normal(traced, dtype, 1)
        return lambda: cuda.softmax_input_grad(x, dy, dim)

    return Case(
        operation="softmax backward" if backward else "softmax",
        shape=shape,
        dtype=dtype,
        prepare=prepare,
        needed=(3 if backward else 2) * prod(traced) * itemsize(dtype),
    )


CASES = [
    _case(traced, dim, shape, dtype, backward)
    for traced, dim, shape in (
        ((128, 1024), 1, "8x16x1024x1024 dim -1"),
        ((128, 1000), 1, "8192x1000 dim 1"),
        ((1, 21, 64, 64), 1, "16x21x512x512 dim 1"),
        ((2, 128256), 1, "1024x128256 dim 1"),
    )
    for dtype in ("float32", "bfloat16")
    for backward in (False, True)
]
