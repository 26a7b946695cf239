"""Batch normalisation (Ioffe & Szegedy, 2015), with a residual sum and ReLU, and derivatives of any order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import kernels
from ..dtypes import is_half
from ..operation import Operation
from ..tensor import Tensor

Optional = Tensor | None


class BatchNorm(Operation):
    """(x - mean) / sqrt(var + eps) * weight + bias + residual per channel (dimension 1), then ReLU with `relu`.

    Weight and bias are (C,) or None. Mean and variance are the batch's, towards which the arrays `running_mean` and
    `running_var` are moved where there are any; with `inference` they are those two arrays.
    """

    def forward(ctx, x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        if ctx.inference:
            y, mean, inverse_std = kernels.batch_norm_inference(
                x, ctx.running_mean, ctx.running_var, weight, bias, ctx.eps, residual, ctx.relu
            )
        else:
            y, mean, inverse_std = kernels.batch_norm(
                x, weight, bias, ctx.eps, residual, ctx.relu,
                ctx.running_mean, ctx.running_var, ctx.momentum, ctx.num_batches_tracked,
            )  # fmt: skip
        ctx.save_inputs(0, 1, 2)
        ctx.save_arrays(mean, inverse_std)
        if ctx.relu:
            ctx.save_outputs(0)
        return y

    def backward(ctx, grad: Tensor) -> tuple[Optional, Optional, Optional, Optional]:
        need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad
        needs = need_x, need_weight or need_bias
        gated = need_residual and ctx.relu
        found: dict[str, Tensor] = {}
        names = _names(needs, gated)
        if names:
            settings = {"eps": ctx.eps, "inference": ctx.inference, "needs": needs, "gated": gated}
            x, weight, bias, mean, inverse_std, *y = ctx.saved
            grads = BatchNormGrad.apply(grad, x, weight, bias, mean, inverse_std, *(y or [None]), **settings)
            found = dict(zip(names, grads, strict=True))
        by_residual = found.get("residual", grad if need_residual else None)
        return found.get("x"), found.get("weight"), found.get("bias"), by_residual


def _names(needs: tuple[bool, bool], gated: bool) -> list[str]:
    """Whose gradients `BatchNormGrad` returns."""
    return ["x"] * needs[0] + ["weight", "bias"] * needs[1] + ["residual"] * gated


class BatchNormGrad(Operation):
    """Those of the gradients of x, weight and bias that are in `needs`; `gated`, also that of the residual."""

    materializes_grads = False

    def forward(ctx, dy: Any, x: Any, weight: Any, bias: Any, mean: Any, inverse_std: Any, y: Any) -> Any:
        ctx.save_inputs(0, 1, 2, 4, 5, 6)
        grads = kernels.batch_norm_grad(dy, x, weight, bias, mean, inverse_std, y, ctx.gated, ctx.inference, ctx.needs)
        return tuple(grad for grad in grads if grad is not None)

    def backward(ctx, *directions: Optional) -> tuple[Optional, ...]:
        """Given directions for the gradients."""
        g, x, weight, mean, inverse_std, y = ctx.saved
        along = dict(zip(_names(ctx.needs, ctx.gated), map(_wide, directions), strict=True))
        keeps = None if y is None else (y <= 0).logical_not()
        g, x, weight = _wide(_gate(g, keeps)), _wide(x), _wide(weight)
        if ctx.inference:
            by_g, by_x, by_weight = _inference_derivatives(g, x, weight, mean, inverse_std, along)
        else:
            by_g, by_x, by_weight = _training_derivatives(g, x, weight, ctx.eps, along)
        by_g = _gate(_plus(by_g, along.get("residual")), keeps)
        return by_g, by_x, by_weight, None, None, None, None


def _training_derivatives(
    g: Tensor, x: Tensor, weight: Optional, eps: float, along: dict[str, Optional]
) -> tuple[Optional, Optional, Optional]:
    """Of the gradients, by g, x and weight; means over a channel are written <·>."""
    dims, ndim = (0, *range(2, x.ndim)), x.ndim

    def mean(t: Tensor) -> Tensor:
        return t.mean(dims, keepdim=True)

    centred = x - mean(x)
    scale = (mean(centred * centred) + eps).rsqrt()
    normal = centred * scale
    factor = scale if weight is None else scale * _column(weight, ndim)
    g0 = g - mean(g)
    q = mean(g * normal)  # <g n>
    by_g = by_x = by_weight = None
    a, b, c = (along.get(name) for name in ("x", "weight", "bias"))
    if a is not None:
        a0 = a - mean(a)
        p = mean(a * normal)  # <a n>
        by_g = factor * (a0 - normal * p)
        inner = mean(a0 * g0) - p * q
        by_x = factor * scale * (normal * (p * q * 2 - inner) - q * a0 - p * g0)
        if weight is not None:
            count = math.prod(x.shape) // x.shape[1]
            by_weight = (inner * scale * count).reshape(weight.shape)
    if b is not None:
        b = _column(b, ndim)
        by_g = _plus(by_g, normal * b)
        by_x = _plus(by_x, b * scale * (g0 - normal * q))
    if c is not None:
        by_g = _plus(by_g, _column(c, ndim).expand(g.shape))
    return by_g, by_x, by_weight


def _inference_derivatives(
    g: Tensor, x: Tensor, weight: Optional, mean: Tensor, inverse_std: Tensor, along: dict[str, Optional]
) -> tuple[Optional, Optional, Optional]:
    """The same where mean and variance are given."""
    dims, ndim = (0, *range(2, x.ndim)), x.ndim
    scale = _column(inverse_std, ndim)
    by_g = by_x = by_weight = None
    a, b, c = (along.get(name) for name in ("x", "weight", "bias"))
    if a is not None:
        by_g = a * (scale if weight is None else scale * _column(weight, ndim))
        by_weight = None if weight is None else (a * g * scale).sum(dims)
    if b is not None:
        b = _column(b, ndim)
        by_g = _plus(by_g, b * (x - _column(mean, ndim)) * scale)
        by_x = b * scale * g
    if c is not None:
        by_g = _plus(by_g, _column(c, ndim).expand(g.shape))
    return by_g, by_x, by_weight


def _column(vector: Tensor, ndim: int) -> Tensor:
    """One value per channel (C,) so that it broadcasts along dimension 1."""
    return vector.reshape(-1, *(1,) * (ndim - 2))


def _wide(tensor: Any) -> Any:
    return tensor.to(np.float32) if tensor is not None and is_half(tensor.dtype) else tensor


def _gate(tensor: Any, keeps: Optional) -> Any:
    return tensor if tensor is None or keeps is None else tensor.where(keeps, 0.0)


def _plus(known: Optional, more: Optional) -> Optional:
    return more if known is None else known if more is None else known + more
