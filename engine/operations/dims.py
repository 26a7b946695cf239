"""Dimensions as a user names them, and as operations need them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Dims = int | Sequence[int] | None


def normalize_dims(name: str, dim: Dims, ndim: int) -> tuple[int, ...]:
    """`dim` as sorted non-negative dimensions of a tensor of `ndim`; None and () mean all."""
    if type(dim) is int:
        dim = normalize_dim(name, dim, ndim)
        return (dim,) if ndim else ()
    if dim is None:
        return tuple(range(ndim))
    if not isinstance(dim, int | np.integer | Sequence):
        raise TypeError(f"{name}: dim must be an integer or a sequence of them, got {type(dim).__name__}")
    dims = (dim,) if isinstance(dim, int | np.integer) else tuple(dim)
    result = [normalize_dim(name, d, ndim) for d in dims or range(ndim)]
    if len(set(result)) != len(result):
        raise ValueError(f"{name}: a dim appears twice in {dim}")
    return tuple(sorted(result)) if ndim else ()


def normalize_dim(name: str, dim: int, ndim: int) -> int:
    """One dimension, non-negative."""
    if type(dim) is not int and not isinstance(dim, int | np.integer):
        raise TypeError(f"{name}: dim must be an integer, got {type(dim).__name__}")
    limit = max(ndim, 1)
    if not -limit <= dim < limit:
        raise IndexError(f"{name}: dim {dim} is out of range for a tensor of {ndim} dimensions")
    return int(dim) % limit


def kept_shape(shape: tuple[int, ...], dims: Sequence[int]) -> tuple[int, ...]:
    """`shape` with 1 in place of each reduced dimension."""
    return tuple(1 if i in dims else size for i, size in enumerate(shape))
