"""Elements by tensors of indices or masks along a dim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import array_module
from ..operation import Operation
from ..promotion import on_one_device
from ..recorder import refuse
from ..tensor import Tensor, as_array, wrap
from .arithmetic import add, mul, where
from .define import public
from .dims import normalize_dim
from .index import Arrays, check_range
from .indexing import Accumulate, Put, Take, getitem
from .positions import along, flat_positions, sums_at


class Gather(Operation):
    def forward(ctx, x: Any) -> Any:
        ctx.shape = x.shape
        return x[tuple(along(ctx.index, ctx.dim))]

    def backward(ctx, grad: Tensor) -> Tensor:
        return GatherAdd.apply(grad, dim=ctx.dim, index=ctx.index, shape=ctx.shape)


class GatherAdd(Operation):
    """Zeros to which elements are added at an index along a dim: the adjoint of Gather."""

    def forward(ctx, x: Any) -> Any:
        index, dim, shape = ctx.index, ctx.dim, ctx.shape
        if index.shape[dim] == 1:  # nothing can meet
            result = array_module(x).zeros(shape, x.dtype)
            result[tuple(along(index, dim))] = x
            return result
        positions = flat_positions(along(index, dim), shape)
        return sums_at(positions.ravel(), x.ravel(), math.prod(shape)).reshape(shape)

    def backward(ctx, grad: Tensor) -> Tensor:
        return Gather.apply(grad, dim=ctx.dim, index=ctx.index)


def _index(name: str, input: Tensor, index: Any) -> Any:
    """The array of `index` on the device of `input`, which must hold integers."""
    array = as_array(index)
    if array.dtype.kind != "i":
        raise TypeError(f"{name}: the index must be an int64 or int32 tensor, got dtype {array.dtype}")
    return on_one_device(name, [input._data, array])[1]


def _along_dim(name: str, input: Tensor, dim: int, index: Any) -> tuple[int, Any]:
    """`dim` and `index` checked for `gather` and `scatter`."""
    dim = normalize_dim(name, dim, input.ndim)
    array = _index(name, input, index)
    fits = array.ndim == input.ndim and all(
        d == dim or size <= limit for d, (size, limit) in enumerate(zip(array.shape, input.shape, strict=True))
    )
    if not fits:
        raise ValueError(
            f"{name}: an index of shape {array.shape} does not fit a tensor of shape {input.shape}: beside "
            f"dim {dim} no size may be larger"
        )
    check_range(name, array, dim, input.shape)
    return dim, array


@public()
def gather(input: Tensor, dim: int, index: Any) -> Tensor:
    """The elements at `index` along `dim`, in its shape: result[i][j] = input[index[i][j]][j] for dim 0."""
    if not input.ndim:
        return gather(input.reshape(1), 0, as_array(index).reshape(-1)).reshape(())
    dim, array = _along_dim("gather", input, dim, index)
    return Gather.apply(input, dim=dim, index=array)


@public()
def take_along_dim(input: Tensor, indices: Any, dim: int | None = None) -> Tensor:
    """`gather` whose index broadcasts with the input beside `dim`; without `dim`, of the flattened tensor."""
    array = _index("take_along_dim", input, indices)
    if dim is None:
        return gather(input.reshape(-1), 0, array.reshape(-1))
    dim = normalize_dim("take_along_dim", dim, input.ndim)
    if array.ndim != input.ndim:
        raise ValueError(f"take_along_dim: expected indices of {input.ndim} dims, got shape {array.shape}")
    sizes = list(zip(input.shape, array.shape, strict=True))
    if any(1 not in pair and pair[0] != pair[1] for d, pair in enumerate(sizes) if d != dim):
        raise ValueError(f"take_along_dim: indices {array.shape} do not broadcast with {input.shape} beside dim {dim}")
    common = [b if a == 1 else a for a, b in sizes]
    source = input.expand([input.shape[d] if d == dim else size for d, size in enumerate(common)])
    wanted = [array.shape[d] if d == dim else size for d, size in enumerate(common)]
    return gather(source, dim, array_module(array).broadcast_to(array, wanted))


def _source(name: str, input: Tensor, index: Any, source: Any) -> Tensor:
    """What `scatter` writes: the part of a tensor that the index covers, or a number."""
    if not isinstance(source, Tensor):
        return wrap(array_module(input._data).full((), source, input.dtype))
    if source.dtype != input.dtype:
        raise TypeError(f"{name}: expected a source of dtype {input.dtype}, got {source.dtype}")
    if source.ndim != index.ndim or any(a > b for a, b in zip(index.shape, source.shape, strict=True)):
        raise ValueError(f"{name}: an index of shape {index.shape} is larger than the source of shape {source.shape}")
    return source if source.shape == index.shape else getitem(source, tuple(slice(size) for size in index.shape))


@public(inplace=True)
def scatter(
    input: Tensor, dim: int, index: Any, src: Any = None, *, value: Any = None, reduce: str | None = None
) -> Tensor:
    """`input` with `src` (or the number `value`) at `index` along `dim`; of equal places the last one wins.

    reduce="add" adds there, as `scatter_add`.
    """
    src = value if src is None else src
    if src is None:
        raise TypeError("scatter: expected src or value")
    if reduce == "add":
        dim, array = _along_dim("scatter", input, dim, index)
        return add(input, _scattered(input, dim, array, _source("scatter", input, array, src).expand(array.shape)))
    if reduce is not None:
        raise ValueError(f'scatter: reduce must be None or "add", got {reduce!r}')
    dim, array = _along_dim("scatter", input, dim, index)
    arrays = Arrays(tuple(along(array, dim)), unique=array.shape[dim] == 1)
    return Put.apply(input, _source("scatter", input, array, src), arrays=arrays)


def _scattered(input: Tensor, dim: int, index: Any, source: Tensor) -> Tensor:
    return GatherAdd.apply(source, dim=dim, index=index, shape=input.shape)


@public(inplace=True)
def scatter_add(input: Tensor, dim: int, index: Any, src: Tensor) -> Tensor:
    """`input` with `src` added at `index` along `dim`; equal places add up, always in the same order."""
    dim, array = _along_dim("scatter_add", input, dim, index)
    return add(input, _scattered(input, dim, array, _source("scatter_add", input, array, src)))


def _slices(name: str, input: Tensor, dim: int, index: Any) -> tuple[int, Arrays]:
    """`index`, a vector, as index arrays along `dim`."""
    dim = normalize_dim(name, dim, input.ndim)
    array = _index(name, input, index)
    if array.ndim > 1:
        raise ValueError(f"{name}: expected a vector of indices, got shape {array.shape}")
    array = array.reshape(-1)
    check_range(name, array, dim, input.shape or (1,))
    return dim, Arrays((*[None] * dim, array, *[None] * (input.ndim - dim - 1)))


@public()
def index_select(input: Tensor, dim: int, index: Any) -> Tensor:
    """The slices along `dim` that a vector of indices names, as a copy."""
    if not input.ndim:
        return index_select(input.reshape(1), dim, index).reshape(())
    _, arrays = _slices("index_select", input, dim, index)
    return Take.apply(input, arrays=arrays)


def _slices_shape(name: str, input: Tensor, arrays: Arrays, source: Tensor) -> None:
    shape = arrays.result_shape(input.shape)
    if source.shape != shape:
        raise ValueError(f"{name}: expected a source of shape {shape}, got {source.shape}")


@public(inplace=True)
def index_add(input: Tensor, dim: int, index: Any, source: Tensor, *, alpha: float = 1) -> Tensor:
    """`input` with the slices of `source` added to those along `dim` that a vector names, also repeatedly."""
    _, arrays = _slices("index_add", input, dim, index)
    _slices_shape("index_add", input, arrays, source)
    added = source if alpha == 1 else mul(source, alpha)
    return add(input, Accumulate.apply(added, arrays=arrays, shape=input.shape))


@public(inplace=True)
def index_copy(input: Tensor, dim: int, index: Any, source: Tensor) -> Tensor:
    """`input` with the slices along `dim` that a vector names replaced by those of `source`."""
    _, arrays = _slices("index_copy", input, dim, index)
    _slices_shape("index_copy", input, arrays, source)
    return Put.apply(input, source, arrays=arrays)


@public(inplace=True)
def index_fill(input: Tensor, dim: int, index: Any, value: Any) -> Tensor:
    """`input` with the slices along `dim` that a vector names set to a number."""
    _, arrays = _slices("index_fill", input, dim, index)
    return Put.apply(input, _value("index_fill", input, value), arrays=arrays)


def _value(name: str, input: Tensor, value: Any) -> Tensor:
    """A number or 0-d tensor in the dtype and on the device of `input`."""
    if isinstance(value, Tensor):
        if value.ndim:
            raise ValueError(f"{name}: expected a number or a 0-d tensor, got shape {value.shape}")
        return value.to(input)
    return wrap(array_module(input._data).full((), value, input.dtype))


@public(inplace=True)
def masked_fill(input: Tensor, mask: Any, value: Any) -> Tensor:
    """`value`, a number or 0-d tensor, where `mask` is true, else `input`."""
    return where(_mask("masked_fill", mask), _value("masked_fill", input, value), input)


def _mask(name: str, mask: Any) -> Tensor:
    mask = mask if isinstance(mask, Tensor) else Tensor(mask)
    if mask.dtype != bool:
        raise TypeError(f"{name}: the mask must be a bool tensor, got dtype {mask.dtype}")
    return mask


@public()
def masked_select(input: Tensor, mask: Any) -> Tensor:
    """The elements where `mask`, broadcast with `input`, is true, as a vector."""
    mask = _mask("masked_select", mask)
    shape = np.broadcast_shapes(input.shape, mask.shape)
    return getitem(input.expand(shape), mask.expand(shape))


class Nonzero(Operation):
    differentiable = False

    def forward(ctx, x: Any) -> Any:
        refuse("make a result whose size depends on values")
        places = x.reshape(1).nonzero() if not x.ndim else x.nonzero()
        return tuple(array_module(x).asarray(place, dtype=np.int64) for place in places)


@public()
def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """The indices of the elements that are not 0: (n, ndim), or with `as_tuple` a vector for each dim."""
    places: Sequence[Tensor] = Nonzero.apply(input)
    if as_tuple:
        return tuple(places)
    arrays = [place._data for place in places][: input.ndim]
    module = array_module(input._data)
    if not arrays:
        return wrap(module.zeros((places[0].shape[0], 0), np.int64))
    return wrap(module.stack(arrays, axis=1))


@public(method=False)
def argwhere(input: Tensor) -> Tensor:
    """The indices (n, ndim) of the elements that are not 0."""
    return nonzero(input)
