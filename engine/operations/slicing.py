"""Views of parts: slices, pieces, diagonals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import array_module
from ..operation import Operation
from ..tensor import Tensor
from .define import public
from .dims import normalize_dim
from .indexing import Select


@public()
def select(input: Tensor, dim: int, index: int) -> Tensor:
    """A view of slice `index` along `dim`, without that dimension."""
    dim = normalize_dim("select", dim, input.ndim)
    if not input.ndim or not -input.shape[dim] <= index < input.shape[dim]:
        raise IndexError(f"select: index {index} is out of range for dim {dim} of shape {input.shape}")
    return Select.apply(input, index=(*[slice(None)] * dim, int(index), Ellipsis))


@public()
def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """A view of `length` slices along `dim` from `start` on."""
    dim = normalize_dim("narrow", dim, input.ndim)
    size = input.shape[dim] if input.ndim else 0
    first = start + size if start < 0 else start
    if not input.ndim or not 0 <= first <= size or length < 0 or first + length > size:
        raise IndexError(f"narrow: start {start} and length {length} do not fit dim {dim} of shape {input.shape}")
    return Select.apply(input, index=(*[slice(None)] * dim, slice(first, first + length), Ellipsis))


class Split(Operation):
    """Views of consecutive pieces along a dim, in one node."""

    is_view = True

    def forward(ctx, x: Any) -> Any:
        return tuple([x[step["index"]] for _, step in (ctx.view_step(i) for i in range(len(ctx.pieces)))])

    def view_step(ctx, position: int) -> tuple[type[Operation], dict[str, Any]]:
        return Select, {"index": (*[slice(None)] * ctx.dim, ctx.pieces[position], Ellipsis)}

    def backward(ctx, *grads: Tensor) -> Tensor:
        from .joining import Cat, Stack

        return (Cat if isinstance(ctx.pieces[0], slice) else Stack).apply(*grads, dim=ctx.dim)


@public()
def split(input: Tensor, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Views of pieces along `dim`: of one size (the last may be smaller), or of the sizes listed."""
    dim = normalize_dim("split", dim, input.ndim)
    if not input.ndim:
        raise ValueError("split: expected a tensor of at least 1 dimension, got a 0-d tensor")
    size = input.shape[dim]
    if isinstance(split_size_or_sections, int):
        step = split_size_or_sections
        if step < 0 or (step == 0 and size):
            raise ValueError(f"split: expected a positive size, got {step}")
        starts = list(range(0, size, step)) if size else [0]
        sizes = [min(step, size - start) for start in starts]
    else:
        sizes = list(split_size_or_sections)
        if sum(sizes) != size or min(sizes, default=0) < 0:
            raise ValueError(f"split: sections {sizes} do not add up to dim {dim} of shape {input.shape}")
    ends = np.cumsum(sizes).tolist()
    pieces = [slice(end - length, end) for end, length in zip(ends, sizes, strict=True)]
    return Split.apply(input, pieces=pieces, dim=dim) if pieces else ()


@public()
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of at most `chunks` pieces of equal size along `dim`; the last may be smaller."""
    if chunks < 1:
        raise ValueError(f"chunk: expected at least 1 chunk, got {chunks}")
    dim = normalize_dim("chunk", dim, input.ndim)
    size = input.shape[dim] if input.ndim else 0
    if input.ndim and not size:
        return split(input, [0] * chunks, dim)
    return split(input, -(-size // chunks), dim)


@public()
def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of all slices along `dim`, without that dimension."""
    dim = normalize_dim("unbind", dim, input.ndim)
    if not input.ndim:
        raise ValueError("unbind: expected a tensor of at least 1 dimension, got a 0-d tensor")
    pieces = list(range(input.shape[dim]))
    return Split.apply(input, pieces=pieces, dim=dim) if pieces else ()


class Diagonal(Operation):
    is_view = True

    def forward(ctx, x: Any) -> Any:
        ctx.shape = x.shape
        return _diagonal(x, ctx.place)

    def backward(ctx, grad: Tensor) -> Tensor:
        return DiagonalPlace.apply(grad, place=ctx.place, shape=ctx.shape)


class DiagonalPlace(Operation):
    """Zeros with the elements given on a diagonal."""

    def forward(ctx, x: Any) -> Any:
        result = array_module(x).zeros(ctx.shape, x.dtype)
        _diagonal(result, ctx.place)[...] = x
        return result

    def backward(ctx, grad: Tensor) -> Tensor:
        return Diagonal.apply(grad, place=ctx.place)


def _diagonal(x: Any, place: tuple[int, int, int]) -> Any:
    result = x.diagonal(*place)
    if isinstance(result, np.ndarray) and x.flags.writeable:
        result.flags.writeable = True  # NumPy's diagonal is read-only without need
    return result


@public()
def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A view of the diagonal of two dims, as the last dimension; positive offsets lie above the main one."""
    if input.ndim < 2:
        raise ValueError(f"diagonal: expected a tensor of at least 2 dimensions, got shape {input.shape}")
    first, second = normalize_dim("diagonal", dim1, input.ndim), normalize_dim("diagonal", dim2, input.ndim)
    if first == second:
        raise ValueError(f"diagonal: expected two different dims, got {dim1} and {dim2}")
    return Diagonal.apply(input, place=(offset, first, second))


@public()
def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """A matrix with the given vector on a diagonal; of a matrix, a copy of that diagonal."""
    if input.ndim == 1:
        size = input.shape[0] + abs(diagonal)
        return DiagonalPlace.apply(input, place=(diagonal, 0, 1), shape=(size, size))
    if input.ndim != 2:
        raise ValueError(f"diag: expected a vector or matrix, got shape {input.shape}")
    return Diagonal.apply(input, place=(diagonal, 0, 1)).clone()
