"""Convolution of one, two and three axes."""

from __future__ import annotations

from typing import Any

from ...engine import Tensor
from ...engine.operations.convolution import Convolution
from .checks import check_tensor, per_axis, sides, with_batch


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
    return _conv("conv1d", "(K, C / groups, S)", input, weight, bias, stride, padding, dilation, groups)


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
    return _conv("conv2d", "(K, C / groups, R, S)", input, weight, bias, stride, padding, dilation, groups)


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
    return _conv("conv3d", "(K, C / groups, T, R, S)", input, weight, bias, stride, padding, dilation, groups)


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
    axes = filters.count(",") - 1
    batch, alone = with_batch(name, input, axes)
    if check_tensor(name, "weight", weight).ndim != axes + 2:
        raise ValueError(f"{name}: weight must have the shape {filters}, got {weight.shape}")
    if bias is not None:
        check_tensor(name, "bias", bias)
    stride, dilation = per_axis(name, "stride", stride, axes, 1), per_axis(name, "dilation", dilation, axes, 1)
    around = sides(name, padding, weight.shape[2:], stride, dilation)
    result = Convolution.apply(batch, weight, bias, stride=stride, padding=around, dilation=dilation, groups=groups)
    return result.squeeze(0) if alone else result
