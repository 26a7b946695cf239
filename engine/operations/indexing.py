"""Elements by index: views for integers and slices, copies for arrays, and assignment to both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import inplace
from ..backend import array_module, constant, device_of, transfer
from ..grad_mode import mode
from ..operation import Operation
from ..tensor import Tensor, as_array, wrap
from .arithmetic import add
from .define import public
from .index import parse
from .positions import sums_at, winners


class Select(Operation):
    """A view of the elements at integers, slices, None and Ellipsis."""

    is_view = True

    def forward(ctx, x: Any) -> Any:
        ctx.shape = x.shape
        return x[ctx.index]

    def backward(ctx, grad: Tensor) -> Tensor:
        return Place.apply(grad, index=ctx.index, shape=ctx.shape)


class Place(Operation):
    """Zeros that show the elements given at an index: the adjoint of Select."""

    def forward(ctx, x: Any) -> Any:
        result = array_module(x).zeros(ctx.shape, x.dtype)
        result[ctx.index] = x
        return result

    def backward(ctx, grad: Tensor) -> Tensor:
        return Select.apply(grad, index=ctx.index)


class Take(Operation):
    """A copy of the elements at index arrays."""

    def forward(ctx, x: Any) -> Any:
        ctx.shape = x.shape
        return x[ctx.arrays.key]

    def backward(ctx, grad: Tensor) -> Tensor:
        return Accumulate.apply(grad, arrays=ctx.arrays, shape=ctx.shape)


class Accumulate(Operation):
    """Zeros to which elements are added at index arrays, in a fixed order: the adjoint of Take."""

    def forward(ctx, x: Any) -> Any:
        arrays, shape = ctx.arrays, ctx.shape
        module = array_module(x)
        if arrays.unique:
            result = module.zeros(shape, x.dtype)
            result[arrays.key] = x
            return result
        dims = arrays.dims
        taken = [shape[d] for d in dims]
        rest = [size for d, size in enumerate(shape) if d not in dims]
        positions = arrays.positions(shape).ravel()
        width = () if not rest else (math.prod(rest),)
        sums = sums_at(positions, arrays.values_to_front(x).reshape(positions.size, *width), math.prod(taken))
        front = arrays.front_order()
        return sums.reshape(taken + rest).transpose([front.index(d) for d in range(len(shape))])

    def backward(ctx, grad: Tensor) -> Tensor:
        return Take.apply(grad, arrays=ctx.arrays)


class Put(Operation):
    """A copy with the elements at index arrays replaced; of equal positions the last wins."""

    def forward(ctx, x: Any, value: Any) -> Any:
        arrays = ctx.arrays
        module = array_module(x)
        result = x.copy()
        if arrays.unique:
            result[arrays.key] = value
            return result
        positions = arrays.positions(x.shape)
        chosen = winners(positions, math.prod(x.shape[d] for d in arrays.dims))
        won = chosen == module.arange(chosen.size).reshape(chosen.shape)
        behind = len(arrays.result_shape(x.shape)) - arrays.start - won.ndim
        ctx.save_arrays(won.reshape(*won.shape, *[1] * behind))
        # Equal positions are all given the winner's value, so that the order of writing does not matter.
        values = arrays.values_to_front(module.broadcast_to(value, arrays.result_shape(x.shape)))
        rows = values.reshape(chosen.size, *values.shape[chosen.ndim :])
        result.transpose(arrays.front_order())[tuple(arrays.indices[d] for d in arrays.dims)] = rows[chosen]
        return result

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        need_x, need_value = ctx.needs_input_grad
        by_x = by_value = None
        if need_x:
            by_x = Put.apply(grad, wrap(array_module(grad._data).zeros((), grad.dtype)), arrays=ctx.arrays)
        if need_value:
            by_value = Take.apply(grad, arrays=ctx.arrays)
            if not ctx.arrays.unique:
                by_value = by_value * ctx.saved[0].to(grad.dtype)
        return by_x, by_value


def getitem(input: Tensor, index: Any) -> Tensor:
    """`input[index]` as in PyTorch: integers and slices give a view, tensors and lists a copy."""
    if type(index) is int and input.ndim and -input.shape[0] <= index < input.shape[0]:
        return Select.apply(input, index=(index, Ellipsis))
    if type(index) is slice and input.ndim:
        return Select.apply(input, index=(index, Ellipsis))
    basic, arrays = parse(index, input._data)
    result = input if basic is None else Select.apply(input, index=basic)
    return result if arrays is None else Take.apply(result, arrays=arrays)


def setitem(input: Tensor, index: Any, value: Any) -> None:
    """`input[index] = value`: `value` is broadcast and brought to the dtype of `input`."""
    inplace.check_may_change(input, "setitem")
    if isinstance(value, Tensor):
        value = value.to(dtype=input.dtype, device=input.device)
    else:
        array = as_array(value, getattr(value, "dtype", None) or input.dtype)
        bring = constant if isinstance(value, bool | int | float) else transfer
        value = wrap(bring(array.astype(input.dtype, copy=False), device_of(input._data)))
    basic, arrays = parse(index, input._data)
    if arrays is None:
        target = Select.apply(input, index=basic)
        _check_value(target._data.shape, value)
        if target._data.size:
            target.copy_(_trimmed(value, target.ndim))
        return
    with_grad = mode.grad and (input.requires_grad or value.requires_grad)
    target = input if basic is None else Select.apply(input, index=basic)
    shape = arrays.result_shape(target.shape)
    _check_value(shape, value)
    value = _trimmed(value, len(shape))
    if with_grad:
        inplace.assign(target, Put.apply(target, value, arrays=arrays))
    else:
        target._data[arrays.key] = value._data
        target._versions[0] += 1


def _check_value(shape: tuple[int, ...], value: Tensor) -> None:
    given = value.shape[max(value.ndim - len(shape), 0) :]
    leading = value.shape[: max(value.ndim - len(shape), 0)]
    fits = all(a in (1, b) for a, b in zip(given[::-1], shape[::-1], strict=False))
    if not fits or any(size != 1 for size in leading):
        raise ValueError(f"setitem: a value of shape {value.shape} does not fit the indexed shape {shape}")


def _trimmed(value: Tensor, ndim: int) -> Tensor:
    """`value` without leading dims of size 1 beyond `ndim`."""
    return value.reshape(value.shape[value.ndim - ndim :]) if value.ndim > ndim else value


Tensor.__getitem__ = getitem  # type: ignore[method-assign]
Tensor.__setitem__ = setitem  # type: ignore[method-assign]


@public(inplace=True)
def index_put(input: Tensor, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Tensor:
    """`input` with `values` at `indices`, as in `input[indices] = values`; with `accumulate`, added there."""
    basic, arrays = parse(tuple(indices), input._data)
    if basic is not None or arrays is None:
        raise IndexError("index_put: expected integer or bool tensors as indices")
    value = values if isinstance(values, Tensor) else wrap(as_array(values, input.dtype))
    shape = arrays.result_shape(input.shape)
    _check_value(shape, value)
    if not accumulate:
        return Put.apply(input, _trimmed(value, len(shape)), arrays=arrays)
    return add(input, Accumulate.apply(_trimmed(value, len(shape)).expand(shape), arrays=arrays, shape=input.shape))
