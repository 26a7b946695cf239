"""How an operation becomes public: one decorator gives it its method, its in-place form and its operator.

    @public(inplace=True, operator="mul")
    def mul(input, other):
        return Mul.apply(input, other)

makes `ad.mul`, `Tensor.mul`, `Tensor.mul_`, `*`, reflected `*` and `*=`. Where a whole operation is a formula
and its derivative, `unary` makes the Operation and the function from those two lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..dtypes import get_default_dtype, is_floating
from ..inplace import overwrite
from ..operation import Operation
from ..tensor import Tensor

F = TypeVar("F", bound=Callable[..., Any])

functions: dict[str, Callable[..., Any]] = {}  # every public operation by its name


def public(*, method: bool = True, inplace: bool = False, operator: str | None = None) -> Callable[[F], F]:
    """Register a function whose first argument is a tensor, and attach to Tensor the forms asked for."""

    def register(function: F) -> F:
        name = function.__name__
        functions[name] = function
        if method:
            setattr(Tensor, name, function)
        changed = _inplace_form(function) if inplace else None
        if changed is not None:
            setattr(Tensor, f"{name}_", changed)
        if operator is not None:
            setattr(Tensor, f"__{operator}__", function)
            setattr(Tensor, f"__r{operator}__", _reflected(function, operator))
            if changed is not None:
                setattr(Tensor, f"__i{operator}__", changed)
        return function

    return register


def _inplace_form(function: Callable[..., Any]) -> Callable[..., Tensor]:
    name = f"{function.__name__}_"

    def form(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return overwrite(self, function, args, kwargs)

    form.__name__ = form.__qualname__ = name
    form.__doc__ = f"`{function.__name__}`, with the result written into this tensor."
    return form


def _reflected(function: Callable[..., Any], operator: str) -> Callable[..., Tensor]:
    def form(self: Tensor, other: Any) -> Tensor:
        return function(other, self)

    form.__name__ = form.__qualname__ = f"__r{operator}__"
    return form


def unary(
    name: str,
    doc: str,
    compute: Callable[[Any], Any],
    *,
    from_input: Callable[[Tensor, Tensor], Tensor] | None = None,
    from_output: Callable[[Tensor, Tensor], Tensor] | None = None,
    inplace: bool = True,
    floats: bool = True,
) -> Callable[[Any], Tensor]:
    """An elementwise function of one argument.

    `compute` maps the array. The gradient is `from_input(grad, input)` or `from_output(grad, output)`,
    whichever is cheaper; with neither the function has no derivative. `floats`: integers become the default
    dtype first.
    """

    def forward(ctx: Operation, x: Any) -> Any:
        if floats and not is_floating(x.dtype):
            x = x.astype(get_default_dtype())
        if from_input is not None:
            ctx.save_inputs(0)
        elif from_output is not None:
            ctx.save_outputs(0)
        return compute(x)

    derivative = from_input or from_output

    def backward(ctx: Operation, grad: Tensor) -> Tensor:
        assert derivative is not None
        return derivative(grad, ctx.saved[0])

    operation: Any = type(
        name.title().replace("_", ""),
        (Operation,),
        {
            "__doc__": doc,
            "forward": forward,
            "backward": backward,
            "promotes": True,
            "differentiable": derivative is not None,
        },
    )

    def function(input: Any) -> Tensor:
        return operation.apply(input)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return public(inplace=inplace)(function)
