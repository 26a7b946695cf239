"""Activations: elementwise functions of an array, alone, after a bias, or gated by another half of it.

`kind` is one of `geometry.activation.KINDS`, `a` and `b` are its parameters. A gradient is computed from `saved`: the
output where `geometry.activation.slope_from_output` says so, else the input.
"""

from __future__ import annotations

from ..geometry import activation as geometry
from .checks import Array, check_arrays, side


def activation(x: Array, kind: str, a: float = 0.0, b: float = 0.0) -> Array:
    """The activation of each element, of any shape."""
    check_arrays("activation", x=x)
    geometry.activation("activation", kind)
    return side(x).activation(x, kind, a, b)


def activation_with_slope(x: Array, kind: str, a: float = 0.0, b: float = 0.0) -> tuple[Array, Array | None]:
    """The activation, and its derivative f'(x) where that is cheapest computed along with it, else None."""
    check_arrays("activation_with_slope", x=x)
    geometry.activation("activation_with_slope", kind)
    return side(x).activation_with_slope(x, kind, a, b)


def activation_input_grad(dy: Array, saved: Array, kind: str, a: float = 0.0, b: float = 0.0) -> Array:
    """The gradient of `activation` with respect to x: dy times the slope."""
    check_arrays("activation_input_grad", dy=dy, saved=saved)
    geometry.activation_grad("activation_input_grad", kind, dy.shape, saved.shape)
    return side(dy).activation_input_grad(dy, saved, kind, a, b)


def activation_scale(slope: Array, dy: Array, in_place: bool = False) -> Array:
    """The same from the slope that `activation_with_slope` gave.

    `in_place` the result may be `slope` itself, changed: for a caller who alone has it.
    """
    check_arrays("activation_scale", slope=slope, dy=dy)
    geometry.same_shape("activation_scale", dy.shape, slope.shape)
    return side(dy).activation_scale(slope, dy, in_place)


def bias_activation(x: Array, bias: Array, kind: str, dim: int, a: float = 0.0, b: float = 0.0) -> Array:
    """The activation of x + bias, which has one number for each position along `dim`."""
    check_arrays("bias_activation", x=x, bias=bias)
    geometry.activation("bias_activation", kind)
    geometry.channels("bias_activation", "bias", x.shape, bias.shape, dim)
    return side(x).bias_activation(x, bias, kind, dim, a, b)


def bias_activation_with_slope(
    x: Array, bias: Array, kind: str, dim: int, a: float = 0.0, b: float = 0.0
) -> tuple[Array, Array | None]:
    """The same with f'(x + bias) where that is cheapest computed along with it, else None."""
    operation = "bias_activation_with_slope"
    check_arrays(operation, x=x, bias=bias)
    geometry.activation(operation, kind)
    geometry.channels(operation, "bias", x.shape, bias.shape, dim)
    return side(x).bias_activation_with_slope(x, bias, kind, dim, a, b)


def bias_activation_grad(
    dy: Array,
    saved: Array,
    bias: Array | None,
    kind: str,
    dim: int,
    a: float = 0.0,
    b: float = 0.0,
    with_bias_grad: bool = True,
) -> tuple[Array, Array | None]:
    """The gradients of `bias_activation` with respect to x and, `with_bias_grad`, to bias.

    `bias` is needed where `saved` is the input. The sums run in a fixed order, in float32 for halves.
    """
    operation = "bias_activation_grad"
    check_arrays(operation, dy=dy, saved=saved, bias=bias)
    geometry.activation_grad(operation, kind, dy.shape, saved.shape)
    if bias is not None:
        geometry.channels(operation, "bias", saved.shape, bias.shape, dim)
    elif not geometry.slope_from_output(kind, a):
        raise ValueError(f"{operation}: the slope of {kind} comes from the input: give the bias too")
    return side(dy).bias_activation_grad(dy, saved, bias, kind, dim, a, b, with_bias_grad)


def bias_activation_scale(
    slope: Array, dy: Array, dim: int, with_bias_grad: bool = True, in_place: bool = False
) -> tuple[Array, Array | None]:
    """The same from the slope that `bias_activation_with_slope` gave; `in_place` as in `activation_scale`."""
    check_arrays("bias_activation_scale", slope=slope, dy=dy)
    geometry.same_shape("bias_activation_scale", dy.shape, slope.shape)
    return side(dy).bias_activation_scale(slope, dy, dim, with_bias_grad, in_place)


def prelu(x: Array, weight: Array) -> Array:
    """x where positive, else weight * x; weight (1,), or (C,) along dimension 1 (He et al., 2015)."""
    check_arrays("prelu", x=x, weight=weight)
    geometry.prelu("prelu", x.shape, weight.shape)
    return side(x).prelu(x, weight)


def prelu_grad(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """The gradients of `prelu` with respect to x and weight."""
    check_arrays("prelu_grad", dy=dy, x=x, weight=weight)
    geometry.same_shape("prelu_grad", dy.shape, x.shape)
    geometry.prelu("prelu_grad", x.shape, weight.shape)
    return side(dy).prelu_grad(dy, x, weight)


def glu(x: Array, dim: int) -> Array:
    """The first half of x along `dim` times the sigmoid of the second (Dauphin et al., 2017)."""
    check_arrays("glu", x=x)
    geometry.glu("glu", x.shape, dim)
    return side(x).glu(x, dim)


def glu_input_grad(dy: Array, x: Array, dim: int) -> Array:
    """The gradient of `glu` with respect to x."""
    check_arrays("glu_input_grad", dy=dy, x=x)
    geometry.glu_grad("glu_input_grad", dy.shape, x.shape, dim)
    return side(dy).glu_input_grad(dy, x, dim)
