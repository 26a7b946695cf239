"""The formulas of the activations on NumPy arrays: each a few loops over a piece that stays in the cache.

x, y and the rest are one-dimensional, contiguous, of float32 or float64, and never the same memory. A loop over two
arrays runs several times faster than one over an array and a number where NumPy has no vector code for numbers
(minimum, maximum) or divides: hence the arrays of zeros and ones in `Work`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import activation_smooth as smooth
from .activation_work import Array, Work, bits_of, constant, keep, two_slopes

Formula = Callable[[Array, Array, Work, float, float], None]  # (x, y) or (saved, slope), then work, a, b
Gate = Callable[[Array, Work, float, float], Array]  # where the gradient passes


class Formulas(NamedTuple):
    """What one kind computes. The gradient is dy * slope, or dy where `gate` is true and zero elsewhere."""

    value: Formula
    slope: Formula | None = None
    gate: Gate | None = None
    factor: float = 1.0  # of a gated gradient
    both: Callable[[Array, Array, Array, Work, float, float], None] | None = None  # (x, y, slope, ...)
    quiet: bool = False  # no number makes it warn


def _relu(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    np.maximum(x, work.zero, out=y)


def _relu_grad(dy: Array, y: Array, dx: Array) -> None:
    """dy where y, no number of which is below +0, is not 0."""
    bits = bits_of(y.dtype)
    passes = dx.view(bits)
    np.minimum(y.view(bits), constant(1, passes.size, bits), out=passes)
    passes *= dy.view(bits)


def _leaky_relu(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    if 0 < a <= 1:
        np.multiply(x, a, out=y)
        np.maximum(y, x, out=y)
        return
    t = np.minimum(x, work.zero, out=work.array(0))
    t *= a
    np.maximum(x, work.zero, out=y)
    y += t


def _leaky_relu_slope(s: Array, slope: Array, work: Work, a: float, b: float) -> None:
    two_slopes(np.greater(s, 0, out=work.mask), a, slope, work)


def _hardtanh(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    np.clip(x, a, b, out=y)


def _hardtanh_gate(y: Array, work: Work, a: float, b: float) -> Array:
    mask = np.less_equal(y, a, out=work.mask)
    mask |= np.greater_equal(y, b)
    return np.logical_not(mask, out=mask)


def _hardsigmoid(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    np.add(x, 3, out=y)
    np.clip(y, 0, 6, out=y)
    y *= 1 / 6


def _hardsigmoid_gate(x: Array, work: Work, a: float, b: float) -> Array:
    return np.less(np.abs(x, out=work.array(0)), 3, out=work.mask)


def _hardswish(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    _hardsigmoid(x, y, work, a, b)
    y *= x


def _hardswish_slope(x: Array, slope: Array, work: Work, a: float, b: float) -> None:
    # x / 3 + 1/2 between -3 and 3; from there on t = trunc(x / 3) is -1 or 1, and the slope t / 2 + 1/2.
    np.clip(x, -3, 3, out=slope)
    slope *= 1 / 3
    t = np.trunc(slope, out=work.array(0))
    t *= 0.5
    slope -= t
    slope += 0.5


def _softshrink(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    np.clip(x, -a, a, out=y)
    np.subtract(x, y, out=y)


def _shrink_gate(x: Array, work: Work, a: float, b: float) -> Array:
    mask = np.less_equal(np.abs(x, out=work.array(0)), a, out=work.mask)
    return np.logical_not(mask, out=mask)


def _hardshrink(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    keep(_shrink_gate(x, work, a, b), x, y)


def _threshold(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    mask = _threshold_gate(x, work, a, b)
    keep(mask, x, y)
    if b != 0 or math.copysign(1, b) < 0:
        t = work.array(0)
        t.fill(b)
        keep(np.logical_not(mask, out=mask), t, t)
        bits = bits_of(x.dtype)
        y.view(bits)[...] |= t.view(bits)


def _threshold_gate(x: Array, work: Work, a: float, b: float) -> Array:
    mask = np.less_equal(x, a, out=work.mask)
    return np.logical_not(mask, out=mask)


FORMULAS = {
    "relu": Formulas(_relu, quiet=True),  # _relu_grad
    "leaky_relu": Formulas(_leaky_relu, _leaky_relu_slope),
    "elu": Formulas(smooth.elu, smooth.elu_slope),
    "selu": Formulas(smooth.selu, smooth.selu_slope),
    "celu": Formulas(smooth.celu, smooth.celu_slope),
    "gelu": Formulas(smooth.gelu, smooth.from_both(smooth.gelu_both), both=smooth.gelu_both),
    "gelu_tanh": Formulas(smooth.gelu_tanh, smooth.from_both(smooth.gelu_tanh_both), both=smooth.gelu_tanh_both),
    "silu": Formulas(smooth.silu, smooth.from_both(smooth.silu_both), both=smooth.silu_both),
    "mish": Formulas(smooth.mish, smooth.from_both(smooth.mish_both), both=smooth.mish_both),
    "softplus": Formulas(smooth.softplus, smooth.softplus_slope),
    "hardtanh": Formulas(_hardtanh, gate=_hardtanh_gate),
    "hardsigmoid": Formulas(_hardsigmoid, gate=_hardsigmoid_gate, factor=1 / 6),
    "hardswish": Formulas(_hardswish, _hardswish_slope),
    "sigmoid": Formulas(smooth.sigmoid, smooth.sigmoid_slope),
    "tanh": Formulas(smooth.tanh, smooth.tanh_slope),
    "logsigmoid": Formulas(smooth.logsigmoid, smooth.logsigmoid_slope),
    "softsign": Formulas(smooth.softsign, smooth.softsign_slope),
    "softshrink": Formulas(_softshrink, gate=_shrink_gate),
    "hardshrink": Formulas(_hardshrink, gate=_shrink_gate),
    "tanhshrink": Formulas(smooth.tanhshrink, smooth.tanhshrink_slope),
    "threshold": Formulas(_threshold, gate=_threshold_gate),
}


def gradient(kind: str, dy: Array, saved: Array, dx: Array, work: Work, a: float, b: float) -> None:
    """dy times the slope at the saved output or input."""
    formulas = FORMULAS[kind]
    if kind == "relu":
        _relu_grad(dy, saved, dx)
    elif formulas.gate is not None:
        keep(formulas.gate(saved, work, a, b), dy, dx)
        if formulas.factor != 1:
            dx *= formulas.factor
    else:
        assert formulas.slope is not None
        formulas.slope(saved, dx, work, a, b)
        dx *= dy
