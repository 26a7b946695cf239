"""Batch normalisation by the batch's statistics (Ioffe & Szegedy, 2015), with derivatives of any order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import array_module
from ..dtypes import is_half
from ..operation import Operation
from ..tensor import Tensor

Optional = Tensor | None


def _dims(ndim: int) -> tuple[int, ...]:
    """All dimensions but the channels."""
    return (0, *range(2, ndim))


def _column(vector: Any, ndim: int) -> Any:
    """One value per channel (C,) so that it broadcasts along dimension 1."""
    return vector.reshape(-1, *(1,) * (ndim - 2))


def _wide(array: Any) -> Any:
    return array.astype(np.float32) if is_half(array.dtype) else array


class BatchNorm(Operation):
    """(x - mean) / sqrt(var + eps) * weight + bias per channel (dimension 1); weight and bias (C,) or None.

    Returns also the mean and the biased variance (C,), as float32 for half types, which carry no gradient.
    """

    materializes_grads = False

    def forward(ctx, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        wide, dims = _wide(x), _dims(x.ndim)
        mean = wide.mean(axis=dims)
        y = wide - _column(mean, x.ndim)
        var = array_module(x).einsum(_SQUARES[x.ndim > 2], *[y.reshape(*x.shape[:2], -1) if x.ndim > 2 else y] * 2)
        var /= math.prod(x.shape) // x.shape[1]
        scale = 1 / np.sqrt(var + ctx.eps)
        ctx.save_inputs(0, 1)
        ctx.save_arrays(mean, scale)
        y *= _column(scale if weight is None else scale * weight, x.ndim)
        if bias is not None:
            y += _column(bias, x.ndim)
        return y.astype(x.dtype, copy=False), mean, var

    def backward(ctx, grad: Tensor, *_: Optional) -> tuple[Optional, Optional, Optional]:
        x, weight, mean, scale = ctx.saved
        return BatchNormGrad.apply(grad, x, weight, mean=mean._data, scale=scale._data, eps=ctx.eps)


_SQUARES = ("nc,nc->c", "ncl,ncl->c")


class BatchNormGrad(Operation):
    """The gradients of x, weight and bias from that of the result."""

    materializes_grads = False

    def forward(ctx, dy: Any, x: Any, weight: Any) -> tuple[Any, Any, Any]:
        ctx.save_inputs(0, 1, 2)
        ndim, count = x.ndim, math.prod(x.shape) // x.shape[1]
        g = _wide(dy)
        normal = _wide(x) - _column(ctx.mean, ndim)
        normal *= _column(ctx.scale, ndim)
        flat = [a.reshape(*x.shape[:2], -1) if ndim > 2 else a for a in (g, normal)]
        by_bias = g.sum(axis=_dims(ndim))
        by_weight = array_module(x).einsum(_SQUARES[ndim > 2], *flat)
        # weight · scale · (g − mean(g) − normal · mean(g · normal))
        normal *= _column(by_weight / -count, ndim)
        normal += g
        normal -= _column(by_bias / count, ndim)
        normal *= _column(ctx.scale if weight is None else ctx.scale * weight, ndim)
        small = x.dtype if weight is None else weight.dtype
        return normal.astype(x.dtype, copy=False), by_weight.astype(small), by_bias.astype(small)

    def backward(ctx, a: Optional, b: Optional, c: Optional) -> tuple[Optional, Optional, Optional]:
        """Given directions for the three gradients; means over a channel are written <·>."""
        g, x, weight = ctx.saved
        dims, ndim = _dims(x.ndim), x.ndim

        def mean(t: Tensor) -> Tensor:
            return t.mean(dims, keepdim=True)

        centred = x - mean(x)
        scale = (mean(centred * centred) + ctx.eps).rsqrt()
        normal = centred * scale
        factor = scale if weight is None else scale * _column(weight, ndim)
        count = math.prod(x.shape) // x.shape[1]
        g0 = g - mean(g)
        q = mean(g * normal)  # <g n>
        by_g = by_x = by_weight = None
        if a is not None:
            a0 = a - mean(a)
            p = mean(a * normal)  # <a n>
            by_g = factor * (a0 - normal * p)
            inner = mean(a0 * g0) - p * q
            by_x = factor * scale * (normal * (p * q * 2 - inner) - q * a0 - p * g0)
            if weight is not None:
                by_weight = (inner * scale * count).reshape(weight.shape)
        if b is not None:
            b = _column(b, ndim)
            by_g = _plus(by_g, normal * b)
            by_x = _plus(by_x, b * scale * (g0 - normal * q))
        if c is not None:
            by_g = _plus(by_g, _column(c, ndim).expand(g.shape))
        return by_g, by_x, by_weight


def _plus(known: Optional, more: Tensor) -> Tensor:
    return more if known is None else known + more
