"""Embeddings: rows of a matrix by their numbers."""

from __future__ import annotations

from .. import geometry
from .checks import Array, check_arrays, same_kind, side


def embedding(weight: Array, indices: Array) -> Array:
    """The rows of weight (V, D) that integer indices (...) name, as (..., D).

    An index outside 0 ... V - 1 is a ValueError on the CPU; on CUDA, where finding it would cost a
    synchronisation, its row is NaN.
    """
    check_arrays("embedding", weight=weight)
    _check_indices("embedding", weight, indices)
    geometry.embedding("embedding", weight.shape)
    return side(weight).embedding(weight, indices)


def embedding_weight_grad(
    dy: Array, indices: Array, num_embeddings: int, padding_idx: int = -1, scale_grad_by_freq: bool = False
) -> Array:
    """The gradient of `embedding` with respect to weight: for each of V rows the sum of dy where it was taken.

    Rows are added in the order of their indices, so that results repeat bit for bit. The row `padding_idx` stays
    zero; `scale_grad_by_freq` divides a row by how often it was taken. Indices out of range are left out on CUDA.
    """
    operation = "embedding_weight_grad"
    check_arrays(operation, dy=dy)
    _check_indices(operation, dy, indices)
    geometry.embedding_weight_grad(operation, dy.shape, indices.shape, num_embeddings, padding_idx)
    return side(dy).embedding_weight_grad(dy, indices, num_embeddings, padding_idx, scale_grad_by_freq)


def embedding_renorm(weight: Array, indices: Array, max_norm: float, norm_type: float = 2.0) -> Array:
    """Scale the rows of weight (V, D) that indices name to a `norm_type`-norm of at most `max_norm`, in place."""
    operation = "embedding_renorm"
    check_arrays(operation, weight=weight)
    _check_indices(operation, weight, indices)
    geometry.embedding_renorm(operation, weight.shape, norm_type)
    return side(weight).embedding_renorm(weight, indices, max_norm, norm_type)


def _check_indices(operation: str, array: Array, indices: Array) -> None:
    same_kind(operation, array=array, indices=indices)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"{operation}: indices must be integers, got {indices.dtype}")
