"""Convolution of one, two and three axes."""

from __future__ import annotations

from typing import Any

from ...engine import Tensor
from ...engine.grad_mode import is_grad_enabled
from ...engine.operations.convolution import Convolution, ConvolutionActivation
from ...kernels.geometry.checks import remembered
from ...kernels.geometry.conv import ACTIVATIONS
from .activation import silu
from .checks import check_tensor, per_axis, sides, with_batch

_FILTERS = ("(K, C / groups, S)", "(K, C / groups, R, S)", "(K, C / groups, T, R, S)")


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlate (N, C, L), or one sequence (C, L), with filters (K, C / groups, S); bias (K,).

    stride, dilation: an int or (int,). padding: also "same" (the size stays; stride 1) or "valid" (none).
    """
    return _conv("conv1d", _FILTERS[0], input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlate (N, C, H, W), or one image (C, H, W), with filters (K, C / groups, R, S); bias (K,).

    stride, dilation: an int or a pair. padding: also "same" (the size stays; stride 1) or "valid" (none).
    """
    return _conv("conv2d", _FILTERS[1], input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlate (N, C, D, H, W), or one volume (C, D, H, W), with filters (K, C / groups, T, R, S); bias (K,).

    stride, dilation: an int or a triple. padding: also "same" (the size stays; stride 1) or "valid" (none).
    """
    return _conv("conv3d", _FILTERS[2], input, weight, bias, stride, padding, dilation, groups)


def conv_activation(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = "relu",
    residual: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """activation(convolution + bias + residual) in one kernel: PyTorch's `cudnn_convolution_relu` and `_add_relu`.

    activation: "relu", "silu" or None. residual: of the result's shape, or None. The other arguments are those of
    `conv1d`, `conv2d` and `conv3d`; the number of axes is the weight's. For a gradient SiLU is a second kernel: it
    needs its own input.
    """
    name = "conv_activation"
    axes = check_tensor(name, "weight", weight).ndim - 2
    if axes not in (1, 2, 3):
        raise ValueError(f"{name}: weight must have the shape (K, C / groups, *taps), 1 to 3 taps, got {weight.shape}")
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f'{name}: activation must be "relu", "silu" or None, got {activation!r}')
    batch, settings = _checked(name, _FILTERS[axes - 1], input, weight, bias, stride, padding, dilation, groups)
    one = input.ndim < batch.ndim
    if residual is not None:
        residual = check_tensor(name, "residual", residual)
        residual = residual.unsqueeze(0) if one else residual
    tensors = (batch, weight, bias, residual)
    apart = activation == "silu" and is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    result = ConvolutionActivation.apply(*tensors, kind=None if apart else activation, **settings)
    result = silu(result) if apart else result
    return result.squeeze(0) if one else result


def _conv(
    name: str,
    filters: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    batch, settings = _checked(name, filters, input, weight, bias, stride, padding, dilation, groups)
    result = Convolution.apply(batch, weight, bias, **settings)
    return result.squeeze(0) if input.ndim < batch.ndim else result


def _checked(
    name: str,
    filters: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> tuple[Tensor, dict[str, Any]]:
    """The input as a batch, and the settings as the operations take them."""
    axes = filters.count(",") - 1
    batch, _ = with_batch(name, input, axes)
    if check_tensor(name, "weight", weight).ndim != axes + 2:
        raise ValueError(f"{name}: weight must have the shape {filters}, got {weight.shape}")
    if bias is not None:
        check_tensor(name, "bias", bias)
    return batch, {**_settings(name, axes, weight.shape[2:], stride, padding, dilation), "groups": groups}


@remembered
def _settings(name: str, axes: int, taps: tuple[int, ...], stride: Any, padding: Any, dilation: Any) -> dict[str, Any]:
    stride, dilation = per_axis(name, "stride", stride, axes, 1), per_axis(name, "dilation", dilation, axes, 1)
    return {"stride": stride, "padding": sides(name, padding, taps, stride, dilation), "dilation": dilation}
