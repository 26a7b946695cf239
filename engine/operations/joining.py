"""Several tensors as one, and one tensor repeated or bordered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import array_module, device_of, transfer
from ..grad_mode import mode
from ..operation import Operation
from ..recorder import refuse
from ..tensor import Tensor, as_array
from .define import public
from .dims import normalize_dim
from .gathering import index_select
from .index import Arrays
from .indexing import Select, Take
from .shape import broadcast_tensors, expand, reshape, sizes_of

_MOST_AT_ONCE = 8  # for more arrays CuPy copies their addresses to the GPU, which no graph can do again


def _concatenated(arrays: Sequence[Any], dim: int) -> Any:
    module = array_module(arrays[0])
    while mode.recorder is not None and len(arrays) > _MOST_AT_ONCE:
        starts = range(0, len(arrays), _MOST_AT_ONCE)
        arrays = [module.concatenate(arrays[start : start + _MOST_AT_ONCE], axis=dim) for start in starts]
    return module.concatenate(arrays, axis=dim)


class Cat(Operation):
    promotes = True

    def forward(ctx, *arrays: Any) -> Any:
        ctx.sizes = [x.shape[ctx.dim] for x in arrays]
        return _concatenated(arrays, ctx.dim)

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = []
        end = 0
        for size, needed in zip(ctx.sizes, ctx.needs_input_grad, strict=True):
            end += size
            index = (*[slice(None)] * ctx.dim, slice(end - size, end), Ellipsis)
            grads.append(Select.apply(grad, index=index) if needed else None)
        return tuple(grads)


def _tensors(name: str, tensors: Any) -> list[Tensor]:
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        raise TypeError(f"{name}: expected a sequence of tensors, got {type(tensors).__name__}")
    if not tensors:
        raise ValueError(f"{name}: expected at least one tensor")
    return [tensor if isinstance(tensor, Tensor) else Tensor(tensor) for tensor in tensors]


@public(method=False)
def cat(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """The tensors one after another along `dim`; their other sizes must agree."""
    parts = _tensors("cat", tensors)
    if len(parts) > 1:
        parts = [part for part in parts if part.shape != (0,)] or parts[:1]  # PyTorch lets empty vectors pass anywhere
    first = parts[0]
    if not first.ndim:
        raise ValueError("cat: expected tensors of at least 1 dimension, got a 0-d tensor; use stack")
    dim = normalize_dim("cat", dim, first.ndim)
    rest = (*first.shape[:dim], *first.shape[dim + 1 :])
    for part in parts:
        if part.ndim != first.ndim or (*part.shape[:dim], *part.shape[dim + 1 :]) != rest:
            raise ValueError(f"cat: shapes {first.shape} and {part.shape} differ beside dim {dim}")
    return Cat.apply(*parts, dim=dim)


concatenate = concat = cat


class Stack(Operation):
    promotes = True

    def forward(ctx, *arrays: Any) -> Any:
        return _concatenated([np.expand_dims(x, ctx.dim) for x in arrays], ctx.dim)

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        before = [slice(None)] * ctx.dim
        return tuple(
            [
                Select.apply(grad, index=(*before, i, Ellipsis)) if needed else None
                for i, needed in enumerate(ctx.needs_input_grad)
            ]
        )


@public(method=False)
def stack(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Tensors of one shape side by side along a new dimension `dim`."""
    parts = _tensors("stack", tensors)
    for part in parts:
        if part.shape != parts[0].shape:
            raise ValueError(f"stack: expected tensors of one shape, got {parts[0].shape} and {part.shape}")
    return Stack.apply(*parts, dim=normalize_dim("stack", dim, parts[0].ndim + 1))


@public(method=False)
def hstack(tensors: Sequence[Any]) -> Tensor:
    """`cat` along the columns: dim 1, or 0 for vectors; numbers count as vectors of one element."""
    parts = [part if part.ndim else part.reshape(1) for part in _tensors("hstack", tensors)]
    return cat(parts, 1 if parts[0].ndim > 1 else 0)


@public(method=False)
def vstack(tensors: Sequence[Any]) -> Tensor:
    """`cat` along the rows; vectors and numbers count as one row."""
    return cat([part if part.ndim > 1 else part.reshape(1, -1) for part in _tensors("vstack", tensors)])


def _repeat(name: str, input: Tensor, repeats: tuple[int, ...]) -> Tensor:
    if min(repeats, default=0) < 0:
        raise ValueError(f"{name}: expected repeats of at least 0, got {repeats}")
    shape = (*[1] * (len(repeats) - input.ndim), *input.shape)
    spread = reshape(input, tuple(size for length in shape for size in (1, length)))
    full = expand(spread, tuple(size for pair in zip(repeats, shape, strict=True) for size in pair))
    result = reshape(full, tuple(count * length for count, length in zip(repeats, shape, strict=True)))
    return result.clone() if result._versions is input._versions else result


def _repeat_method(self: Tensor, *repeats: Any) -> Tensor:
    """The tensor laid side by side, repeats[i] times along each dim; more repeats add dims in front."""
    counts = sizes_of("repeat", repeats)
    if len(counts) < self.ndim:
        raise ValueError(f"repeat: expected at least {self.ndim} numbers for shape {self.shape}, got {counts}")
    return _repeat("repeat", self, counts)


