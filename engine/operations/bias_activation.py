"""Activations with one number per channel: a bias before, or the slope of PReLU; each in one node."""

from __future__ import annotations

from typing import Any

from ... import kernels
from ...kernels.geometry.activation import slope_from_output
from ..grad_mode import mode
from ..operation import Operation
from ..tensor import Tensor, wrap
from .activation import ActivationGrad, slope_change
from .arithmetic import where

Optional = Tensor | None


def _along(vector: Tensor, dim: int, ndim: int) -> Tensor:
    """One number for each position along `dim`, so that it broadcasts."""
    return vector.reshape(-1, *(1,) * (ndim - 1 - dim))


def _total(values: Tensor, dim: int) -> Tensor:
    """The sum over all dimensions but `dim`."""
    return values.sum(tuple(i for i in range(values.ndim) if i != dim)) if values.ndim > 1 else values


class BiasActivation(Operation):
    """f(x + bias), the bias (C,) along `dim`. What is kept is as in `Activation`."""

    consumes = True

    def forward(ctx, x: Any, bias: Any) -> Any:
        args = (x, bias, ctx.kind, ctx.dim, ctx.a, ctx.b)
        if slope_from_output(ctx.kind, ctx.a):
            ctx.save_outputs(0)
            return kernels.bias_activation(*args)
        ctx.save_inputs(0, 1)
        if True not in ctx.needs_input_grad[:2]:
            return kernels.bias_activation(*args)
        y, slope = kernels.bias_activation_with_slope(*args)
        if slope is not None:
            ctx.save_arrays(slope)
        return y

    def backward(ctx, grad: Tensor) -> tuple[Optional, Optional]:
        saved, *more = ctx.saved
        bias, slope = more[0] if more else None, more[1]._data if len(more) > 1 else None
        with_bias_grad = ctx.needs_input_grad[1]
        if slope is not None and ctx.is_last_pass and not mode.grad:
            ctx.release()  # before the array changes: a pass after an error must not find it
            dx, db = kernels.bias_activation_scale(slope, grad._data, ctx.dim, with_bias_grad, in_place=True)
            return wrap(dx), None if db is None else wrap(db)
        settings = {"kind": ctx.kind, "a": ctx.a, "b": ctx.b, "dim": ctx.dim, "with_bias_grad": with_bias_grad}
        by_x, *by_bias = BiasActivationGrad.apply(grad, saved, bias, slope=slope, **settings)
        return by_x, by_bias[0] if by_bias else None


class BiasActivationGrad(Operation):
    """dy · f'(x + bias), and its sums along the channels `with_bias_grad`; `saved` is the output where bias is None.

    `slope`: f'(x + bias) where it is known already, else None.
    """

    materializes_grads = False

    def forward(ctx, dy: Any, saved: Any, bias: Any) -> Any:
        ctx.save_inputs(0, 1)
        if bias is not None:
            ctx.save_inputs(2)
        if ctx.slope is not None:
            grads = kernels.bias_activation_scale(ctx.slope, dy, ctx.dim, ctx.with_bias_grad)
        else:
            settings = (ctx.kind, ctx.dim, ctx.a, ctx.b, ctx.with_bias_grad)
            grads = kernels.bias_activation_grad(dy, saved, bias, *settings)
        return grads if ctx.with_bias_grad else grads[:1]

    def backward(ctx, by_x: Optional, by_bias: Optional = None) -> tuple[Optional, Optional, Optional]:
        dy, saved, *bias = ctx.saved
        need_dy, need_saved, need_bias = ctx.needs_input_grad
        ndim, settings = dy.ndim, {"kind": ctx.kind, "a": ctx.a, "b": ctx.b, "slope": ctx.slope}
        direction = by_x
        if by_bias is not None:
            column = _along(by_bias, ctx.dim, ndim)
            direction = column.expand(dy.shape) if by_x is None else by_x + column
        if direction is None:
            return None, None, None
        z = saved + _along(bias[0], ctx.dim, ndim) if bias else saved
        by_dy = ActivationGrad.apply(direction, z, **settings) if need_dy else None
        if not (need_saved or need_bias):
            return by_dy, None, None
        by_z = direction * dy * slope_change(ctx, z)
        return by_dy, by_z if need_saved else None, _total(by_z, ctx.dim) if need_bias else None


class PReLU(Operation):
    """x where positive, else weight · x; weight (1,), or (C,) along dimension 1."""

    def forward(ctx, x: Any, weight: Any) -> Any:
        ctx.save_inputs(0, 1)
        return kernels.prelu(x, weight)

    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        return PReLUGrad.apply(grad, *ctx.saved)


class PReLUGrad(Operation):
    """The gradients of x and weight."""

    materializes_grads = False

    def forward(ctx, dy: Any, x: Any, weight: Any) -> Any:
        ctx.save_inputs(0, 1, 2)
        return kernels.prelu_grad(dy, x, weight)

    def backward(ctx, by_x: Optional, by_weight: Optional) -> tuple[Optional, Optional, Optional]:
        dy, x, weight = ctx.saved
        ndim = x.ndim
        single = weight.shape == (1,)
        slopes = weight if single else _along(weight, 1, ndim)
        positive = x > 0
        by_dy = of_x = of_weight = None
        if by_x is not None:
            by_dy = where(positive, by_x, by_x * slopes)
            below = where(positive, 0.0, by_x * dy)
            of_weight = below.sum().reshape(1) if single else _total(below, 1)
        if by_weight is not None:
            column = where(positive, 0.0, by_weight if single else _along(by_weight, 1, ndim))
            by_dy = column * x if by_dy is None else by_dy + column * x
            of_x = column * dy
        return by_dy, of_x, of_weight
