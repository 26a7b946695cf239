"""Arithmetic with broadcasting, and comparison."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from ...kernels.cpu import results
from ..backend import array_module, is_array
from ..dtypes import get_default_dtype, is_floating
from ..operation import Operation
from ..tensor import Tensor
from .define import public


class Add(Operation):
    promotes = True

    def forward(ctx, a: Any, b: Any) -> Any:
        return results.add(a, b)

    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad


@public(inplace=True, operator="add")
def add(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """input + alpha * other, elementwise."""
    return Add.apply(input, other if alpha == 1 else mul(other, alpha))


class Sub(Operation):
    promotes = True

    def forward(ctx, a: Any, b: Any) -> Any:
        try:
            return a - b
        except TypeError:
            raise TypeError("sub: there is no difference of bools; use ^, or convert them with .int()") from None

    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        return grad, -grad if ctx.needs_input_grad[1] else None


@public(inplace=True, operator="sub")
def sub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """input - alpha * other, elementwise."""
    return Sub.apply(input, other if alpha == 1 else mul(other, alpha))


class Neg(Operation):
    promotes = True

    def forward(ctx, x: Any) -> Any:
        if x.dtype == bool:
            raise TypeError("neg: there is no negative of bools; use ~ or logical_not")
        return -x

    def backward(ctx, grad: Tensor) -> Tensor:
        return -grad


@public(inplace=True)
def neg(input: Any) -> Tensor:
    """-input, elementwise."""
    return Neg.apply(input)


Tensor.__neg__ = neg  # type: ignore[method-assign]


class Mul(Operation):
    promotes = True

    def forward(ctx, a: Any, b: Any) -> Any:
        need_a, need_b = ctx.needs_input_grad[:2]
        ctx.save_inputs(*((1, 0) if need_a and need_b else (1,) if need_a else (0,)))
        return a * b

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        saved = ctx.saved
        need_a, need_b = ctx.needs_input_grad
        return grad * saved[0] if need_a else None, grad * saved[-1] if need_b else None


@public(inplace=True, operator="mul")
def mul(input: Any, other: Any) -> Tensor:
    """input * other, elementwise."""
    return Mul.apply(input, other)


class Div(Operation):
    promotes = True

    def forward(ctx, a: Any, b: Any) -> Any:
        ctx.save_inputs(0, 1) if ctx.needs_input_grad[1] else ctx.save_inputs(1)
        if not (is_floating(a.dtype) if hasattr(a, "dtype") else is_floating(b.dtype)):
            a, b = (x.astype(get_default_dtype()) if hasattr(x, "dtype") else x for x in (a, b))
        return a / b

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        saved = ctx.saved
        by_a = grad / saved[-1]
        need_a, need_b = ctx.needs_input_grad
        return by_a if need_a else None, -by_a * (saved[0] / saved[-1]) if need_b else None


@public(inplace=True, operator="truediv")
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """input / other, elementwise; integers give floats. rounding_mode: None, "trunc" or "floor"."""
    if rounding_mode is None:
        return Div.apply(input, other)
    if rounding_mode == "floor":
        return floor_divide(input, other)
    if rounding_mode != "trunc":
        raise ValueError(f'div: rounding_mode must be None, "trunc" or "floor", got {rounding_mode!r}')
    return TruncDivide.apply(input, other)


def _dtype(a: Any, b: Any) -> np.dtype:
    """The dtype of two promoted operands, one of which may be a number."""
    return a.dtype if hasattr(a, "dtype") else b.dtype


def _whole(name: str, divide: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """`divide(a, b)`; in integers of NumPy, which have no infinity, a divisor of 0 is an error."""
    if is_floating(_dtype(a, b)):
        return divide(a, b)
    try:
        with np.errstate(divide="raise"):
            return divide(a, b)
    except FloatingPointError:
        raise ZeroDivisionError(f"{name}: an integer divided by 0") from None


class FloorDivide(Operation):
    promotes = True
    differentiable = False

    def forward(ctx, a: Any, b: Any) -> Any:
        return _whole("floor_divide", operator.floordiv, a, b)


class TruncDivide(Operation):
    promotes = True
    differentiable = False

    def forward(ctx, a: Any, b: Any) -> Any:
        if is_floating(_dtype(a, b)):
            return array_module(a if hasattr(a, "dtype") else b).trunc(a / b)
        quotient = _whole("div", operator.floordiv, a, b)
        return quotient + ((quotient < 0) & (quotient * b != a))


@public(inplace=True, operator="floordiv")
def floor_divide(input: Any, other: Any) -> Tensor:
    """The largest whole number not above input / other, elementwise."""
    return FloorDivide.apply(input, other)


class Remainder(Operation):
    promotes = True

    def forward(ctx, a: Any, b: Any) -> Any:
        ctx.save_inputs(0, 1)
        return _whole("remainder", operator.mod, a, b)

    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        a, b = ctx.saved
        return grad, -grad * floor_divide(a, b) if ctx.needs_input_grad[1] else None


@public(inplace=True, operator="mod")
def remainder(input: Any, other: Any) -> Tensor:
    """input - floor(input / other) * other, elementwise: has the sign of `other`."""
    return Remainder.apply(input, other)


class Pow(Operation):
    promotes = True

    def forward(ctx, a: Any, b: Any) -> Any:
        ctx.save_inputs(0, 1)
        if ctx.needs_input_grad[1]:
            ctx.save_outputs(0)
        if not hasattr(b, "dtype") and b < 0 and not is_floating(a.dtype):
            raise RuntimeError(f"pow: a tensor of dtype {a.dtype} cannot be raised to the negative power {b}")
        return a * a if not hasattr(b, "dtype") and b == 2 else a**b

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b, *power = ctx.saved
        need_a, need_b = ctx.needs_input_grad
        by_a = by_b = None
        if need_a and not isinstance(b, Tensor):  # a number: no infinite factor where it is 0
            by_a = grad * 0 if b == 0 else grad * (a if b == 2 else a ** (b - 1)) * b
        elif need_a:
            by_a = where(b == 0, 0.0, grad * b * a ** (b - 1))
        if need_b:  # 0 ** b with b >= 0 is flat in b
            base = a if isinstance(a, Tensor) else Tensor(np.asarray(a, grad.dtype))
            flat = (base == 0) & (b >= 0)
            by_b = grad * where(flat, 0.0, power[0] * where(flat, 1.0, base).log())
        return by_a, by_b


@public(inplace=True, operator="pow")
def pow(input: Any, exponent: Any) -> Tensor:
    """input to the power of exponent, elementwise."""
    return Pow.apply(input, exponent)


class _Extremum(Operation):
    """The larger or smaller of two; where they are equal each gets half of the gradient."""

    promotes = True
    pick: str

    def forward(ctx, a: Any, b: Any) -> Any:
        ctx.save_inputs(0, 1)
        return getattr(array_module(a if hasattr(a, "dtype") else b), ctx.pick)(a, b)

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved
        first = where(a == b, 0.5, ((a > b) if ctx.pick == "maximum" else (a < b)).to(grad.dtype))
        need_a, need_b = ctx.needs_input_grad
        return grad * first if need_a else None, grad * (1 - first) if need_b else None


class Maximum(_Extremum):
    pick = "maximum"


class Minimum(_Extremum):
    pick = "minimum"


@public()
def maximum(input: Any, other: Any) -> Tensor:
    """The larger of both, elementwise; NaN where either is NaN."""
    return Maximum.apply(input, other)


@public()
def minimum(input: Any, other: Any) -> Tensor:
    """The smaller of both, elementwise; NaN where either is NaN."""
    return Minimum.apply(input, other)


class Where(Operation):
    """A choice between elements. The condition is no input: it has no gradient."""

    promotes = True

    def forward(ctx, a: Any, b: Any) -> Any:
        ctx.save_arrays(ctx.condition)
        by_zero = not hasattr(b, "dtype") and b == 0
        if by_zero and isinstance(a, np.ndarray) and a.shape == ctx.condition.shape:
            return _kept_where(ctx.condition, a)
        return array_module(ctx.condition).where(ctx.condition, a, b)

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (condition,) = ctx.saved
        need_a, need_b = ctx.needs_input_grad
        by_a = where(condition, grad, 0.0) if need_a else None
        return by_a, where(condition, 0.0, grad) if need_b else None


def _kept_where(condition: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x where the condition holds, else 0: by bits, as NumPy's `where` takes a branch for each element."""
    bits = np.dtype(f"i{x.dtype.itemsize}")
    return np.asarray(x.view(bits) & -condition.astype(bits)).view(x.dtype)


