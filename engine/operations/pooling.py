"""Pooling over one, two or three axes, and what its derivatives are."""

from __future__ import annotations

from typing import Any

from ... import kernels
from ..operation import Operation
from ..tensor import Tensor
from .arithmetic import where
from .creation import zeros_like

Optional = Tensor | None


class _MaxPooling(Operation):
    """Operations on windows in each of which an offset names one element."""

    def windows(ctx) -> dict[str, Any]:
        return {
            "kernel_size": ctx.kernel_size, "stride": ctx.stride,
            "padding": ctx.padding, "dilation": ctx.dilation,
        }  # fmt: skip


class MaxPool(_MaxPooling):
    """The maximum of each window, and with `return_indices` its position in the plane."""

    materializes_grads = False

    def forward(ctx, x: Any) -> Any:
        y, offsets = kernels.max_pool(x, ceil_mode=ctx.ceil_mode, **ctx.windows())
        ctx.save_arrays(offsets)
        ctx.input_shape = x.shape
        if not ctx.return_indices:
            return y
        return y, kernels.max_pool_indices(offsets, x.shape, **ctx.windows())

    def backward(ctx, grad: Tensor, _: Optional = None) -> Tensor:
        return MaxPoolScatter.apply(grad, ctx.saved[0], input_shape=ctx.input_shape, **ctx.windows())


class MaxPoolScatter(_MaxPooling):
    """Each element added to zeros where its offset points: the gradient of the maximum and of the gather."""

    def forward(ctx, dy: Any, offsets: Any) -> Any:
        ctx.save_inputs(1)
        return kernels.max_pool_scatter(dy, offsets, ctx.input_shape, **ctx.windows())

    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return MaxPoolGather.apply(grad, ctx.saved[0], **ctx.windows()), None


class MaxPoolGather(_MaxPooling):
    """The elements to which the offsets point: the gradient of the scatter."""

    def forward(ctx, x: Any, offsets: Any) -> Any:
        ctx.save_inputs(1)
        ctx.input_shape = x.shape
        return kernels.max_pool_gather(x, offsets, **ctx.windows())

    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return MaxPoolScatter.apply(grad, ctx.saved[0], input_shape=ctx.input_shape, **ctx.windows()), None


class AdaptiveMaxPool(Operation):
    """The maximum of each window of an adaptive pooling, and its position in the plane."""

    materializes_grads = False

    def forward(ctx, x: Any) -> Any:
        y, indices = kernels.adaptive_max_pool(x, ctx.output_size)
        ctx.save_arrays(indices)
        ctx.input_shape = x.shape
        return (y, indices) if ctx.return_indices else y

    def backward(ctx, grad: Tensor, _: Optional = None) -> Tensor:
        return AdaptiveMaxPoolScatter.apply(grad, ctx.saved[0], input_shape=ctx.input_shape)


class AdaptiveMaxPoolScatter(Operation):
    """Each element added to zeros at its position."""

    def forward(ctx, dy: Any, indices: Any) -> Any:
        ctx.save_inputs(1)
        return kernels.adaptive_max_pool_scatter(dy, indices, ctx.input_shape)

    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return AdaptiveMaxPoolGather.apply(grad, ctx.saved[0]), None


class AdaptiveMaxPoolGather(Operation):
    """The elements at the positions: the gradient of the scatter."""

    def forward(ctx, x: Any, indices: Any) -> Any:
        ctx.save_inputs(1)
        ctx.input_shape = x.shape
        return kernels.adaptive_max_pool_gather(x, indices)

    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return AdaptiveMaxPoolScatter.apply(grad, ctx.saved[0], input_shape=ctx.input_shape), None


class MaxUnpool(Operation):
    """Zeros with each element at its position."""

    def forward(ctx, x: Any, indices: Any) -> Any:
        ctx.save_inputs(1)
        return kernels.max_unpool(x, indices, ctx.output_size)

    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return MaxUnpoolInputGrad.apply(grad, ctx.saved[0]), None


class MaxUnpoolInputGrad(Operation):
    """The elements at the positions, but for those that another one replaced."""

    def forward(ctx, dy: Any, indices: Any) -> Any:
        ctx.save_inputs(1)
        ctx.output_size = dy.shape[2:]
        return kernels.max_unpool_input_grad(dy, indices)

    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return MaxUnpool.apply(grad, ctx.saved[0], output_size=ctx.output_size), None


