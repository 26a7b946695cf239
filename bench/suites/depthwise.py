"""Depthwise convolution of one, two and three axes: forward, and its gradients for input, weight and bias."""

from __future__ import annotations

from ..case import LAYOUTS, Goal, Suite
from .conv import Conv, case


def depthwise(x: tuple[int, ...], taps: tuple[int, ...], stride: int = 1, padding: int | None = None) -> Conv:
    """One window a channel, padded by half of it if nothing else is said."""
    padding = taps[0] // 2 if padding is None else padding
    return Conv(x, x[1], taps, stride, padding, groups=x[1])


# ConvNeXt's and MobileNet's windows, Mamba's (whose last three outputs it drops) and a video network's.
CPU = (
    depthwise((8, 96, 56, 56), (7, 7)),
    depthwise((8, 144, 56, 56), (3, 3)),
    depthwise((8, 96, 112, 112), (3, 3), stride=2),
    depthwise((16, 256, 512), (4,), padding=3),
    depthwise((2, 32, 16, 28, 28), (3, 3, 3)),
)
CUDA = (
    depthwise((128, 144, 56, 56), (3, 3)),
    depthwise((128, 96, 112, 112), (3, 3), stride=2),
    depthwise((128, 96, 56, 56), (7, 7)),
)

SUITE = Suite(
    "depthwise",
    cpu=[case(conv) for conv in CPU],
    cuda=[case(conv, dtype, layouts=LAYOUTS) for dtype in ("float32", "bfloat16") for conv in CUDA],
    goals=[Goal(f"depthwise conv{axes}d", ratio=1.0) for axes in (1, 2, 3)],
)
