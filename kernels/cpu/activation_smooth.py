"""Formulas with exponentials; see `activation_formulas` for what they are given."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .activation_work import Array, Work, two_slopes
from .error_function import normal_distribution

SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805
_GELU_BETA = math.sqrt(2 / math.pi)
_GELU_KAPPA = 0.044715
# tanh(log(1 + e^x)) is 1 from here on.
_MISH_FLAT = 20.0


def _elu_of(positive: float, negative: float, scale: float) -> Callable[[Array, Array, Work], None]:
    def value(x: Array, y: Array, work: Work) -> None:
        t = np.minimum(x, work.zero, out=work.array(0))
        if scale != 1:
            t *= scale
        np.expm1(t, out=t)
        if negative != 1:
            t *= negative
        np.maximum(x, work.zero, out=y)
        if positive != 1:
            y *= positive
        y += t

    return value


def elu(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    _elu_of(1, a, 1)(x, y, work)


def selu(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    _elu_of(SELU_SCALE, SELU_SCALE * SELU_ALPHA, 1)(x, y, work)


def celu(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    _elu_of(1, a, 1 / a)(x, y, work)


def elu_slope(x: Array, slope: Array, work: Work, a: float, b: float) -> None:
    np.minimum(x, work.zero, out=slope)
    np.exp(slope, out=slope)
    if a != 1:
        t = work.array(1)
        two_slopes(np.greater(x, 0, out=work.mask), a, t, work)
        slope *= t


def selu_slope(x: Array, slope: Array, work: Work, a: float, b: float) -> None:
    elu_slope(x, slope, work, SELU_ALPHA, b)
    slope *= SELU_SCALE


def celu_slope(x: Array, slope: Array, work: Work, a: float, b: float) -> None:
    np.minimum(x, work.zero, out=slope)
    slope *= 1 / a
    np.exp(slope, out=slope)


def sigmoid(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    _one_plus_exp_of_minus(x, y)
    np.divide(work.one, y, out=y)


def _one_plus_exp_of_minus(x: Array, out: Array) -> None:
    np.negative(x, out=out)
    np.exp(out, out=out)
    out += 1


def sigmoid_slope(y: Array, slope: Array, work: Work, a: float, b: float) -> None:
    np.subtract(work.one, y, out=slope)
    slope *= y


def tanh(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    np.tanh(x, out=y)


def tanh_slope(y: Array, slope: Array, work: Work, a: float, b: float) -> None:
    np.multiply(y, y, out=slope)
    np.subtract(work.one, slope, out=slope)


def tanhshrink(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    np.tanh(x, out=y)
    np.subtract(x, y, out=y)


def tanhshrink_slope(x: Array, slope: Array, work: Work, a: float, b: float) -> None:
    np.tanh(x, out=slope)
    slope *= slope


def _log_of_one_plus_exp(x: Array, out: Array) -> None:
    """log(1 + exp(-|x|)), at most log 2."""
    np.abs(x, out=out)
    np.negative(out, out=out)
    np.exp(out, out=out)
    np.log1p(out, out=out)


def logsigmoid(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    t = work.array(0)
    _log_of_one_plus_exp(x, t)
    np.minimum(x, work.zero, out=y)
    y -= t


def logsigmoid_slope(y: Array, slope: Array, work: Work, a: float, b: float) -> None:
    np.expm1(y, out=slope)
    np.negative(slope, out=slope)


def softplus(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    t = work.array(0)
    z = x if a == 1 else np.multiply(x, a, out=work.array(1))
    _log_of_one_plus_exp(z, t)
    np.maximum(z, work.zero, out=y)
    y += t
    if a != 1:
        y /= a
    above = np.greater(z, b, out=work.mask)
    if above.any():
        np.copyto(y, x, where=above)


def softplus_slope(x: Array, slope: Array, work: Work, a: float, b: float) -> None:
    z = x if a == 1 else np.multiply(x, a, out=work.array(1))
    sigmoid(z, slope, work, a, b)
    above = np.greater(z, b, out=work.mask)
    if above.any():
        np.copyto(slope, 1, where=above)


def softsign(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    np.abs(x, out=y)
    y += 1
    np.divide(x, y, out=y)


def softsign_slope(x: Array, slope: Array, work: Work, a: float, b: float) -> None:
    np.abs(x, out=slope)
    slope += 1
    slope *= slope
    np.divide(work.one, slope, out=slope)


def silu(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    _one_plus_exp_of_minus(x, y)
    np.divide(x, y, out=y)


def silu_both(x: Array, y: Array, slope: Array, work: Work, a: float, b: float) -> None:
    s = work.array(0)
    sigmoid(x, s, work, a, b)
    np.multiply(x, s, out=y)
    np.subtract(work.one, s, out=slope)
    slope *= y
    slope += s


def _half_of_one_plus(t: Array) -> None:
    t += 1
    t *= 0.5


def gelu(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    normal_distribution(x, y, work.array(0))
    y *= x


def gelu_both(x: Array, y: Array, slope: Array, work: Work, a: float, b: float) -> None:
    t = work.array(0)
    normal_distribution(x, slope, t)
    np.multiply(x, slope, out=y)
    t *= -0.5
    np.exp(t, out=t)
    t *= x
    t *= _GELU_BETA / 2
    slope += t


def gelu_tanh(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    np.multiply(x, x, out=y)
    y *= _GELU_BETA * _GELU_KAPPA
    y += _GELU_BETA
    y *= x
    np.tanh(y, out=y)
    _half_of_one_plus(y)
    y *= x


def gelu_tanh_both(x: Array, y: Array, slope: Array, work: Work, a: float, b: float) -> None:
    squares = np.multiply(x, x, out=work.array(0))
    t = np.multiply(squares, _GELU_BETA * _GELU_KAPPA, out=work.array(1))
    t += _GELU_BETA
    t *= x
    np.tanh(t, out=t)
    # With t = tanh(u): y = x (1 + t) / 2, of slope (1 + t) / 2 + x (1 - t²) u' / 2.
    np.multiply(t, t, out=slope)
    np.subtract(work.one, slope, out=slope)
    slope *= x
    squares *= 1.5 * _GELU_BETA * _GELU_KAPPA
    squares += 0.5 * _GELU_BETA
    slope *= squares
    _half_of_one_plus(t)
    np.multiply(x, t, out=y)
    slope += t


def _mish_parts(x: Array, work: Work) -> tuple[Array, Array]:
    """e = exp(x) and n = e (e + 2): tanh(log(1 + e)) is n / (n + 2)."""
    e = np.clip(x, -np.inf, _MISH_FLAT, out=work.array(0))
    np.exp(e, out=e)
    n = np.add(e, 2, out=work.array(1))
    n *= e
    return e, n


def mish(x: Array, y: Array, work: Work, a: float, b: float) -> None:
    _, n = _mish_parts(x, work)
    np.add(n, 2, out=y)
    np.divide(n, y, out=y)
    y *= x


def mish_both(x: Array, y: Array, slope: Array, work: Work, a: float, b: float) -> None:
    e, n = _mish_parts(x, work)
    below = np.add(n, 2, out=work.array(2))
    np.divide(n, below, out=n)
    np.multiply(x, n, out=y)
    # n / (n + 2) + 4 x e (1 + e) / (n + 2)²
    np.add(e, 1, out=slope)
    slope *= e
    slope /= below
    slope /= below
    slope *= x
    slope *= 4
    slope += n


def from_both(
    both: Callable[[Array, Array, Array, Work, float, float], None],
) -> Callable[[Array, Array, Work, float, float], None]:
    """The slope alone."""

    def slope(x: Array, out: Array, work: Work, a: float, b: float) -> None:
        both(x, work.array(3), out, work, a, b)

    return slope
