"""Layer and RMS normalisation, with derivatives of any order."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ... import kernels
from ..dtypes import is_half
from ..operation import Operation
from ..tensor import Tensor

Optional = Tensor | None


class LayerNorm(Operation):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last `dims` dimensions, whose shape weight and bias have.

    Without `centred` it is RMS normalisation: mean and bias are left out, var is the mean of the squares.
    """

    def forward(ctx, x: Any, weight: Any, bias: Any) -> Any:
        rows = _rows(x, ctx.dims)
        ctx.save_inputs(0, 1)
        if ctx.centred:
            y, *statistics = kernels.layer_norm(rows, _flat(weight), _flat(bias), ctx.eps)
        else:
            y, *statistics = kernels.rms_norm(rows, _flat(weight), ctx.eps)
        ctx.save_arrays(*statistics)
        return y.reshape(x.shape)

    def backward(ctx, grad: Tensor) -> tuple[Optional, Optional, Optional]:
        need_x, *needs = ctx.needs_input_grad
        x, weight, *statistics = ctx.saved
        settings = {"dims": ctx.dims, "centred": ctx.centred, "eps": ctx.eps, "needs": needs}
        by_x, *rest = LayerNormGrad.apply(grad, x, weight, *statistics, **settings)
        return by_x if need_x else None, *spread(needs, rest)


class LayerNormGrad(Operation):
    """The gradient of x, and those of weight and bias that are in `needs`."""

    materializes_grads = False

    def forward(ctx, dy: Any, x: Any, weight: Any, *statistics: Any) -> tuple[Any, ...]:
        ctx.save_inputs(0, 1, 2)
        upstream, rows, vector = _rows(dy, ctx.dims), _rows(x, ctx.dims), _flat(weight)
        grads: Any
        if ctx.centred:
            grads = kernels.layer_norm_grad(upstream, rows, vector, *statistics, *ctx.needs)
        else:
            grads = kernels.rms_norm_grad(upstream, rows, vector, statistics[0], ctx.needs[0])
        shapes = x.shape, *[x.shape[x.ndim - ctx.dims :]] * 2
        return tuple(grad.reshape(shape) for grad, shape in zip(grads, shapes, strict=False) if grad is not None)

    def backward(ctx, along_x: Optional, *rest: Optional) -> tuple[Optional, ...]:
        g, x, weight = map(wide, ctx.saved)
        dims = tuple(range(x.ndim - ctx.dims, x.ndim))
        along = along_x, *spread(ctx.needs, rest)
        by_g, by_x, by_weight = derivatives(g, x, weight, dims, ctx.eps, ctx.centred, along)
        statistics = (None,) * (1 + ctx.centred)
        return by_g, by_x, by_weight, *statistics


def spread(needs: Any, found: Any) -> list[Any]:
    """What was found for those that are needed, None for the others."""
    rest = iter(found)
    return [next(rest) if needed else None for needed in needs]


def derivatives(
    g: Tensor,
    x: Tensor,
    weight: Optional,
    dims: tuple[int, ...],
    eps: float,
    centred: bool,
    along: tuple[Optional, ...],
) -> tuple[Optional, Optional, Optional]:
    """Of the gradients of x, weight and bias, by g, x and weight, given a direction for each or None.

    Means over `dims` are written <·>. `weight`, and the directions of weight and bias, broadcast with x; what is
    returned for weight has the shape of x.
    """

    def mean(t: Tensor) -> Tensor:
        return t.mean(dims, keepdim=True)

    def centre(t: Tensor) -> Tensor:
        return t - mean(t) if centred else t

    c = centre(x)
    scale = (mean(c * c) + eps).rsqrt()
    normal = c * scale
    h = g if weight is None else g * weight
    by_g = by_x = by_weight = None
    along_x, along_weight, along_bias = map(wide, along)
    if along_x is not None:
        a0, h0 = centre(along_x), centre(h)
        p, q = mean(along_x * normal), mean(h * normal)  # <a n>, <h n>
        by_h = scale * (a0 - normal * p)
        by_g = by_h if weight is None else by_h * weight
        by_weight = None if weight is None else by_h * g
        by_x = scale * scale * (normal * (p * q * 3 - mean(a0 * h0)) - q * a0 - p * h0)
    if along_weight is not None:
        u = g * along_weight
        by_g = _plus(by_g, normal * along_weight)
        by_x = _plus(by_x, scale * (centre(u) - normal * mean(u * normal)))
    if along_bias is not None:
        by_g = _plus(by_g, along_bias.expand(g.shape))
    return by_g, by_x, by_weight


def wide(tensor: Any) -> Any:
    """A half tensor in float32; anything else as it is."""
    return tensor.to(np.float32) if tensor is not None and is_half(tensor.dtype) else tensor


def _plus(known: Optional, more: Tensor) -> Tensor:
    return more if known is None else known + more


def _rows(x: Any, dims: int) -> Any:
    split = x.ndim - dims
    return x if x.ndim == 2 and dims == 1 else x.reshape(prod(x.shape[:split]), prod(x.shape[split:]))


def _flat(vector: Any) -> Any:
    return vector if vector is None or vector.ndim == 1 else vector.reshape(-1)
