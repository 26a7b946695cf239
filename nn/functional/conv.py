"""Convolution."""

from __future__ import annotations

from typing import Any

from ...engine import Tensor
from ...engine.operations.convolution import Conv2d
from .checks import check_tensor, pair, sides, with_batch


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
    batch, alone = with_batch("conv2d", input)
    if check_tensor("conv2d", "weight", weight).ndim != 4:
        raise ValueError(f"conv2d: weight must have the shape (K, C / groups, R, S), got {weight.shape}")
    if bias is not None:
        check_tensor("conv2d", "bias", bias)
    stride, dilation = (
        pair("conv2d", "stride", stride, least=1),
        pair("conv2d", "dilation", dilation, least=1),
    )
    around = sides("conv2d", padding, weight.shape[2:], stride, dilation)
    result = Conv2d.apply(batch, weight, bias, stride=stride, padding=around, dilation=dilation, groups=groups)
    return result.squeeze(0) if alone else result
