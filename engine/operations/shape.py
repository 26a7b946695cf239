"""Operations that change how a tensor is looked at: views wherever the memory allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..backend import array_module
from ..operation import Operation
from ..tensor import Tensor
from .define import public
from .dims import normalize_dim, normalize_dims


def sizes_of(name: str, sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes given as f(2, 3), f((2, 3)) or f([2, 3])."""
    if len(sizes) == 1 and isinstance(sizes[0], Sequence):
        sizes = tuple(sizes[0])
    try:
        return tuple(size.__index__() for size in sizes)
    except AttributeError:
        raise TypeError(f"{name}: expected whole numbers, got {sizes}") from None


class Reshape(Operation):
    is_view = True

    def forward(ctx, x: Any) -> Any:
        ctx.old = x.shape
        return x.reshape(ctx.shape)

    def backward(ctx, grad: Tensor) -> Tensor:
        return Reshape.apply(grad, shape=ctx.old)


@public()
def reshape(input: Tensor, *shape: Any) -> Tensor:
    """The same elements in another shape; one size may be -1. A view where the strides allow it."""
    return Reshape.apply(input, shape=_complete("reshape", input, sizes_of("reshape", shape)))


def _complete(name: str, input: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` with its -1 worked out."""
    count = input._data.size
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and known > 0 and count % known == 0:
        return tuple(count // known if size == -1 else size for size in shape)
    if -1 in shape or known != count or min(shape, default=0) < 0:
        raise ValueError(f"{name}: shape {input.shape} ({count} elements) cannot become shape {shape}")
    return shape


@public()
def view(input: Tensor, *shape: Any) -> Tensor:
    """`reshape` that never copies: an error where the strides do not allow it."""
    complete = _complete("view", input, sizes_of("view", shape))
    result = Reshape.apply(input, shape=complete)
    if result._versions is not input._versions and input._data.size:
        raise RuntimeError(
            f"view: a tensor of shape {input.shape} and strides {input.stride()} cannot be seen as "
            f"{complete} without a copy; use reshape"
        )
    return result


@public()
def view_as(input: Tensor, other: Tensor) -> Tensor:
    """`view` with the shape of `other`."""
    return view(input, other.shape)


@public()
def reshape_as(input: Tensor, other: Tensor) -> Tensor:
    """`reshape` to the shape of `other`."""
    return reshape(input, other.shape)


@public()
def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The dimensions from start_dim to end_dim as one."""
    start = normalize_dim("flatten", start_dim, input.ndim)
    end = normalize_dim("flatten", end_dim, input.ndim)
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    shape = input.shape
    return Reshape.apply(input, shape=(*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


@public()
def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Dimension `dim` as several of `sizes`, of which one may be -1."""
    dim = normalize_dim("unflatten", dim, input.ndim)
    size = input.shape[dim]
    known = math.prod(s for s in sizes if s != -1)
    sizes = tuple(size // known if s == -1 and known else s for s in sizes)
    if math.prod(sizes) != size:
        raise ValueError(f"unflatten: dim {dim} of size {size} cannot become {tuple(sizes)}")
    return reshape(input, (*input.shape[:dim], *sizes, *input.shape[dim + 1 :]))


class Permute(Operation):
    is_view = True

    def forward(ctx, x: Any) -> Any:
        return x.transpose(ctx.dims)

    def backward(ctx, grad: Tensor) -> Tensor:
        back = [0] * len(ctx.dims)
        for i, dim in enumerate(ctx.dims):
            back[dim] = i
        return Permute.apply(grad, dims=tuple(back))


@public()
def permute(input: Tensor, *dims: Any) -> Tensor:
    """The dimensions in another order."""
    order = tuple(normalize_dim("permute", dim, input.ndim) for dim in sizes_of("permute", dims))
    if sorted(order) != list(range(input.ndim)):
        raise ValueError(f"permute: expected each of the {input.ndim} dims once, got {order}")
    return Permute.apply(input, dims=order)


@public()
def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """Dimensions dim0 and dim1 swapped."""
    order = list(range(input.ndim))
    first, second = normalize_dim("transpose", dim0, input.ndim), normalize_dim("transpose", dim1, input.ndim)
    if order:
        order[first], order[second] = second, first
    return Permute.apply(input, dims=tuple(order))


@public()
def t(input: Tensor) -> Tensor:
    """The transpose of a matrix; a vector stays itself."""
    if input.ndim > 2:
        raise ValueError(f"t: expected at most 2 dimensions, got shape {input.shape}")
    return Permute.apply(input, dims=tuple(range(input.ndim))[::-1])


@public()
def movedim(input: Tensor, source: int, destination: int) -> Tensor:
    """Dimension `source` moved to the place `destination`, the others in their order."""
    order = list(range(input.ndim))
    order.remove(first := normalize_dim("movedim", source, input.ndim))
    order.insert(normalize_dim("movedim", destination, input.ndim), first)
    return Permute.apply(input, dims=tuple(order))


Tensor.T = property(lambda self: Permute.apply(self, dims=tuple(range(self.ndim))[::-1]))  # type: ignore[attr-defined]
Tensor.mT = property(lambda self: transpose(self, -2, -1))  # type: ignore[attr-defined]


class Expand(Operation):
    is_view = True

    def forward(ctx, x: Any) -> Any:
        return array_module(x).broadcast_to(x, ctx.shape) if x.shape != ctx.shape else x.view()

    def backward(ctx, grad: Tensor) -> Tensor:
        return grad  # the graph sums it down


@public()
def expand(input: Tensor, *sizes: Any) -> Tensor:
    """A view in which dimensions of size 1 are repeated without memory; -1 leaves a size as it is."""
    wanted = sizes_of("expand", sizes)
    extra = len(wanted) - input.ndim
    shape = tuple(input.shape[i - extra] if size == -1 and i >= extra else size for i, size in enumerate(wanted))
    pairs = zip(input.shape, shape[max(extra, 0) :], strict=True)
    fits = extra >= 0 and all(old in (1, new) for old, new in pairs)
    if not fits or min(shape, default=0) < 0:
        raise ValueError(f"expand: a tensor of shape {input.shape} cannot be expanded to {wanted}")
    return Expand.apply(input, shape=shape)


@public()
def expand_as(input: Tensor, other: Tensor) -> Tensor:
    """`expand` to the shape of `other`."""
    return expand(input, other.shape)


@public(method=False)
def broadcast_to(input: Tensor, shape: Sequence[int]) -> Tensor:
    """`expand` under NumPy's name."""
    return expand(input, tuple(shape))


@public(method=False)
def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors expanded to their common shape."""
    import numpy as np

    shape = np.broadcast_shapes(*(tensor.shape for tensor in tensors))
    return tuple(expand(tensor, shape) for tensor in tensors)


@public()
def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """A new dimension of size 1 at `dim`."""
    dim = normalize_dim("unsqueeze", dim, input.ndim + 1)
    return Reshape.apply(input, shape=(*input.shape[:dim], 1, *input.shape[dim:]))


@public()
def squeeze(input: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Without the dimensions of size 1, all of them or those in `dim`."""
    dims = normalize_dims("squeeze", dim, input.ndim)
    return Reshape.apply(input, shape=tuple(n for i, n in enumerate(input.shape) if n != 1 or i not in dims))


@public()
def ravel(input: Tensor) -> Tensor:
    """All elements in one dimension."""
    return reshape(input, -1)


class Flip(Operation):
    def forward(ctx, x: Any) -> Any:
        return array_module(x).flip(x, ctx.dims).copy()

    def backward(ctx, grad: Tensor) -> Tensor:
        return Flip.apply(grad, dims=ctx.dims)


@public()
def flip(input: Tensor, *dims: Any) -> Tensor:
    """The elements in reverse order along `dims`, as a copy."""
    return Flip.apply(input, dims=normalize_dims("flip", sizes_of("flip", dims), input.ndim))


class Roll(Operation):
    def forward(ctx, x: Any) -> Any:
        return array_module(x).roll(x, ctx.shifts, ctx.dims)

    def backward(ctx, grad: Tensor) -> Tensor:
        return Roll.apply(grad, shifts=tuple(-shift for shift in ctx.shifts), dims=ctx.dims)


@public()
def roll(input: Tensor, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> Tensor:
    """The elements shifted along `dims` in a ring; by default the flattened tensor's."""
    if dims is None:
        return roll(input.reshape(-1), shifts, 0).reshape(input.shape)
    steps = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    places = tuple(normalize_dim("roll", d, input.ndim) for d in ((dims,) if isinstance(dims, int) else dims))
    if len(steps) != len(places):
        raise ValueError(f"roll: got {len(steps)} shifts for {len(places)} dims")
    return Roll.apply(input, shifts=steps, dims=places)


class Triangle(Operation):
    """The part of a matrix on one side of a diagonal, zero elsewhere."""

    def forward(ctx, x: Any) -> Any:
        return getattr(array_module(x), ctx.part)(x, ctx.diagonal)

    def backward(ctx, grad: Tensor) -> Tensor:
        return Triangle.apply(grad, part=ctx.part, diagonal=ctx.diagonal)


@public()
def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangle of the last two dimensions, up to `diagonal`; zero above."""
    return _triangle("tril", input, diagonal)


@public()
def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangle of the last two dimensions, from `diagonal`; zero below."""
    return _triangle("triu", input, diagonal)


def _triangle(name: str, input: Tensor, diagonal: int) -> Tensor:
    if input.ndim < 2:
        raise ValueError(f"{name}: expected a tensor of at least 2 dimensions, got shape {input.shape}")
    return Triangle.apply(input, part=name, diagonal=diagonal)