_repeat_method.__name__ = _repeat_method.__qualname__ = "repeat"
Tensor.repeat = _repeat_method  # type: ignore[attr-defined]  # PyTorch has it as a method only


@public()
def tile(input: Tensor, *dims: Any) -> Tensor:
    """`repeat` in which missing leading numbers are 1."""
    counts = sizes_of("tile", dims)
    return _repeat("tile", input, (*[1] * (input.ndim - len(counts)), *counts))


@public()
def repeat_interleave(input: Tensor, repeats: Any, dim: int | None = None) -> Tensor:
    """Each slice along `dim` (of the flattened tensor by default) repeated on the spot, as often as told."""
    if dim is None:
        input, dim = input.reshape(-1), 0
    dim = normalize_dim("repeat_interleave", dim, input.ndim)
    counts = as_array(repeats)
    if not isinstance(counts, np.ndarray):
        refuse("look at values")
    if counts.dtype.kind != "i" or counts.ndim > 1:
        raise TypeError(
            f"repeat_interleave: expected an integer or a vector of them, got {counts.dtype} {counts.shape}"
        )
    size = input.shape[dim]
    if counts.size not in (1, size) or (isinstance(counts, np.ndarray) and counts.size and counts.min() < 0):
        raise ValueError(f"repeat_interleave: expected {size} repeats of at least 0, got {counts.tolist()}")
    if counts.size == 1:
        count, shape = int(counts.item()), input.shape
        spread = expand(input.unsqueeze(dim + 1), (*shape[: dim + 1], count, *shape[dim + 1 :]))
        result = reshape(spread, (*shape[:dim], size * count, *shape[dim + 1 :]))
        return result.clone() if result._versions is input._versions else result
    return index_select(input, dim, transfer(np.repeat(np.arange(size), counts.tolist()), device_of(input._data)))


class Pad(Operation):
    """A constant border; where an amount is negative, that much is cut off."""

    def forward(ctx, x: Any) -> Any:
        shape = tuple(size + a + b for size, (a, b) in zip(x.shape, ctx.amounts, strict=True))
        result = array_module(x).full(shape, ctx.value, x.dtype)
        inside = tuple(slice(max(a, 0), n - max(b, 0)) for n, (a, b) in zip(shape, ctx.amounts, strict=True))
        shown = tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape, ctx.amounts, strict=True))
        result[inside] = x[shown]
        return result

    def backward(ctx, grad: Tensor) -> Tensor:
        return Pad.apply(grad, amounts=[(-a, -b) for a, b in ctx.amounts], value=0)


@public(method=False)
def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """A border about the last dims: `pad` is (before, after) of the last dim, then of the one before it, …

    mode: "constant" (with `value`; negative amounts cut off), "reflect", "replicate" or "circular".
    """
    widths = [int(width) for width in pad]
    if len(widths) % 2 or len(widths) > 2 * input.ndim:
        raise ValueError(f"pad: expected an even count of at most {2 * input.ndim} widths, got {tuple(pad)}")
    amounts = [(0, 0)] * (input.ndim - len(widths) // 2) + list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    if any(size + a + b < 0 for size, (a, b) in zip(input.shape, amounts, strict=True)):
        raise ValueError(f"pad: widths {tuple(pad)} cut more off than shape {input.shape} has")
    if mode == "constant":
        return Pad.apply(input, amounts=amounts, value=0 if value is None else value)
    if mode not in _BORDERS:
        raise ValueError(f"pad: mode must be constant, {', '.join(_BORDERS)}, got {mode!r}")
    if value is not None:
        raise ValueError(f'pad: value goes with mode "constant" only, not with {mode!r}')
    result = input
    for dim, (a, b) in enumerate(amounts):
        if (a, b) == (0, 0):
            continue
        size = input.shape[dim]
        limit = {"reflect": size - 1, "circular": size}.get(mode, max(a, b, 0) if size else 0)
        if max(a, b) > limit:
            raise ValueError(f"pad: widths ({a}, {b}) are too large for dim {dim} of size {size} in mode {mode!r}")
        module = array_module(input._data)
        places = _BORDERS[mode](module.arange(-a, size + b), size)
        result = Take.apply(result, arrays=Arrays((*[None] * dim, places, *[None] * (input.ndim - dim - 1))))
    return result


def _reflect(places: Any, size: int) -> Any:
    return (size - 1) - abs((size - 1) - abs(places))


_BORDERS = {
    "reflect": _reflect,
    "replicate": lambda places, size: places.clip(0, size - 1),
    "circular": lambda places, size: places % size,
}


@public(method=False)
def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Views of shape (n0, n1, …) of vectors, each along its own dim; for "xy" the first two dims swapped."""
    parts = list(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else list(tensors)
    if indexing not in ("ij", "xy"):
        raise ValueError(f'meshgrid: indexing must be "ij" or "xy", got {indexing!r}')
    if any(part.ndim > 1 for part in parts):
        raise ValueError(f"meshgrid: expected vectors, got shapes {[tuple(part.shape) for part in parts]}")
    order = list(range(len(parts)))
    if indexing == "xy" and len(parts) > 1:
        order[:2] = [1, 0]
    columns = [
        reshape(part, [-1 if d == i else 1 for d in range(len(parts))]) for i, part in zip(order, parts, strict=True)
    ]
    return broadcast_tensors(*columns)
