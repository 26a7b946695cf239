"""Softmax-cross-entropy."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import kernels
from ..backend import array_module
from ..grad_mode import mode
from ..inplace import check_may_change, record_change
from ..operation import Edge, Operation, Saved, next_order
from ..tensor import Tensor, wrap

Optional = Tensor | None


class SoftmaxCrossEntropy(Operation):
    """Logits (N, C) with class indices (N,) or probabilities (N, C); `weight` is an array (C,) or None.

    Forward computes the gradient along with the loss, while it has the exponentials; backward only scales it.
    `overwritten`: the versions of the logits where the gradient is written over them, else None.
    """

    consumes = True

    def forward(ctx, logits: Any, target: Any) -> Any:
        need_logits, need_target = ctx.needs_input_grad[:2]
        settings = (ctx.weight, ctx.ignore_index, ctx.label_smoothing, ctx.reduction)
        versions = ctx.overwritten
        if versions is not None:
            loss, grad = kernels.softmax_cross_entropy(logits, target, *settings, True, inplace_grad=True)
            # With the logits' edge, so that a second derivative is missed; the change is counted afterwards.
            ctx.saved_entries.append(Saved(grad, ctx.edges[0], versions, versions[0] + 1))
            return loss
        loss, grad = kernels.softmax_cross_entropy(logits, target, *settings, need_logits)
        if need_logits or need_target:
            ctx.save_inputs(0, 1)
        if need_logits:
            ctx.save_arrays(grad)
        return loss

    def backward(ctx, upstream: Tensor) -> tuple[Optional, Optional]:
        saved = ctx.saved
        need_logits, need_target = ctx.needs_input_grad
        by_logits = by_target = None
        if need_logits and ctx.is_last_pass and not mode.grad:
            ctx.release()  # before the array changes: a pass after an error must not find it
            by_logits = wrap(kernels.softmax_cross_entropy_scale(saved[-1]._data, upstream._data, in_place=True))
        elif ctx.overwritten is not None:
            by_logits = OverwrittenGrad.apply(upstream, saved[0])
        elif need_logits:
            settings = {
                "weight": ctx.weight, "ignore_index": ctx.ignore_index, "label_smoothing": ctx.label_smoothing,
                "reduction": ctx.reduction,
            }  # fmt: skip
            by_logits = SoftmaxCrossEntropyGrad.apply(upstream, *saved, **settings)
        if need_target:
            logits = saved[0]
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


class OverwrittenGrad(Operation):
    """upstream · grad, without the logits: it cannot be differentiated."""

    def forward(ctx, upstream: Any, grad: Any) -> Any:
        return kernels.softmax_cross_entropy_scale(grad, upstream)

    def backward(ctx, direction: Tensor) -> tuple[Optional, Optional]:
        raise RuntimeError(
            "cross_entropy: there is no second derivative with inplace_grad=True, which has written the gradient over "
            "the logits; leave it out"
        )


class OverwrittenLogits(Operation):
    """What gradients of logits meet that were computed from them after they had been overwritten."""

    def __init__(self, edge: Edge | None) -> None:
        self.edges = [edge]
        self.needs_input_grad = [True]
        self.order = next_order()
        self.saved_entries, self.hooks, self.outputs = [], None, None

    def backward(ctx, grad: Tensor) -> Optional:
        raise RuntimeError(
            "cross_entropy: inplace_grad=True has written the gradient over the logits, which were used again "
            "afterwards; use them before the loss, or leave inplace_grad out"
        )


def overwriting_cross_entropy(logits: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """`SoftmaxCrossEntropy`, its gradient written over the logits, which count as changed in place.

    The graph keeps the logits' history for the loss; whatever uses them later has an error for a gradient.
    """
    name = "cross_entropy with inplace_grad=True"
    check_may_change(logits, name)
    if not logits.is_contiguous():
        raise ValueError(
            f"{name}: the logits must be contiguous, got shape {logits.shape} with strides {logits.stride()}"
        )
    if target.requires_grad:
        raise ValueError(f"{name}: there is no gradient for target without the logits; give target.detach()")
    if target._versions is logits._versions:
        raise ValueError(f"{name}: the target must not share the memory of the logits")
    loss = SoftmaxCrossEntropy.apply(logits, target, overwritten=logits._versions, **settings)
    node = OverwrittenLogits(logits._current_edge())
    record_change(logits, Edge(node, 0, logits.shape, logits.dtype))
    return loss


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
