"""conv2d forward, and its gradients for input, weight and bias."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from ..case import Goal, Step, Suite, Timed
from ..library import Library


class Conv(NamedTuple):
    """x (N, C, H, W) by a square window to K channels."""

    n: int
    c: int
    size: int
    k: int
    window: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    @property
    def out(self) -> int:
        """Height and width of the result."""
        return (self.size + 2 * self.padding - self.dilation * (self.window - 1) - 1) // self.stride + 1

    def __str__(self) -> str:
        settings = (
            ("/", self.stride, 1),
            (" p", self.padding, 0),
            (" d", self.dilation, 1),
            (" g", self.groups, 1),
        )
        rest = "".join(f"{name}{value}" for name, value, default in settings if value != default)
        return f"({self.n},{self.c},{self.size}²)→{self.k} {self.window}×{self.window}{rest}"


# LeNet's two at batch 64, a first layer on colour images, a ResNet's first stage, a deep narrow one.
CPU = (
    Conv(64, 1, 28, 6, 5),
    Conv(64, 6, 14, 16, 5),
    Conv(32, 3, 32, 32, 3, padding=1),
    Conv(32, 64, 56, 64, 3, padding=1),
    Conv(8, 256, 14, 256, 3, padding=1),
)
# ResNet-50 at batch 64, VGG, AlexNet, a dilated and a grouped one.
CUDA = (
    Conv(64, 3, 224, 64, 7, stride=2, padding=3),
    Conv(64, 64, 56, 256, 1),
    Conv(64, 64, 56, 64, 3, padding=1),
    Conv(64, 128, 56, 128, 3, stride=2, padding=1),
    Conv(64, 256, 14, 256, 3, padding=1),
    Conv(64, 512, 7, 512, 3, padding=1),
    Conv(32, 64, 224, 64, 3, padding=1),
    Conv(32, 512, 28, 512, 3, padding=1),
    Conv(128, 64, 27, 192, 5, padding=2),
    Conv(16, 512, 28, 512, 3, padding=2, dilation=2),
    Conv(64, 128, 56, 128, 3, padding=1, groups=32),
    Conv(64, 1, 28, 6, 5),
)


def case(conv: Conv, dtype: str = "float32") -> Timed:
    """One training pass: the forward convolution and all three gradients."""
    x_shape = (conv.n, conv.c, conv.size, conv.size)
    w_shape = (conv.k, conv.c // conv.groups, conv.window, conv.window)
    y_shape = (conv.n, conv.k, conv.out, conv.out)
    settings = {
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
    }

    def make(library: Library, dtype: str) -> Step:
        rng = np.random.default_rng(0)
        x, w, dy = (rng.standard_normal(shape, np.float32) for shape in (x_shape, w_shape, y_shape))
        inputs = [
            library.tensor(array, dtype, requires_grad=True)
            for array in (x, w / np.sqrt(prod(w_shape[1:])), np.ones(conv.k, np.float32))
        ]
        upstream = library.tensor(dy, dtype)

        def step() -> tuple:
            y = library.functional.conv2d(*inputs, **settings)
            return (y, *library.grad(y, inputs, upstream))

        return step

    itemsize = 2 if dtype in ("float16", "bfloat16") else 4
    return Timed(
        "conv2d",
        str(conv),
        make,
        dtype,
        # Forward reads x and w and writes y; backward reads dy, x and w and writes dx and dw.
        bytes=itemsize * (3 * prod(x_shape) + 4 * prod(w_shape) + 2 * prod(y_shape)),
        operations=3 * 2 * prod(y_shape) * prod(w_shape[1:]),
    )


SUITE = Suite(
    "conv",
    cpu=[case(conv) for conv in CPU],
    cuda=[case(conv, dtype) for dtype in ("float32", "bfloat16") for conv in CUDA],
    goals=[Goal("conv2d", ratio=2.0)],
)
