"""Softmax and its logarithm, each in one node, and their gradients, likewise."""

from __future__ import annotations

from typing import Any

from ... import kernels
from ..dtypes import is_floating
from ..operation import Operation
from ..tensor import Tensor
from .define import public
from .dims import normalize_dim

Pair = tuple[Tensor | None, Tensor | None]


class Softmax(Operation):
    def forward(ctx, x: Any) -> Any:
        ctx.save_outputs(0)
        return kernels.softmax(x, ctx.dim)

    def backward(ctx, grad: Tensor) -> Tensor:
        return SoftmaxInputGrad.apply(ctx.saved[0], grad, dim=ctx.dim)


class SoftmaxInputGrad(Operation):
    """y (dy - sum(dy y))."""

    def forward(ctx, y: Any, dy: Any) -> Any:
        ctx.save_inputs(0, 1)
        return kernels.softmax_input_grad(y, dy, ctx.dim)

    def backward(ctx, grad: Tensor) -> Pair:
        y, dy = ctx.saved
        need_y, need_dy = ctx.needs_input_grad
        by_y = by_dy = None
        if need_y:
            total = (dy * y).sum(ctx.dim, keepdim=True)
            by_y = grad * (dy - total) - dy * (grad * y).sum(ctx.dim, keepdim=True)
        if need_dy:
            by_dy = SoftmaxInputGrad.apply(y, grad, dim=ctx.dim)
        return by_y, by_dy


class LogSoftmax(Operation):
    def forward(ctx, x: Any) -> Any:
        ctx.save_outputs(0)
        return kernels.log_softmax(x, ctx.dim)

    def backward(ctx, grad: Tensor) -> Tensor:
        return LogSoftmaxInputGrad.apply(ctx.saved[0], grad, dim=ctx.dim)


class LogSoftmaxInputGrad(Operation):
    """dy - exp(y) sum(dy)."""

    def forward(ctx, y: Any, dy: Any) -> Any:
        ctx.save_inputs(0, 1)
        return kernels.log_softmax_input_grad(y, dy, ctx.dim)

    def backward(ctx, grad: Tensor) -> Pair:
        y, dy = ctx.saved
        need_y, need_dy = ctx.needs_input_grad
        weighted = grad * y.exp()
        by_y = -weighted * dy.sum(ctx.dim, keepdim=True) if need_y else None
        return by_y, grad - weighted.sum(ctx.dim, keepdim=True) if need_dy else None


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
