"""Shapes and settings of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import is_int


def embedding(operation: str, weight_shape: Sequence[int]) -> None:
    """Check the shape of an embedding's weight."""
    if len(weight_shape) != 2:
        raise ValueError(f"{operation}: weight must have the shape (V, D), got {tuple(weight_shape)}")


def embedding_weight_grad(
    operation: str, dy_shape: Sequence[int], indices_shape: Sequence[int], num_embeddings: int, padding_idx: int
) -> None:
    """Check the shapes and settings of the gradient of an embedding."""
    if len(dy_shape) != len(indices_shape) + 1 or tuple(dy_shape[:-1]) != tuple(indices_shape):
        wanted = ", ".join([*map(str, indices_shape), "D"])
        raise ValueError(f"{operation}: dy must have the shape ({wanted}), got {tuple(dy_shape)}")
    if not is_int(num_embeddings) or num_embeddings < 0:
        raise ValueError(f"{operation}: num_embeddings must be an integer of at least 0, got {num_embeddings!r}")
    if not is_int(padding_idx) or not -1 <= padding_idx < num_embeddings:
        raise ValueError(
            f"{operation}: padding_idx must be a row of {num_embeddings}, or -1 for none, got {padding_idx!r}"
        )


def embedding_renorm(operation: str, weight_shape: Sequence[int], norm_type: float) -> None:
    """Check the settings of a renormalisation."""
    embedding(operation, weight_shape)
    if not norm_type > 0:
        raise ValueError(f"{operation}: norm_type must be above 0, got {norm_type!r}")