@public(method=False)
def where(condition: Any, input: Any = None, other: Any = None) -> Any:
    """input where condition, else other, elementwise; of `condition` alone, the indices of what is true."""
    if input is None and other is None:
        return condition.nonzero(as_tuple=True)
    mask = condition if isinstance(condition, Tensor) else Tensor(condition)
    if mask.dtype != "bool":
        raise TypeError(f"where: the condition must be a bool tensor, got dtype {mask.dtype}")
    return Where.apply(input, other, condition=mask._data)


def _where_method(self: Tensor, condition: Any, other: Any) -> Tensor:
    return where(condition, self, other)


Tensor.where = _where_method  # type: ignore[attr-defined]  # the method's first argument is the choice, not the condition


def _comparison(name: str, symbol: str, doc: str, compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Tensor]:
    def forward(ctx: Operation, a: Any, b: Any) -> Any:
        return compute(a, b)

    members = {"promotes": True, "differentiable": False, "forward": forward, "__doc__": doc}
    operation: Any = type(name.title(), (Operation,), members)

    def function(input: Any, other: Any) -> Tensor:
        return operation.apply(input, other)

    def compare(self: Tensor, other: Any) -> Any:
        comparable = isinstance(other, Tensor | bool | int | float) or is_array(other)
        return operation.apply(self, other) if comparable else NotImplemented

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    setattr(Tensor, symbol, compare)
    return public()(function)


eq = _comparison("eq", "__eq__", "Whether input equals other, elementwise.", lambda a, b: a == b)
ne = _comparison("ne", "__ne__", "Whether input differs from other, elementwise.", lambda a, b: a != b)
lt = _comparison("lt", "__lt__", "Whether input is less than other, elementwise.", lambda a, b: a < b)
le = _comparison("le", "__le__", "Whether input is at most other, elementwise.", lambda a, b: a <= b)
gt = _comparison("gt", "__gt__", "Whether input is greater than other, elementwise.", lambda a, b: a > b)
ge = _comparison("ge", "__ge__", "Whether input is at least other, elementwise.", lambda a, b: a >= b)
