"""Truth values, bits, and whether tensors agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..dtypes import is_floating
from ..operation import Operation
from ..tensor import Tensor
from .define import public
from .dims import Dims
from .reduction import sum


def _binary(
    name: str, doc: str, compute: Callable[[Any, Any], Any], operator: str | None = None
) -> Callable[[Any, Any], Tensor]:
    """A function of two tensors without derivative; with an operator it takes no floats."""

    def forward(ctx: Operation, a: Any, b: Any) -> Any:
        for value in (a, b):
            if operator is not None and (
                isinstance(value, float) or is_floating(getattr(value, "dtype", np.dtype(int)))
            ):
                raise TypeError(f"{name}: expected bools or integers, got {getattr(value, 'dtype', 'a float')}")
        return compute(a, b)

    members = {"__doc__": doc, "promotes": True, "differentiable": False, "forward": forward}
    operation: Any = type(name.title().replace("_", ""), (Operation,), members)

    def function(input: Any, other: Any) -> Tensor:
        return operation.apply(input, other)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return public(inplace=True, operator=operator)(function)


logical_and = _binary("logical_and", "Whether both elements are true (not 0).", np.logical_and)
logical_or = _binary("logical_or", "Whether either element is true (not 0).", np.logical_or)
logical_xor = _binary("logical_xor", "Whether just one element is true (not 0).", np.logical_xor)
bitwise_and = _binary("bitwise_and", "The bits that both have; of bools, and.", np.bitwise_and, "and")
bitwise_or = _binary("bitwise_or", "The bits that either has; of bools, or.", np.bitwise_or, "or")
bitwise_xor = _binary("bitwise_xor", "The bits that one of both has; of bools, exclusive or.", np.bitwise_xor, "xor")


class BitwiseNot(Operation):
    differentiable = False

    def forward(ctx, x: Any) -> Any:
        if is_floating(x.dtype):
            raise TypeError(f"bitwise_not: expected bools or integers, got {x.dtype}")
        return np.invert(x)


@public(inplace=True)
def bitwise_not(input: Tensor) -> Tensor:
    """Every bit turned; of bools, not."""
    return BitwiseNot.apply(input)


Tensor.__invert__ = bitwise_not  # type: ignore[method-assign]


class Isclose(Operation):
    promotes = True
    differentiable = False

    def forward(ctx, a: Any, b: Any) -> Any:
        if not is_floating(a.dtype):
            a, b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(invalid="ignore"):  # inf - inf
            near = np.abs(a - b) <= ctx.atol + ctx.rtol * np.abs(b)
        close = (a == b) | near & np.isfinite(b)
        return close | (np.isnan(a) & np.isnan(b)) if ctx.equal_nan else close


@public()
def isclose(input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Whether |input - other| <= atol + rtol * |other|, elementwise."""
    other = other if isinstance(other, Tensor) else Tensor(other)
    return Isclose.apply(input, other, rtol=rtol, atol=atol, equal_nan=equal_nan)


@public()
def allclose(input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether all elements are close, as `isclose` says; on a GPU this waits for its work."""
    return bool(isclose(input, other, rtol, atol, equal_nan).all())


@public()
def equal(input: Tensor, other: Tensor) -> bool:
    """Whether both have one shape and equal elements; on a GPU this waits for its work."""
    return input.shape == other.shape and bool((input == other).all())


@public()
def count_nonzero(input: Tensor, dim: Dims = None) -> Tensor:
    """How many elements are not 0, over `dim` or altogether (int64)."""
    return sum(input != 0, dim)
