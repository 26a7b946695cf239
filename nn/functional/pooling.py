"""Pooling."""

from __future__ import annotations

from typing import Any

from ...engine import Tensor
from ...engine.operations import pooling
from .checks import pair, with_batch


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of (N, C, H, W) or (C, H, W); stride None: windows side by side.

    With `return_indices` also the position h * W + w of each maximum in its plane, int64.
    """
    batch, alone = with_batch("max_pool2d", input)
    size = pair("max_pool2d", "kernel_size", kernel_size, least=1)
    result = pooling.MaxPool2d.apply(
        batch,
        kernel_size=size,
        stride=size if stride is None else pair("max_pool2d", "stride", stride, least=1),
        padding=pair("max_pool2d", "padding", padding, least=0),
        dilation=pair("max_pool2d", "dilation", dilation, least=1),
        ceil_mode=bool(ceil_mode),
        return_indices=bool(return_indices),
    )
    if not alone:
        return result
    return tuple(tensor.squeeze(0) for tensor in result) if return_indices else result.squeeze(0)


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of (N, C, H, W) or (C, H, W); stride None: windows side by side.

    Zeros of the padding count unless `count_include_pad` is off; `divisor_override` divides instead.
    """
    batch, alone = with_batch("avg_pool2d", input)
    size = pair("avg_pool2d", "kernel_size", kernel_size, least=1)
    result = pooling.AvgPool2d.apply(
        batch,
        kernel_size=size,
        stride=size if stride is None else pair("avg_pool2d", "stride", stride, least=1),
        padding=pair("avg_pool2d", "padding", padding, least=0),
        ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad),
        divisor_override=divisor_override,
    )
    return result.squeeze(0) if alone else result
