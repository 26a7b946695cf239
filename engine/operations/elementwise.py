"""Elementwise functions of one tensor: each a line of NumPy and, beside it, its derivative."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..operation import Operation
from ..tensor import Tensor
from .arithmetic import maximum, minimum, where
from .define import public, unary

# NumPy's functions called on a CuPy array run CuPy's (`__array_ufunc__`), so no line here asks for the device.

exp = unary("exp", "e to the power of each element.", np.exp, from_output=lambda grad, y: grad * y)
exp2 = unary("exp2", "2 to the power of each element.", np.exp2, from_output=lambda grad, y: grad * y * math.log(2))
expm1 = unary("expm1", "exp(x) - 1, exact for small x.", np.expm1, from_output=lambda grad, y: grad * (y + 1))
log = unary("log", "The natural logarithm.", np.log, from_input=lambda grad, x: grad / x)
log2 = unary("log2", "The logarithm to base 2.", np.log2, from_input=lambda grad, x: grad / (x * math.log(2)))
log10 = unary("log10", "The logarithm to base 10.", np.log10, from_input=lambda grad, x: grad / (x * math.log(10)))
log1p = unary("log1p", "log(1 + x), exact for small x.", np.log1p, from_input=lambda grad, x: grad / (x + 1))
sqrt = unary("sqrt", "The square root.", np.sqrt, from_output=lambda grad, y: grad / (2 * y))
rsqrt = unary(
    "rsqrt", "1 / sqrt(x).", lambda x: np.reciprocal(np.sqrt(x)), from_output=lambda grad, y: grad * y**3 * -0.5
)
square = unary("square", "x * x.", lambda x: x * x, from_input=lambda grad, x: grad * x * 2, floats=False)
reciprocal = unary("reciprocal", "1 / x.", np.reciprocal, from_output=lambda grad, y: -grad * y * y)
sin = unary("sin", "The sine of an angle in radians.", np.sin, from_input=lambda grad, x: grad * cos(x))
cos = unary("cos", "The cosine of an angle in radians.", np.cos, from_input=lambda grad, x: -grad * sin(x))
tan = unary("tan", "The tangent of an angle in radians.", np.tan, from_output=lambda grad, y: grad * (y * y + 1))
asin = unary("asin", "The arcsine.", np.arcsin, from_input=lambda grad, x: grad * (1 - x * x).rsqrt())
acos = unary("acos", "The arccosine.", np.arccos, from_input=lambda grad, x: -grad * (1 - x * x).rsqrt())
atan = unary("atan", "The arctangent.", np.arctan, from_input=lambda grad, x: grad / (x * x + 1))
sinh = unary("sinh", "The hyperbolic sine.", np.sinh, from_input=lambda grad, x: grad * cosh(x))
cosh = unary("cosh", "The hyperbolic cosine.", np.cosh, from_input=lambda grad, x: grad * sinh(x))
tanh = unary("tanh", "The hyperbolic tangent.", np.tanh, from_output=lambda grad, y: grad * (1 - y * y))
abs = unary("abs", "The absolute value.", np.abs, from_input=lambda grad, x: grad * sign(x), floats=False)
sign = unary("sign", "-1, 0 or 1.", np.sign, from_input=lambda grad, x: grad * 0, floats=False)
floor = unary("floor", "The largest whole number not above x.", np.floor, from_input=lambda grad, x: grad * 0, floats=False)
ceil = unary("ceil", "The smallest whole number not below x.", np.ceil, from_input=lambda grad, x: grad * 0, floats=False)
trunc = unary("trunc", "x without its fraction.", np.trunc, from_input=lambda grad, x: grad * 0, floats=False)
isnan = unary("isnan", "Whether each element is NaN.", np.isnan, inplace=False)
isinf = unary("isinf", "Whether each element is infinite.", np.isinf, inplace=False)
isfinite = unary("isfinite", "Whether each element is neither NaN nor infinite.", np.isfinite, inplace=False)
logical_not = unary("logical_not", "Whether each element is 0 or False.", np.logical_not, inplace=False, floats=False)


def _sigmoid(x: Any) -> Any:
    small = np.exp(-np.abs(x))  # at most 1, so nothing overflows
    return np.where(x >= 0, 1, small).astype(x.dtype) / (1 + small)


sigmoid = unary("sigmoid", "1 / (1 + exp(-x)).", _sigmoid, from_output=lambda grad, y: grad * y * (1 - y))
relu = unary(
    "relu", "max(x, 0).", lambda x: np.maximum(x, x.dtype.type(0)), from_output=lambda grad, y: where(y > 0, grad, 0.0),
    floats=False,
)


class Clamp(Operation):
    promotes = True

    def forward(ctx, x: Any) -> Any:
        ctx.save_inputs(0)
        return np.clip(x, ctx.low, ctx.high)

    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved
        outside = x != x  # NaN passes its gradient on, as in PyTorch
        if ctx.low is not None:
            outside = outside | (x < ctx.low)
        if ctx.high is not None:
            outside = outside | (x > ctx.high)
        return where(outside, 0.0, grad)


@public(inplace=True)
def clamp(input: Any, min: Any = None, max: Any = None) -> Tensor:
    """Each element limited to [min, max], numbers or tensors; either limit may be None."""
    if min is None and max is None:
        raise ValueError("clamp: expected min, max or both, got neither")
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        result = input if min is None else maximum(input, min)
        return result if max is None else minimum(result, max)
    return Clamp.apply(input, low=min, high=max)
