"""Pooling, and what its derivatives are."""

from __future__ import annotations

from typing import Any

from ... import kernels
from ..operation import Operation
from ..tensor import Tensor

Optional = Tensor | None


class _MaxPooling(Operation):
    """Operations on windows in each of which an offset names one element."""

    def windows(ctx) -> dict[str, Any]:
        return {
            "kernel_size": ctx.kernel_size, "stride": ctx.stride,
            "padding": ctx.padding, "dilation": ctx.dilation,
        }  # fmt: skip


class MaxPool2d(_MaxPooling):
    """The maximum of each window, and with `return_indices` its position in the plane."""

    materializes_grads = False

    def forward(ctx, x: Any) -> Any:
        y, offsets = kernels.max_pool2d(x, ceil_mode=ctx.ceil_mode, **ctx.windows())
        ctx.save_arrays(offsets)
        ctx.input_shape = x.shape
        if not ctx.return_indices:
            return y
        return y, kernels.max_pool2d_indices(offsets, x.shape, **ctx.windows())

    def backward(ctx, grad: Tensor, _: Optional = None) -> Tensor:
        return MaxPool2dScatter.apply(grad, ctx.saved[0], input_shape=ctx.input_shape, **ctx.windows())


class MaxPool2dScatter(_MaxPooling):
    """Each element added to zeros where its offset points: the gradient of the maximum and of the gather."""

    def forward(ctx, dy: Any, offsets: Any) -> Any:
        ctx.save_inputs(1)
        return kernels.max_pool2d_scatter(dy, offsets, ctx.input_shape, **ctx.windows())

    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return MaxPool2dGather.apply(grad, ctx.saved[0], **ctx.windows()), None


class MaxPool2dGather(_MaxPooling):
    """The elements to which the offsets point: the gradient of the scatter."""

    def forward(ctx, x: Any, offsets: Any) -> Any:
        ctx.save_inputs(1)
        ctx.input_shape = x.shape
        return kernels.max_pool2d_gather(x, offsets, **ctx.windows())

    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return MaxPool2dScatter.apply(grad, ctx.saved[0], input_shape=ctx.input_shape, **ctx.windows()), None


class _AvgPooling(Operation):
    """The mean of windows and its gradient: linear, so each is the other's derivative."""

    def windows(ctx) -> dict[str, Any]:
        return {
            "kernel_size": ctx.kernel_size, "stride": ctx.stride, "padding": ctx.padding,
            "ceil_mode": ctx.ceil_mode,
            "count_include_pad": ctx.count_include_pad, "divisor_override": ctx.divisor_override,
        }  # fmt: skip


class AvgPool2d(_AvgPooling):
    """The mean of each window."""

    def forward(ctx, x: Any) -> Any:
        ctx.input_shape = x.shape
        return kernels.avg_pool2d(x, **ctx.windows())

    def backward(ctx, grad: Tensor) -> Tensor:
        return AvgPool2dInputGrad.apply(grad, input_shape=ctx.input_shape, **ctx.windows())


class AvgPool2dInputGrad(_AvgPooling):
    """Each element spread over its window."""

    def forward(ctx, dy: Any) -> Any:
        return kernels.avg_pool2d_input_grad(dy, ctx.input_shape, **ctx.windows())

    def backward(ctx, grad: Tensor) -> Tensor:
        return AvgPool2d.apply(grad, **ctx.windows())
