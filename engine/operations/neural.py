"""Operations of neural networks over the kernels: convolution, pooling, cross-entropy.

The functions that users call, with their checks, are in `nn.functional`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import kernels
from ..backend import array_module
from ..grad_mode import mode
from ..operation import Operation
from ..tensor import Tensor, wrap

Optional = Tensor | None


class _Convolution(Operation):
    """One of the three operations of a convolution, each of which is the derivative of the two others."""

    def geometry(ctx) -> dict[str, Any]:
        return {
            "stride": ctx.stride, "padding": ctx.padding, "dilation": ctx.dilation, "groups": ctx.groups,
        }  # fmt: skip

    def save_what_is_needed(ctx) -> None:
        """Each of the two inputs is needed for the gradient of the other."""
        by_first, by_second = ctx.needs_input_grad[:2]
        if by_second:
            ctx.save_inputs(0)
        if by_first:
            ctx.save_inputs(1)


class Conv2d(_Convolution):
    """Images (N, C, H, W), filters (K, C / groups, R, S) and a bias (K,) or None to (N, K, P, Q)."""

    def forward(ctx, x: Any, weight: Any, bias: Any) -> Any:
        ctx.save_what_is_needed()
        ctx.input_shape, ctx.weight_shape = x.shape, weight.shape
        return kernels.conv2d(x, weight, bias, **ctx.geometry())

    def backward(ctx, grad: Tensor) -> tuple[Optional, Optional, Optional]:
        by_x = by_weight = by_bias = None
        need_x, need_weight, need_bias = ctx.needs_input_grad
        saved = ctx.saved
        if need_x:
            by_x = Conv2dInputGrad.apply(grad, saved[-1], input_shape=ctx.input_shape, **ctx.geometry())
        if need_weight:
            by_weight = Conv2dWeightGrad.apply(grad, saved[0], weight_shape=ctx.weight_shape, **ctx.geometry())
        if need_bias:
            by_bias = grad.sum((0, 2, 3))
        return by_x, by_weight, by_bias


class Conv2dInputGrad(_Convolution):
    """The gradient of a convolution with respect to its images, from that of its result and the filters."""

    def forward(ctx, dy: Any, weight: Any) -> Any:
        ctx.save_what_is_needed()
        ctx.weight_shape = weight.shape
        return kernels.conv2d_input_grad(dy, weight, ctx.input_shape, **ctx.geometry())

    def backward(ctx, grad: Tensor) -> tuple[Optional, Optional]:
        by_dy = by_weight = None
        need_dy, need_weight = ctx.needs_input_grad
        saved = ctx.saved
        if need_dy:
            by_dy = Conv2d.apply(grad, saved[-1], None, **ctx.geometry())
        if need_weight:
            by_weight = Conv2dWeightGrad.apply(saved[0], grad, weight_shape=ctx.weight_shape, **ctx.geometry())
        return by_dy, by_weight


class Conv2dWeightGrad(_Convolution):
    """The gradient of a convolution with respect to its filters, from that of its result and the images."""

    def forward(ctx, dy: Any, x: Any) -> Any:
        ctx.save_what_is_needed()
        ctx.input_shape = x.shape
        return kernels.conv2d_weight_grad(dy, x, ctx.weight_shape, **ctx.geometry())

    def backward(ctx, grad: Tensor) -> tuple[Optional, Optional]:
        by_dy = by_x = None
        need_dy, need_x = ctx.needs_input_grad
        saved = ctx.saved
        if need_dy:
            by_dy = Conv2d.apply(saved[-1], grad, None, **ctx.geometry())
        if need_x:
            by_x = Conv2dInputGrad.apply(saved[0], grad, input_shape=ctx.input_shape, **ctx.geometry())
        return by_dy, by_x


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


class SoftmaxCrossEntropy(Operation):
    """Logits (N, C) with class indices (N,) or probabilities (N, C); `weight` is an array (C,) or None.

    Forward computes the gradient along with the loss, while it has the exponentials; backward only scales it.
    """

    consumes = True

    def forward(ctx, logits: Any, target: Any) -> Any:
        need_logits, need_target = ctx.needs_input_grad[:2]
        loss, grad = kernels.softmax_cross_entropy(
            logits, target, ctx.weight, ctx.ignore_index, ctx.label_smoothing, ctx.reduction, need_logits
        )
        if need_logits or need_target:
            ctx.save_inputs(0, 1)
        if need_logits:
            ctx.save_arrays(grad)
        return loss

    def backward(ctx, upstream: Tensor) -> tuple[Optional, Optional]:
        logits, target, *grad = ctx.saved
        need_logits, need_target = ctx.needs_input_grad
        by_logits = by_target = None
        if need_logits and ctx.is_last_pass and not mode.grad:
            ctx.release()  # before the array changes: a pass after an error must not find it
            by_logits = wrap(kernels.softmax_cross_entropy_scale(grad[0]._data, upstream._data, in_place=True))
        elif need_logits:
            settings = {
                "weight": ctx.weight, "ignore_index": ctx.ignore_index, "label_smoothing": ctx.label_smoothing,
                "reduction": ctx.reduction,
            }  # fmt: skip
            by_logits = SoftmaxCrossEntropyGrad.apply(upstream, logits, target, grad[0], **settings)
        if need_target:
            by_target = logits.log_softmax(1) * _target_factor(ctx, logits) * -_column(upstream)
        return by_logits, by_target


class SoftmaxCrossEntropyGrad(Operation):
    """upstream · (softmax(logits) Σ q − q), q: the weighted, smoothed targets; `grad`: the difference."""

    def forward(ctx, upstream: Any, logits: Any, target: Any, grad: Any) -> Any:
        ctx.save_inputs(0, 1, 2)
        return kernels.softmax_cross_entropy_scale(grad, upstream)

    def backward(ctx, direction: Tensor) -> tuple[Optional, Optional, Optional, None]:
        upstream, logits, target = ctx.saved
        need_upstream, need_logits, need_target, _ = ctx.needs_input_grad
        by_upstream = by_logits = by_target = None
        p = logits.softmax(1)
        q = _weighted_targets(ctx, logits, target)
        mass = q.sum(1, keepdim=True)
        if need_upstream:
            rows = ((p * mass - q) * direction).sum(1)
            by_upstream = rows if upstream.ndim else rows.sum()
        scaled = direction * _column(upstream)
        along = (p * scaled).sum(1, keepdim=True)
        if need_logits:
            by_logits = p * mass * (scaled - along)
        if need_target:
            by_target = (along - scaled) * _target_factor(ctx, logits)
        return by_upstream, by_logits, by_target, None


def _column(upstream: Tensor) -> Tensor:
    return upstream.unsqueeze(1) if upstream.ndim else upstream


def _target_factor(ctx: Any, logits: Tensor) -> Tensor | float:
    """d q / d target for probabilities: the weights, what smoothing leaves, and the divisor of the mean."""
    factor = (1.0 - ctx.label_smoothing) / (logits.shape[0] if ctx.reduction == "mean" else 1)
    return factor if ctx.weight is None else Tensor(ctx.weight) * factor


def _weighted_targets(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
    """q (N, C): what each class of each row weighs in the loss."""
    n, classes = logits.shape
    smoothing = ctx.label_smoothing
    if target.ndim == 2:
        q = target * (1.0 - smoothing) + smoothing / classes
        q = q if ctx.weight is None else q * Tensor(ctx.weight)
        return q / n if ctx.reduction == "mean" else q
    module = array_module(logits._data)
    dtype = logits.dtype if logits.dtype.itemsize > 2 else np.dtype(np.float32)
    share = module.ones(classes, dtype) if ctx.weight is None else ctx.weight.astype(dtype)
    chosen = target._data[:, None] == module.arange(classes)
    kept = (target._data != ctx.ignore_index)[:, None]
    parts = (1.0 - smoothing) * chosen + smoothing / classes
    parts = (parts * share * kept).astype(dtype)
    if ctx.reduction == "mean":
        parts /= (chosen * share * kept).sum()
    return Tensor(parts.astype(logits.dtype))


class LogSigmoid(Operation):
    """log(1 / (1 + exp(-x))) without overflow."""

    def forward(ctx, x: Any) -> Any:
        ctx.save_inputs(0)
        return np.minimum(x, x.dtype.type(0)) - np.log1p(np.exp(-np.abs(x)))

    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * (-ctx.saved[0]).sigmoid()
