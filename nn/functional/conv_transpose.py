"""Transposed convolution of one, two and three axes: the gradient of a convolution as a function of its own."""

from __future__ import annotations

from typing import Any

from ...engine import Tensor
from ...engine.operations.convolution import ChannelBias, ConvolutionInputGrad
from ...engine.operations.joining import pad
from .checks import check_tensor, per_axis, positive, with_batch

_FILTERS = ("(C, K / groups, S)", "(C, K / groups, R, S)", "(C, K / groups, T, R, S)")


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """(N, C, L), or one sequence (C, L), by filters (C, K / groups, S) to (N, K, output); bias (K,).

    output: (L - 1) stride - 2 padding + dilation (S - 1) + output_padding + 1.
    """
    return _conv_transpose(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """(N, C, H, W), or one image (C, H, W), by filters (C, K / groups, R, S) to (N, K, *outputs); bias (K,).

    An output: (H - 1) stride - 2 padding + dilation (R - 1) + output_padding + 1.
    """
    return _conv_transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """(N, C, D, H, W), or one volume (C, D, H, W), by filters (C, K / groups, T, R, S) to (N, K, *outputs); bias (K,).

    An output: (D - 1) stride - 2 padding + dilation (T - 1) + output_padding + 1.
    """
    return _conv_transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation)


def _conv_transpose(
    axes: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Tensor:
    name = f"conv_transpose{axes}d"
    batch, alone = with_batch(name, input, axes)
    if check_tensor(name, "weight", weight).ndim != axes + 2 or min(weight.shape) < 1:
        raise ValueError(f"{name}: weight must have the shape {_FILTERS[axes - 1]}, got {weight.shape}")
    stride, dilation = per_axis(name, "stride", stride, axes, 1), per_axis(name, "dilation", dilation, axes, 1)
    padding = per_axis(name, "padding", padding, axes, 0)
    more = per_axis(name, "output_padding", output_padding, axes, 0)
    if any(extra >= max(step, gap) for extra, step, gap in zip(more, stride, dilation, strict=True)):
        raise ValueError(
            f"{name}: output_padding must be smaller than stride or dilation, got output_padding {more}, "
            f"stride {stride}, dilation {dilation}"
        )
    groups = positive(name, "groups", groups)
    channels, filters = len(weight), weight.shape[1] * groups
    if channels % groups or batch.shape[1] != channels:
        raise ValueError(
            f"{name}: weight {weight.shape} with groups={groups} wants {channels} input channels, a multiple of "
            f"groups, got {batch.shape[1]} (input {input.shape})"
        )
    if bias is not None and check_tensor(name, "bias", bias).shape != (filters,):
        raise ValueError(f"{name}: bias must have the shape ({filters},), one per output channel, got {bias.shape}")
    dtypes = [tensor.dtype for tensor in (input, weight, bias) if tensor is not None]
    if len(set(dtypes)) > 1:
        raise TypeError(f"{name}: expected tensors of one dtype, got {', '.join(map(str, dtypes))}")
    taps, sizes = weight.shape[2:], batch.shape[2:]
    outputs = tuple(
        (size - 1) * step - 2 * width + gap * (count - 1) + extra + 1
        for size, step, width, gap, count, extra in zip(sizes, stride, padding, dilation, taps, more, strict=True)
    )
    if min(outputs) < 1 or min(sizes) < 1:
        raise ValueError(f"{name}: input {input.shape} with padding {padding} gives outputs of size {outputs}")
    # Beyond a stride of output padding the convolution would see positions that the input does not have: zeros.
    behind = [extra // step for extra, step in zip(more, stride, strict=True)]
    if any(behind):
        batch = pad(batch, tuple(width for extra in reversed(behind) for width in (0, extra)))
    result = ConvolutionInputGrad.apply(
        batch,
        weight,
        input_shape=(len(batch), filters, *outputs),
        stride=stride,
        padding=tuple((width, width) for width in padding),
        dilation=dilation,
        groups=groups,
    )
    if bias is not None:
        result = ChannelBias.apply(result, bias)
    return result.squeeze(0) if alone else result
