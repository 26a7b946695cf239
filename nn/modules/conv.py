"""Convolution as a module."""

from __future__ import annotations

import math
from typing import Any

from ...engine import Tensor
from ...engine.operations.creation import empty
from .. import functional as F
from .. import init
from ..functional.checks import pair, positive, sides
from ..parameter import Parameter
from .module import Module

IntOrPair = int | tuple[int, int]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class Conv2d(Module):
    """Convolution of (N, in_channels, H, W), or of one image (in_channels, H, W); see `functional.conv2d`.

    padding: an int, a pair, "same" or "valid". weight: (out_channels, in_channels / groups, *kernel_size).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair | str = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.in_channels = positive("Conv2d", "in_channels", in_channels)
        self.out_channels = positive("Conv2d", "out_channels", out_channels)
        self.groups = positive("Conv2d", "groups", groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"Conv2d: groups={groups} must divide {name}={channels}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"Conv2d: padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        self.kernel_size = pair("Conv2d", "kernel_size", kernel_size, least=1)
        self.stride = pair("Conv2d", "stride", stride, least=1)
        self.dilation = pair("Conv2d", "dilation", dilation, least=1)
        self.padding = padding if isinstance(padding, str) else pair("Conv2d", "padding", padding, least=0)
        self.padding_mode = padding_mode
        (top, bottom), (left, right) = sides("Conv2d", self.padding, self.kernel_size, self.stride, self.dilation)
        self._border = (left, right, top, bottom)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(empty(shape, dtype=dtype, device=device))
        size = (out_channels,)
        self.register_parameter("bias", Parameter(empty(size, dtype=dtype, device=device)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly from ±1 / sqrt(inputs of an output element), as PyTorch does."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._border, self.padding_mode), 0
        return F.conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        return text if self.padding_mode == "zeros" else f"{text}, padding_mode={self.padding_mode}"