class _AvgPooling(Operation):
    """The mean of windows and its gradient: linear, so each is the other's derivative."""

    def windows(ctx) -> dict[str, Any]:
        return {
            "kernel_size": ctx.kernel_size, "stride": ctx.stride, "padding": ctx.padding,
            "ceil_mode": ctx.ceil_mode,
            "count_include_pad": ctx.count_include_pad, "divisor_override": ctx.divisor_override,
        }  # fmt: skip


class AvgPool(_AvgPooling):
    """The mean of each window."""

    def forward(ctx, x: Any) -> Any:
        ctx.input_shape = x.shape
        return kernels.avg_pool(x, **ctx.windows())

    def backward(ctx, grad: Tensor) -> Tensor:
        return AvgPoolInputGrad.apply(grad, input_shape=ctx.input_shape, **ctx.windows())


class AvgPoolInputGrad(_AvgPooling):
    """Each element spread over its window."""

    def forward(ctx, dy: Any) -> Any:
        return kernels.avg_pool_input_grad(dy, ctx.input_shape, **ctx.windows())

    def backward(ctx, grad: Tensor) -> Tensor:
        return AvgPool.apply(grad, **ctx.windows())


class AdaptiveAvgPool(Operation):
    """The mean of each window of an adaptive pooling."""

    def forward(ctx, x: Any) -> Any:
        ctx.input_shape = x.shape
        return kernels.adaptive_avg_pool(x, ctx.output_size)

    def backward(ctx, grad: Tensor) -> Tensor:
        return AdaptiveAvgPoolInputGrad.apply(grad, input_shape=ctx.input_shape)


class AdaptiveAvgPoolInputGrad(Operation):
    """Each element spread over its window."""

    def forward(ctx, dy: Any) -> Any:
        ctx.output_size = dy.shape[2:]
        return kernels.adaptive_avg_pool_input_grad(dy, ctx.input_shape)

    def backward(ctx, grad: Tensor) -> Tensor:
        return AdaptiveAvgPool.apply(grad, output_size=ctx.output_size)


class _LpPooling(Operation):
    """Pooling by a p-norm: y = (Σ c x^p)^(1/p), with c the weight of a window."""

    def windows(ctx) -> dict[str, Any]:
        return {
            "norm_type": ctx.norm_type, "kernel_size": ctx.kernel_size, "stride": ctx.stride, "ceil_mode": ctx.ceil_mode
        }  # fmt: skip

    def sums(ctx, x: Tensor) -> Tensor:
        """Σ c x of each window."""
        size, rank = 1, len(ctx.kernel_size)
        for taps in ctx.kernel_size:
            size *= taps
        mean = AvgPool.apply(
            x, kernel_size=ctx.kernel_size, stride=ctx.stride, padding=(0,) * rank, ceil_mode=ctx.ceil_mode,
            count_include_pad=False, divisor_override=None,
        )  # fmt: skip
        return mean * size


class LpPool(_LpPooling):
    """The p-norm of each window."""

    def forward(ctx, x: Any) -> Any:
        ctx.save_inputs(0)
        ctx.save_outputs(0)
        return kernels.lp_pool(x, **ctx.windows())

    def backward(ctx, grad: Tensor) -> Tensor:
        return LpPoolInputGrad.apply(grad, *ctx.saved, **ctx.windows())


class LpPoolInputGrad(_LpPooling):
    """dx = x^(p-1) Σ c dy y^(1-p), over the windows that hold x and whose y is not 0."""

    def forward(ctx, dy: Any, x: Any, y: Any) -> Any:
        ctx.save_inputs(0, 1, 2)
        return kernels.lp_pool_input_grad(dy, x, y, **ctx.windows())

    def backward(ctx, grad: Tensor) -> tuple[Optional, Optional, Optional]:
        dy, x, y = ctx.saved
        p, for_dy, for_x, for_y = ctx.norm_type, None, zeros_like(x), zeros_like(y)
        nothing = y == 0
        safe = where(nothing, 1, y)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
            sums = where(nothing, 0, ctx.sums(grad * x ** (p - 1)))
            for_dy = sums * safe ** (1 - p)
            if p != 1:
                for_y = sums * dy * safe ** (-p) * (1 - p)
        if ctx.needs_input_grad[1] and p != 1:
            # The shares summed over each element's windows: the gradient at norm 1, of windows that are not 0.
            one = {**ctx.windows(), "norm_type": 1}
            shares = LpPoolInputGrad.apply(where(nothing, 0, dy * safe ** (1 - p)), x, safe, **one)
            for_x = shares * x ** (p - 2) * ((p - 1) * grad)
        return for_dy, for_x, for_y
