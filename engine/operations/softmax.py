"""Softmax and its logarithm, each in one node."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import is_floating, is_half
from ..operation import Operation
from ..tensor import Tensor
from .define import public
from .dims import normalize_dim


def _shifted(ctx: Operation, x: Any) -> Any:
    """`x` minus its largest element along the dim, so that exp cannot overflow; halves in float32."""
    wide = x.astype(np.float32) if is_half(x.dtype) else x
    return wide - wide.max(axis=ctx.dim, keepdims=True)


class Softmax(Operation):
    def forward(ctx, x: Any) -> Any:
        ctx.save_outputs(0)
        if not x.size:
            return x.copy()
        result = _shifted(ctx, x)
        np.exp(result, out=result)
        result /= result.sum(axis=ctx.dim, keepdims=True)
        return result.astype(x.dtype, copy=False)

    def backward(ctx, grad: Tensor) -> Tensor:
        (y,) = ctx.saved
        weighted = grad * y
        return weighted - y * weighted.sum(ctx.dim, keepdim=True)


class LogSoftmax(Operation):
    def forward(ctx, x: Any) -> Any:
        ctx.save_outputs(0)
        if not x.size:
            return x.copy()
        result = _shifted(ctx, x)
        result -= np.log(np.exp(result).sum(axis=ctx.dim, keepdims=True))
        return result.astype(x.dtype, copy=False)

    def backward(ctx, grad: Tensor) -> Tensor:
        (y,) = ctx.saved
        return grad - y.exp() * grad.sum(ctx.dim, keepdim=True)


def _along(operation: type[Operation], name: str, input: Tensor, dim: int, dtype: Any) -> Tensor:
    if dtype is not None:
        input = input.to(dtype=dtype)
    if not is_floating(input.dtype):
        raise TypeError(f"{name}: expected a floating tensor, got dtype {input.dtype}; give dtype to convert it")
    dim = normalize_dim(name, dim, input.ndim)
    if not input.ndim:
        return operation.apply(input.reshape(1), dim=0).reshape(())
    return operation.apply(input, dim=dim)


@public()
def softmax(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """exp(x) / sum(exp(x)) along `dim`, without overflow; halves are computed in float32."""
    return _along(Softmax, "softmax", input, dim, dtype)


@public()
def log_softmax(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """x - log(sum(exp(x))) along `dim`, without overflow; halves are computed in float32."""
    return _along(LogSoftmax, "log_softmax", input, dim, dtype)
