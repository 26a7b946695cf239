"""Depthwise convolution of one, two and three axes: forward, and its gradients for input, weight and bias."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from ..case import Goal, Step, Suite, Timed
from ..library import Library


class Depthwise(NamedTuple):
    """x (N, C, *sizes) by one window a channel, padded by half of it; `causal` by all but its last tap, before."""

    x: tuple[int, ...]
    taps: tuple[int, ...]
    stride: int = 1
    causal: bool = False

    @property
    def padding(self) -> int:
        """On both sides; a causal convolution drops what it makes of the zeros behind."""
        return self.taps[0] - 1 if self.causal else self.taps[0] // 2

    @property
    def y(self) -> tuple[int, ...]:
        """The result's shape."""
        n, c, *sizes = self.x
        return n, c, *((size + 2 * self.padding - self.taps[0]) // self.stride + 1 for size in sizes)

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        causal = " causal" if self.causal else ""
        return f"({','.join(map(str, self.x))}) {'×'.join(map(str, self.taps))}{stride}{causal}"


# ConvNeXt's and MobileNet's windows, Mamba's and Conformer's, and a video network's.
CPU = (
    Depthwise((8, 96, 56, 56), (7, 7)),
    Depthwise((8, 144, 56, 56), (3, 3)),
    Depthwise((8, 96, 112, 112), (3, 3), stride=2),
    Depthwise((16, 256, 512), (4,), causal=True),
    Depthwise((2, 32, 16, 28, 28), (3, 3, 3)),
)
CUDA = (
    Depthwise((128, 144, 56, 56), (3, 3)),
    Depthwise((128, 96, 112, 112), (3, 3), stride=2),
    Depthwise((128, 96, 56, 56), (7, 7)),
)


def case(conv: Depthwise, dtype: str = "float32") -> Timed:
    """One training pass: the forward convolution and all three gradients."""
    name = f"conv{len(conv.taps)}d"
    channels = conv.x[1]
    w_shape = (channels, 1, *conv.taps)
    settings = {"stride": conv.stride, "padding": conv.padding, "groups": channels}

    def make(library: Library, dtype: str) -> Step:
        rng = np.random.default_rng(0)
        x, w, dy = (rng.standard_normal(shape, np.float32) for shape in (conv.x, w_shape, conv.y))
        inputs = [
            library.tensor(array, dtype, requires_grad=True)
            for array in (x, w / np.sqrt(prod(conv.taps)), np.ones(channels, np.float32))
        ]
        upstream = library.tensor(dy, dtype)

        def step() -> tuple:
            y = getattr(library.functional, name)(*inputs, **settings)
            return (y, *library.grad(y, inputs, upstream))

        return step

    itemsize = 2 if dtype in ("float16", "bfloat16") else 4
    return Timed(
        f"depthwise {name}",
        str(conv),
        make,
        dtype,
        # Forward reads x and w and writes y; backward reads dy, x and w and writes dx and dw.
        bytes=itemsize * (3 * prod(conv.x) + 2 * prod(conv.y) + 3 * prod(w_shape)),
        operations=3 * 2 * prod(conv.y) * prod(conv.taps),
    )


SUITE = Suite(
    "depthwise",
    cpu=[case(conv) for conv in CPU],
    cuda=[case(conv, dtype) for dtype in ("float32", "bfloat16") for conv in CUDA],
    goals=[Goal(f"depthwise conv{axes}d", ratio=1.0) for axes in (1, 2, 3)],
)
