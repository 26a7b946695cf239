"""Transposed convolution as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine import Tensor
from .. import functional as F
from ..functional.checks import per_axis
from .conv import IntOrSizes, _Conv


class _ConvTranspose(_Conv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrSizes,
        stride: IntOrSizes = 1,
        padding: IntOrSizes = 0,
        output_padding: IntOrSizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrSizes = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        name = type(self).__name__
        if padding_mode != "zeros":
            raise ValueError(f'{name}: padding_mode must be "zeros", got {padding_mode!r}')
        padding = per_axis(name, "padding", padding, self._axes, least=0)
        settings = (stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        super().__init__(in_channels, out_channels, kernel_size, *settings)
        self.output_padding = per_axis(name, "output_padding", output_padding, self._axes, least=0)

    def _weight_shape(self) -> tuple[int, ...]:
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """`output_size`: the sizes wanted, which say the output padding."""
        more = self.output_padding if output_size is None else self._output_padding(input, output_size)
        settings = (self.stride, self.padding, more, self.groups, self.dilation)
        return type(self)._function(input, self.weight, self.bias, *settings)

    def _output_padding(self, input: Tensor, output_size: Sequence[int]) -> tuple[int, ...]:
        name, axes = type(self).__name__, self._axes
        wanted = tuple(output_size)[-axes:]
        if len(output_size) not in (axes, input.ndim):
            raise ValueError(f"{name}: output_size must have {axes} or {input.ndim} sizes, got {tuple(output_size)}")
        padding: Any = self.padding
        least = [
            (size - 1) * step - 2 * width + gap * (taps - 1) + 1
            for size, step, width, gap, taps in zip(
                input.shape[-axes:], self.stride, padding, self.dilation, self.kernel_size, strict=True
            )
        ]
        most = [size + step - 1 for size, step in zip(least, self.stride, strict=True)]
        if any(not low <= size <= high for low, size, high in zip(least, wanted, most, strict=True)):
            raise ValueError(f"{name}: output_size must be between {least} and {most}, got {wanted}")
        return tuple(size - low for size, low in zip(wanted, least, strict=True))

    def extra_repr(self) -> str:
        if self.output_padding == (0,) * self._axes:
            return super().extra_repr()
        # Before groups and bias, as in PyTorch.
        text, more = super().extra_repr(), f", output_padding={self.output_padding}"
        for behind in (", groups=", ", bias="):
            if behind in text:
                return text.replace(behind, more + behind, 1)
        return text + more


class ConvTranspose1d(_ConvTranspose):
    """Transposed convolution of (N, in_channels, L), or of one sequence; see `functional.conv_transpose1d`.

    weight: (in_channels, out_channels / groups, *kernel_size).
    """

    _axes = 1
    _function = staticmethod(F.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose):
    """Transposed convolution of (N, in_channels, H, W), or of one image; see `functional.conv_transpose2d`.

    weight: (in_channels, out_channels / groups, *kernel_size).
    """

    _axes = 2
    _function = staticmethod(F.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose):
    """Transposed convolution of (N, in_channels, D, H, W), or of one volume; see `functional.conv_transpose3d`.

    weight: (in_channels, out_channels / groups, *kernel_size).
    """

    _axes = 3
    _function = staticmethod(F.conv_transpose3d)
