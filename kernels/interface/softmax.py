"""Softmax and its logarithm."""

from __future__ import annotations

from .. import geometry
from .checks import Array, check_arrays, side


def softmax(x: Array, dim: int) -> Array:
    """exp(x) / sum(exp(x)) along `dim`, without overflow."""
    check_arrays("softmax", x=x)
    geometry.softmax("softmax", x.shape, dim)
    return side(x).softmax(x, dim)


def softmax_input_grad(y: Array, dy: Array, dim: int) -> Array:
    """The gradient of `softmax` with respect to x, from its result: y (dy - sum(dy y))."""
    check_arrays("softmax_input_grad", y=y, dy=dy)
    geometry.softmax("softmax_input_grad", y.shape, dim, dy.shape)
    return side(y).softmax_input_grad(y, dy, dim)


def log_softmax(x: Array, dim: int) -> Array:
    """x - log(sum(exp(x))) along `dim`, without overflow."""
    check_arrays("log_softmax", x=x)
    geometry.softmax("log_softmax", x.shape, dim)
    return side(x).log_softmax(x, dim)


def log_softmax_input_grad(y: Array, dy: Array, dim: int) -> Array:
    """The gradient of `log_softmax` with respect to x, from its result: dy - exp(y) sum(dy)."""
    check_arrays("log_softmax_input_grad", y=y, dy=dy)
    geometry.softmax("log_softmax_input_grad", y.shape, dim, dy.shape)
    return side(y).log_softmax_input_grad(y, dy, dim)
