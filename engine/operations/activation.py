"""Activations: the kinds of `kernels.activation`, each with derivatives of any order, and gated linear units."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ... import kernels
from ...kernels.geometry.activation import slope_from_output
from ..dtypes import get_default_dtype, is_floating
from ..grad_mode import mode
from ..operation import Operation
from ..tensor import Tensor, wrap
from .arithmetic import where
from .creation import zeros_like
from .define import public
from .joining import cat

Optional = Tensor | None
_GELU_BETA = math.sqrt(2 / math.pi)
_GELU_KAPPA = 0.044715
_SELU = 1.0507009873554805 * 1.6732632423543772


class Activation(Operation):
    """f(x) by its kind; a and b are the kind's parameters.

    Backward keeps the output or the input, and the slope where forward computes it along: the slope's memory then
    becomes the gradient's.
    """

    promotes = True
    consumes = True
    a = b = 0.0

    @property
    def name(ctx) -> str:
        """Its kind's."""
        return ctx.kind.title().replace("_", "")

    def forward(ctx, x: Any) -> Any:
        if not is_floating(x.dtype):
            if ctx.kind == "relu":
                return np.maximum(x, x.dtype.type(0))
            x = x.astype(get_default_dtype())
        kind, a, b = ctx.kind, ctx.a, ctx.b
        if slope_from_output(kind, a):
            ctx.save_outputs(0)
            return kernels.activation(x, kind, a, b)
        ctx.save_inputs(0)
        if not ctx.needs_input_grad[0]:
            return kernels.activation(x, kind, a, b)
        y, slope = kernels.activation_with_slope(x, kind, a, b)
        if slope is not None:
            ctx.save_arrays(slope)
        return y

    def backward(ctx, grad: Tensor) -> Tensor:
        saved, *kept = ctx.saved
        slope = kept[0]._data if kept else None
        if not mode.grad and slope is None:  # nearly always: nothing to record
            return wrap(kernels.activation_input_grad(grad._data, saved._data, ctx.kind, ctx.a, ctx.b))
        if not mode.grad and ctx.is_last_pass:
            ctx.release()  # before the array changes: a pass after an error must not find it
            return wrap(kernels.activation_scale(slope, grad._data, in_place=True))
        return ActivationGrad.apply(grad, saved, kind=ctx.kind, a=ctx.a, b=ctx.b, slope=slope)


class ActivationGrad(Operation):
    """dy · f'(x), from the output or the input; `slope`: f'(x) where it is known already, else None."""

    def forward(ctx, dy: Any, saved: Any) -> Any:
        ctx.save_inputs(0, 1)
        if ctx.slope is not None:
            return kernels.activation_scale(ctx.slope, dy)
        return kernels.activation_input_grad(dy, saved, ctx.kind, ctx.a, ctx.b)

    def backward(ctx, direction: Tensor) -> tuple[Optional, Optional]:
        dy, saved = ctx.saved
        need_dy, need_saved = ctx.needs_input_grad
        settings = {"kind": ctx.kind, "a": ctx.a, "b": ctx.b, "slope": ctx.slope}
        by_dy = ActivationGrad.apply(direction, saved, **settings) if need_dy else None
        return by_dy, direction * dy * slope_change(ctx, saved) if need_saved else None


def slope_change(ctx: Any, saved: Tensor) -> Tensor:
    """The derivative of a kind's slope with respect to what it is computed from."""
    change = _SLOPE_CHANGES.get(ctx.kind)
    return zeros_like(saved) if change is None else change(saved, ctx.a, ctx.b)


def _below_zero(x: Tensor, scale: float) -> Tensor:
    """exp(scale · x) for x up to 0, else 0."""
    return where(x > 0, 0.0, (x.clamp(max=0) * scale).exp())


def _gelu(x: Tensor, a: float, b: float) -> Tensor:
    square = x * x
    return (square * -0.5).exp() * (2 - square) * (_GELU_BETA / 2)


def _gelu_tanh(x: Tensor, a: float, b: float) -> Tensor:
    square = x * x
    t = (x * (square * _GELU_KAPPA + 1) * _GELU_BETA).tanh()
    inner = (square * (3 * _GELU_KAPPA) + 1) * _GELU_BETA
    return (1 - t * t) * (inner + square * (3 * _GELU_KAPPA * _GELU_BETA) - x * t * inner * inner)


def _silu(x: Tensor, a: float, b: float) -> Tensor:
    s = sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - s * 2))


def _mish(x: Tensor, a: float, b: float) -> Tensor:
    s = sigmoid(x)
    t = Activation.apply(x, kind="softplus", a=1.0, b=20.0).tanh()
    return (1 - t * t) * s * (2 + x * (1 - s - t * s * 2))


def _softplus(x: Tensor, a: float, b: float) -> Tensor:
    s = sigmoid(x * a)
    return where(x * a > b, 0.0, s * (1 - s) * a)


def _tanhshrink(x: Tensor, a: float, b: float) -> Tensor:
    t = x.tanh()
    return t * (1 - t * t) * 2


# For the others it is zero.
_SLOPE_CHANGES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "elu": lambda x, a, b: _below_zero(x, 1) * a,
    "selu": lambda x, a, b: _below_zero(x, 1) * _SELU,
    "celu": lambda x, a, b: _below_zero(x, 1 / a) / a,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "mish": _mish,
    "softplus": _softplus,
    "hardswish": lambda x, a, b: where(x.abs() < 3, zeros_like(x) + 1 / 3, 0.0),
    "softsign": lambda x, a, b: x.sign() * (x.abs() + 1) ** -3 * -2,
    "tanhshrink": _tanhshrink,
    # Of the output:
    "sigmoid": lambda y, a, b: 1 - y * 2,
    "tanh": lambda y, a, b: y * -2,
    "logsigmoid": lambda y, a, b: -y.exp(),
}


@public(inplace=True)
def relu(input: Any) -> Tensor:
    """max(x, 0)."""
    return Activation.apply(input, kind="relu")


@public(inplace=True)
def sigmoid(input: Any) -> Tensor:
    """1 / (1 + exp(-x))."""
    return Activation.apply(input, kind="sigmoid")


@public(inplace=True)
def tanh(input: Any) -> Tensor:
    """The hyperbolic tangent."""
    return Activation.apply(input, kind="tanh")


class GLU(Operation):
    """The first half of x along `dim` times the sigmoid of the second."""

    def forward(ctx, x: Any) -> Any:
        ctx.save_inputs(0)
        return kernels.glu(x, ctx.dim)

    def backward(ctx, grad: Tensor) -> Tensor:
        return GLUGrad.apply(grad, ctx.saved[0], dim=ctx.dim)


class GLUGrad(Operation):
    """The gradient of x: dy s beside dy x₁ s (1 − s), s the sigmoid of x₂."""

    def forward(ctx, dy: Any, x: Any) -> Any:
        ctx.save_inputs(0, 1)
        return kernels.glu_input_grad(dy, x, ctx.dim)

    def backward(ctx, direction: Tensor) -> tuple[Optional, Optional]:
        dy, x = ctx.saved
        need_dy, need_x = ctx.needs_input_grad
        first, gate = x.chunk(2, ctx.dim)
        along_first, along_gate = direction.chunk(2, ctx.dim)
        s = sigmoid(gate)
        slope = s * (1 - s)
        by_dy = along_first * s + along_gate * first * slope if need_dy else None
        if not need_x:
            return by_dy, None
        by_gate = dy * slope * (along_first + along_gate * first * (1 - s * 2))
        return by_dy, cat([dy * along_gate * slope, by_gate], ctx.dim)
