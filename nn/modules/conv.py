"""Convolution as modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from ...engine import Tensor
from ...engine.operations.creation import empty
from .. import functional as F
from .. import init
from ..functional.checks import per_axis, positive, sides
from ..parameter import Parameter
from .module import Module

IntOrSizes = int | tuple[int, ...]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _Conv(Module):
    _axes: ClassVar[int]
    _function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrSizes,
        stride: IntOrSizes = 1,
        padding: IntOrSizes | str = 0,
        dilation: IntOrSizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.in_channels = positive(name, "in_channels", in_channels)
        self.out_channels = positive(name, "out_channels", out_channels)
        self.groups = positive(name, "groups", groups)
        for role, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name}: groups={groups} must divide {role}={channels}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"{name}: padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        self.kernel_size = per_axis(name, "kernel_size", kernel_size, self._axes, least=1)
        self.stride = per_axis(name, "stride", stride, self._axes, least=1)
        self.dilation = per_axis(name, "dilation", dilation, self._axes, least=1)
        self.padding = padding if isinstance(padding, str) else per_axis(name, "padding", padding, self._axes, least=0)
        self.padding_mode = padding_mode
        around = sides(name, self.padding, self.kernel_size, self.stride, self.dilation)
        self._border = tuple(width for pads in reversed(around) for width in pads)
        self.weight = Parameter(empty(self._weight_shape(), dtype=dtype, device=device))
        size = (out_channels,)
        self.register_parameter("bias", Parameter(empty(size, dtype=dtype, device=device)) if bias else None)
        self.reset_parameters()

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

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
        return type(self)._function(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0,) * self._axes:
            text += f", padding={self.padding}"
        if self.dilation != (1,) * self._axes:
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        return text if self.padding_mode == "zeros" else f"{text}, padding_mode={self.padding_mode}"


class Conv1d(_Conv):
    """Convolution of (N, in_channels, L), or of one sequence (in_channels, L); see `functional.conv1d`.

    padding: an int, (int,), "same" or "valid". weight: (out_channels, in_channels / groups, *kernel_size).
    """

    _axes = 1
    _function = staticmethod(F.conv1d)


class Conv2d(_Conv):
    """Convolution of (N, in_channels, H, W), or of one image (in_channels, H, W); see `functional.conv2d`.

    padding: an int, a pair, "same" or "valid". weight: (out_channels, in_channels / groups, *kernel_size).
    """

    _axes = 2
    _function = staticmethod(F.conv2d)


class Conv3d(_Conv):
    """Convolution of (N, in_channels, D, H, W), or of one volume (in_channels, D, H, W); see `functional.conv3d`.

    padding: an int, a triple, "same" or "valid". weight: (out_channels, in_channels / groups, *kernel_size).
    """

    _axes = 3
    _function = staticmethod(F.conv3d)
