"""Convolution of one, two and three axes: forward, and its gradients for input, weight and bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

from ..case import FORMATS, LAYOUTS, Goal, Step, Suite, Timed, itemsize
from ..library import Library


class Conv(NamedTuple):
    """x (N, C, *sizes) by a window of `taps` to so many filters; stride, padding and dilation alike in all axes."""

    x: tuple[int, ...]
    filters: int
    taps: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    @property
    def weight(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.filters, self.x[1] // self.groups, *self.taps

    @property
    def y(self) -> tuple[int, ...]:
        """The result's shape."""
        axes = zip(self.x[2:], self.taps, strict=True)
        out = ((n + 2 * self.padding - self.dilation * (taps - 1) - 1) // self.stride + 1 for n, taps in axes)
        return self.x[0], self.filters, *out

    @property
    def depthwise(self) -> bool:
        """Whether each channel has windows of its own."""
        return self.groups == self.x[1] > 1

    @property
    def operation(self) -> str:
        """The function's name."""
        return f"conv{len(self.taps)}d"

    def __str__(self) -> str:
        n, c, *sizes = self.x
        alike = len(sizes) > 1 and len(set(sizes)) == 1
        size = f"{sizes[0]}{' ²³'[len(sizes) - 1]}" if alike else ",".join(map(str, sizes))
        text = f"({n},{c},{size})→{self.filters} {'×'.join(map(str, self.taps))}"
        text += f"/{self.stride}" if self.stride > 1 else ""
        text += f" p{self.padding}" if self.padding else ""
        text += f" d{self.dilation}" if self.dilation > 1 else ""
        return text + (" depthwise" if self.depthwise else f" g{self.groups}" if self.groups > 1 else "")


def square(n: int, c: int, size: int, filters: int, window: int, **settings: int) -> Conv:
    """A square window over square images."""
    return Conv((n, c, size, size), filters, (window, window), **settings)


# LeNet's two at batch 64, a first layer on colour images, a ResNet's first stage, a deep narrow one, a 1×1 and a
# depthwise one: those that issue 4 names.
CPU = (
    square(64, 1, 28, 6, 5),
    square(64, 6, 14, 16, 5),
    square(32, 3, 32, 32, 3, padding=1),
    square(32, 64, 56, 64, 3, padding=1),
    square(8, 256, 14, 256, 3, padding=1),
    square(8, 64, 56, 256, 1),
    square(16, 96, 28, 96, 3, padding=1, groups=96),
)
# ResNet-50 at batch 64, VGG, AlexNet, a dilated and a grouped one.
CUDA = (
    square(64, 3, 224, 64, 7, stride=2, padding=3),
    square(64, 64, 56, 256, 1),
    square(64, 64, 56, 64, 3, padding=1),
    square(64, 128, 56, 128, 3, stride=2, padding=1),
    square(64, 256, 56, 512, 1, stride=2),
    square(64, 256, 14, 256, 3, padding=1),
    square(64, 512, 14, 512, 3, stride=2, padding=1),
    square(64, 512, 7, 512, 3, padding=1),
    square(32, 64, 224, 64, 3, padding=1),
    square(32, 512, 28, 512, 3, padding=1),
    square(128, 3, 224, 64, 11, stride=4, padding=2),
    square(128, 64, 27, 192, 5, padding=2),
    square(16, 512, 28, 512, 3, padding=2, dilation=2),
    square(64, 128, 56, 128, 3, padding=1, groups=32),
)
# LeNet's; speech (WaveNet's dilated, Whisper's second layer), video (R3D's stem and first stage).
CUDA_WHOLE = (
    square(64, 1, 28, 6, 5),
    square(64, 6, 14, 16, 5),
    Conv((16, 128, 16384), 256, (2,), dilation=64),
    Conv((16, 512, 3000), 512, (3,), stride=2, padding=1),
    Conv((8, 3, 16, 112, 112), 64, (3, 7, 7), stride=2, padding=3),
    Conv((8, 64, 8, 56, 56), 64, (3, 3, 3), padding=1),
)
# Up-sampling is the input gradient of these: DCGAN's, a U-Net's, a vocoder's.
CUDA_TRANSPOSED = (
    square(64, 256, 8, 512, 4, stride=2, padding=1),
    square(8, 64, 128, 128, 2, stride=2),
    Conv((16, 256, 4096), 512, (16,), stride=8, padding=4),
)
PARTS = ("forward", "input gradient", "weight gradient")


def case(
    conv: Conv,
    dtype: str = "float32",
    precision: str = "highest",
    part: str = "",
    layouts: Sequence[str] = LAYOUTS[:1],
) -> Timed:
    """A training pass, forward and all three gradients, or one of PARTS."""

    def make(library: Library, dtype: str) -> Step:
        x = library.normal(conv.x, dtype, 1, requires_grad=True)
        weight = library.normal(conv.weight, dtype, 2, prod(conv.weight[1:]) ** -0.5, requires_grad=True)
        bias = library.normal((conv.filters,), dtype, 3, requires_grad=True)
        upstream = library.normal(conv.y, dtype, 4)
        function = getattr(library.functional, conv.operation)

        def forward() -> Any:
            return function(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

        def whole() -> tuple:
            y = forward()
            return (y, *library.grad(y, (x, weight, bias), upstream))

        if part in ("", "forward"):
            return whole if part == "" else lambda: (forward(),)
        y, wanted = forward(), (x,) if part == "input gradient" else (weight,)
        return lambda: library.grad(y, wanted, upstream, retain_graph=True)

    # Forward reads x and w and writes y; backward reads dy, x and w and writes dx and dw.
    of_x, of_weight, of_y, products = (1, 1, 1, 1) if part else (3, 3, 2, 3)
    moved = of_x * prod(conv.x) + of_weight * prod(conv.weight) + of_y * prod(conv.y)
    name = f"{'depthwise ' if conv.depthwise else ''}{conv.operation}"
    return Timed(
        f"{name} {part}".rstrip(),
        str(conv),
        make,
        dtype,
        bytes=itemsize(dtype) * moved,
        operations=products * 2 * prod(conv.y) * prod(conv.weight[1:]),
        precision=precision,
        layouts=layouts if len(conv.taps) > 1 else LAYOUTS[:1],
    )


CUDA_CASES = [
    timed
    for dtype, precision in FORMATS
    for timed in (
        *(case(conv, dtype, precision, part, LAYOUTS) for conv in CUDA for part in PARTS),
        *(case(conv, dtype, precision, "input gradient", LAYOUTS) for conv in CUDA_TRANSPOSED),
        *(case(conv, dtype, precision, layouts=LAYOUTS) for conv in CUDA_WHOLE),
    )
]
# The design's targets: strict float32 as fast as PyTorch, TF32 and half types nearly.
TARGETS = {"float32": 1.0, "tf32": 0.8, "bfloat16": 0.65}

SUITE = Suite(
    "conv",
    # All in one mean, depthwise too.
    cpu=[replace(case(conv), operation="conv2d") for conv in CPU],
    cuda=CUDA_CASES,
    goals=[Goal("conv2d", ratio=1.2)],
    cuda_goals=[
        Goal(operation, ratio=1 / target, arithmetic=arithmetic)
        for operation in dict.fromkeys(timed.operation for timed in CUDA_CASES)
        for arithmetic, target in TARGETS.items()
    ],
)
