"""Depthwise convolution's benchmark shapes, and one each of sequences and volumes: a few planes stand for all."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ...cuda import conv, conv_input_grad, conv_weight_grad
from ..case import Case, itemsize, normal

_NARROW = (
    "rows of 14 begin at multiples of 16 bytes in shared memory, so neighbours share banks, and planes of 392 bytes "
    "begin within a sector; the launch waits for memory"
)


def _cases(
    shape: str,
    x_shape: tuple[int, ...],
    taps: tuple[int, ...],
    dtype: str,
    stride: int = 1,
    causal: bool = False,
    narrow: bool = False,
) -> list[Case]:
    n, c, *size = x_shape
    padding = tuple((count - 1, 0) if causal else (count // 2, count // 2) for count in taps)
    settings = ((stride,) * len(taps), padding, (1,) * len(taps), c)
    axes = zip(size, taps, padding, strict=True)
    y_shape = (n, c, *((length + sum(pads) - count) // stride + 1 for length, count, pads in axes))
    weight_shape = (c, 1, *taps)

    def prepare(way: str) -> Callable[[], object]:
        x, weight, dy = normal(x_shape, dtype), normal(weight_shape, dtype, 1), normal(y_shape, dtype, 2)
        if way == "forward":
            return lambda: conv(x, weight, None, *settings)
        if way == "input gradient":
            return lambda: conv_input_grad(dy, weight, x_shape, *settings)
        return lambda: conv_weight_grad(dy, x, weight_shape, *settings)

    moved = prod(x_shape) + prod(y_shape) + prod(weight_shape)
    return [
        Case(
            operation=way,
            shape=shape,
            dtype=dtype,
            prepare=lambda way=way: prepare(way),  # type: ignore[misc]
            needed=moved * itemsize(dtype),
            operations=2 * prod(y_shape) * prod(taps),
            most_conflicts=0.6 if narrow else 0.1,
            most_sectors=1.5 if narrow else 1.25,
            why=_NARROW if narrow else "",
        )
        for way in ("forward", "input gradient", "weight gradient")
    ]


CASES = [
    *(
        case
        for dtype in ("float32", "bfloat16")
        for case in (
            *_cases("3x3, 128x144x56x56", (2, 16, 56, 56), (3, 3), dtype),
            *_cases("3x3/2, 128x96x112x112", (1, 8, 112, 112), (3, 3), dtype, stride=2),
            *_cases("7x7, 128x96x56x56", (2, 16, 56, 56), (7, 7), dtype),
        )
    ),
    *_cases("3x3, 128x576x14x14", (8, 32, 14, 14), (3, 3), "bfloat16", narrow=True),
    *_cases("4 taps, causal, 16x256x4096", (2, 16, 4096), (4,), "bfloat16", causal=True),
    *_cases("3x3x3, 8x64x16x28x28", (1, 8, 16, 28, 28), (3, 3, 3), "float32"),
]
