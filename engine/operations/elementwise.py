"""Elementwise functions of one tensor: each a line of NumPy and, beside it, its derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import is_array
from ..dtypes import get_default_dtype, is_floating, result_type
from ..operation import Operation
from ..tensor import Tensor
from .activation import sigmoid
from .arithmetic import where
from .define import public, unary

# NumPy's functions called on a CuPy array run CuPy's (`__array_ufunc__`): no line here asks for the device.

exp = unary("exp", "e to the power of each element.", np.exp, from_output=lambda grad, y: grad * y)
exp2 = unary("exp2", "2 to the power of each element.", np.exp2, from_output=lambda grad, y: grad * y * math.log(2))
expm1 = unary("expm1", "exp(x) - 1, exact for small x.", np.expm1, from_output=lambda grad, y: grad * (y + 1))
log = unary("log", "The natural logarithm.", np.log, from_input=lambda grad, x: grad / x)
log2 = unary("log2", "The logarithm to base 2.", np.log2, from_input=lambda grad, x: grad / (x * math.log(2)))
log10 = unary("log10", "The logarithm to base 10.", np.log10, from_input=lambda grad, x: grad / (x * math.log(10)))
log1p = unary("log1p", "log(1 + x), exact for small x.", np.log1p, from_input=lambda grad, x: grad / (x + 1))
sqrt = unary("sqrt", "The square root.", np.sqrt, from_output=lambda grad, y: grad / (2 * y))
rsqrt = unary(
    "rsqrt",
    "1 / sqrt(x).",
    lambda x: np.reciprocal(np.sqrt(x)),
    from_output=lambda grad, y: grad * y**3 * -0.5,
)
square = unary("square", "x * x.", lambda x: x * x, from_input=lambda grad, x: grad * x * 2, floats=False)
reciprocal = unary("reciprocal", "1 / x.", np.reciprocal, from_output=lambda grad, y: -grad * y * y)
sin = unary("sin", "The sine of an angle in radians.", np.sin, from_input=lambda grad, x: grad * x.cos())
cos = unary("cos", "The cosine of an angle in radians.", np.cos, from_input=lambda grad, x: -grad * x.sin())
tan = unary("tan", "The tangent of an angle in radians.", np.tan, from_output=lambda grad, y: grad * (y * y + 1))
asin = unary("asin", "The arcsine.", np.arcsin, from_input=lambda grad, x: grad * (1 - x * x).rsqrt())
acos = unary("acos", "The arccosine.", np.arccos, from_input=lambda grad, x: -grad * (1 - x * x).rsqrt())
atan = unary("atan", "The arctangent.", np.arctan, from_input=lambda grad, x: grad / (x * x + 1))
sinh = unary("sinh", "The hyperbolic sine.", np.sinh, from_input=lambda grad, x: grad * x.cosh())
cosh = unary("cosh", "The hyperbolic cosine.", np.cosh, from_input=lambda grad, x: grad * x.sinh())
asinh = unary(
    "asinh", "The inverse hyperbolic sine.", np.arcsinh, from_input=lambda grad, x: grad * (x * x + 1).rsqrt()
)
acosh = unary(
    "acosh",
    "The inverse hyperbolic cosine.",
    np.arccosh,
    from_input=lambda grad, x: grad * (x * x - 1).rsqrt(),
)
atanh = unary("atanh", "The inverse hyperbolic tangent.", np.arctanh, from_input=lambda grad, x: grad / (1 - x * x))
abs = unary("abs", "The absolute value.", np.abs, from_input=lambda grad, x: grad * x.sign(), floats=False)
Tensor.__abs__ = abs  # type: ignore[attr-defined]
sign = unary("sign", "-1, 0 or 1.", np.sign, from_input=lambda grad, x: grad * 0, floats=False)
floor = unary(
    "floor",
    "The largest whole number not above x.",
    np.floor,
    from_input=lambda grad, x: grad * 0,
    floats=False,
)
ceil = unary(
    "ceil",
    "The smallest whole number not below x.",
    np.ceil,
    from_input=lambda grad, x: grad * 0,
    floats=False,
)
trunc = unary("trunc", "x without its fraction.", np.trunc, from_input=lambda grad, x: grad * 0, floats=False)
isnan = unary("isnan", "Whether each element is NaN.", np.isnan, inplace=False)
isinf = unary("isinf", "Whether each element is infinite.", np.isinf, inplace=False)
isfinite = unary("isfinite", "Whether each element is neither NaN nor infinite.", np.isfinite, inplace=False)
logical_not = unary("logical_not", "Whether each element is 0 or False.", np.logical_not, inplace=False, floats=False)


class Clamp(Operation):
    def forward(ctx, x: Any) -> Any:
        ctx.save_inputs(0)
        dtype = result_type(x, *(limit for limit in (ctx.low, ctx.high) if limit is not None))
        return np.clip(x.astype(dtype, copy=False), ctx.low, ctx.high).astype(dtype, copy=False)

    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved
        low, high = ctx.low, ctx.high
        if low is None or high is None:
            return where(x <= high if low is None else x >= low, grad, 0.0)
        return where((x >= low) & (x <= high), grad, 0.0)


@public(inplace=True)
def clamp(input: Any, min: Any = None, max: Any = None) -> Tensor:
    """Each element limited to [min, max], numbers or tensors; either limit may be None."""
    if min is None and max is None:
        raise ValueError("clamp: expected min, max or both, got neither")
    for limit in (min, max):
        if not (limit is None or isinstance(limit, Tensor | int | float) or is_array(limit)):
            raise TypeError(f"clamp: expected numbers or tensors as limits, got {type(limit).__name__}")
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        result = input if min is None else where(input < min, min, input)
        return result if max is None else where(result > max, max, result)
    return Clamp.apply(input, low=min, high=max)


clip = clamp
Tensor.clip, Tensor.clip_ = clamp, Tensor.clamp_  # type: ignore[attr-defined]


class Round(Operation):
    def forward(ctx, x: Any) -> Any:
        return np.round(x, ctx.decimals) if x.dtype.kind == "f" or ctx.decimals else np.rint(x).astype(x.dtype)

    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * 0


@public(inplace=True)
def round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """The nearest number of so many decimals; the even one of two that are equally near."""
    return Round.apply(input, decimals=decimals)


class _OfTwoFloats(Operation):
    """A function of two tensors; integers become the default dtype first."""

    promotes = True
    compute: Callable[[Any, Any], Any]

    def forward(ctx, a: Any, b: Any) -> Any:
        ctx.save_inputs(0, 1)
        if not is_floating(a.dtype if hasattr(a, "dtype") else b.dtype):
            a, b = (x.astype(get_default_dtype()) if hasattr(x, "dtype") else x for x in (a, b))
        return type(ctx).compute(a, b)


class Atan2(_OfTwoFloats):
    compute = np.arctan2

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved
        scaled = grad / (a * a + b * b)
        need_a, need_b = ctx.needs_input_grad
        return scaled * b if need_a else None, -scaled * a if need_b else None


@public(inplace=True)
def atan2(input: Any, other: Any) -> Tensor:
    """The angle in radians of the point (other, input), in [-pi, pi]."""
    return Atan2.apply(input, other)


class Hypot(_OfTwoFloats):
    compute = np.hypot

    def forward(ctx, a: Any, b: Any) -> Any:
        ctx.save_outputs(0)
        return super().forward(a, b)

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        y, a, b = ctx.saved
        scaled = grad / y
        need_a, need_b = ctx.needs_input_grad
        return scaled * a if need_a else None, scaled * b if need_b else None


@public(inplace=True)
def hypot(input: Any, other: Any) -> Tensor:
    """sqrt(input^2 + other^2), without overflow on the way."""
    return Hypot.apply(input, other)


class Logaddexp(_OfTwoFloats):
    compute = np.logaddexp

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved
        need_a, need_b = ctx.needs_input_grad
        return grad * sigmoid(a - b) if need_a else None, grad * sigmoid(b - a) if need_b else None


@public()
def logaddexp(input: Any, other: Any) -> Tensor:
    """log(exp(input) + exp(other)), without overflow on the way."""
    return Logaddexp.apply(input, other)


@public(inplace=True)
def lerp(input: Tensor, end: Any, weight: Any) -> Tensor:
    """input + weight * (end - input)."""
    return input + (end - input) * weight


@public(inplace=True)
def addcmul(input: Tensor, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    """input + value * tensor1 * tensor2."""
    product = tensor1 * tensor2
    return input + (product if value == 1 else product * value)


@public(inplace=True)
def addcdiv(input: Tensor, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    """input + value * tensor1 / tensor2."""
    quotient = tensor1 / tensor2
    return input + (quotient if value == 1 else quotient * value)
