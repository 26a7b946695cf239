"""Order: sorted elements, the largest ones, the middle one, the distinct ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import array_module
from ..dtypes import is_half
from ..operation import Operation
from ..recorder import refuse
from ..tensor import Tensor, wrap
from .define import public
from .dims import normalize_dim
from .reduction import Values


class Argsort(Operation):
    """Indices in a stable order; NaN counts as the largest, as in PyTorch."""

    differentiable = False

    def forward(ctx, x: Any) -> Any:
        module = array_module(x)
        if not x.ndim:
            return module.zeros((), np.int64)
        keys = x.astype(np.float32) if is_half(x.dtype) else x.astype(np.uint8) if x.dtype == bool else x
        if not ctx.descending:
            return module.argsort(keys, axis=ctx.dim, kind="stable").astype(np.int64, copy=False)
        backwards = module.argsort(module.flip(keys, ctx.dim), axis=ctx.dim, kind="stable")
        return (x.shape[ctx.dim] - 1 - module.flip(backwards, ctx.dim)).astype(np.int64, copy=False)


def _order(name: str, input: Tensor, dim: int, descending: bool) -> Tensor:
    return Argsort.apply(input, dim=normalize_dim(name, dim, input.ndim), descending=descending)


@public()
def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The int64 indices that sort along `dim`; equal elements always keep their order."""
    return _order("argsort", input, dim, descending)


@public()
def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Values:
    """(values, indices) sorted along `dim`; equal elements always keep their order, NaN is the largest."""
    indices = _order("sort", input, dim, descending)
    return Values(input.gather(dim, indices), indices)


def _ranked(input: Tensor, dim: int, indices: Tensor, keepdim: bool) -> Values:
    values = input.gather(dim, indices)
    return Values(values, indices) if keepdim or not input.ndim else Values(values.squeeze(dim), indices.squeeze(dim))


@public()
def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Values:
    """(values, indices) of the k largest (or smallest) elements along `dim`, in order."""
    dim = normalize_dim("topk", dim, input.ndim)
    size = input.shape[dim] if input.ndim else 1
    if not 0 <= k <= size:
        raise ValueError(f"topk: k must be between 0 and {size}, the size of dim {dim}, got {k}")
    indices = _order("topk", input, dim, largest)
    if input.ndim:
        indices = wrap(array_module(indices._data).ascontiguousarray(indices.narrow(dim, 0, k)._data))
    return Values(input.gather(dim, indices), indices)


@public()
def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Values:
    """(value, index) of the k-th smallest element along `dim`, counted from 1."""
    dim = normalize_dim("kthvalue", dim, input.ndim)
    size = input.shape[dim] if input.ndim else 1
    if not 1 <= k <= size:
        raise ValueError(f"kthvalue: k must be between 1 and {size}, the size of dim {dim}, got {k}")
    indices = _order("kthvalue", input, dim, False)
    return _ranked(input, dim, indices.narrow(dim, k - 1, 1) if input.ndim else indices, keepdim)


@public()
def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The middle element (the lower of two; NaN where there is one); along `dim` a pair (values, indices)."""
    if dim is None:
        return median(input.reshape(-1), 0).values
    dim = normalize_dim("median", dim, input.ndim)
    if not input.ndim:
        return Values(input.clone(), wrap(array_module(input._data).zeros((), np.int64)))
    size = input.shape[dim]
    if not size:
        raise IndexError(f"median: dim {dim} of shape {input.shape} has no elements")
    order = _order("median", input, dim, False)
    place = order.narrow(dim, (size - 1) // 2, 1)
    if input.is_floating_point():  # NaN, where there is one, stands last
        last = order.narrow(dim, size - 1, 1)
        place = last.where(input.gather(dim, last).isnan(), place)
    return _ranked(input, dim, place, keepdim)


@public()
def unique(
    input: Tensor,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    """The distinct elements (slices along `dim`) in order; if asked, where each went and how many came."""
    refuse("make a result whose size depends on values")
    module = array_module(input._data)
    axis = None if dim is None else normalize_dim("unique", dim, input.ndim)
    found = module.unique(input._data, return_inverse=return_inverse, return_counts=return_counts, axis=axis)
    if not isinstance(found, tuple):
        return wrap(found)
    parts = [wrap(part) for part in found]
    if return_inverse:
        parts[1] = parts[1].reshape(input.shape if axis is None else (-1,))
    return tuple(parts)
