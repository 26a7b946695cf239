"""Shapes of a softmax."""

from __future__ import annotations

from collections.abc import Sequence

from .checks import check_same, is_int


def softmax(operation: str, shape: Sequence[int], dim: int, grad_shape: Sequence[int] | None = None) -> None:
    """Check the dim of a softmax, and the shape of the gradient of its result."""
    if not is_int(dim) or not 0 <= dim < len(shape):
        raise ValueError(f"{operation}: dim must be between 0 and {len(shape) - 1} for {tuple(shape)}, got {dim!r}")
    if grad_shape is not None:
        check_same(operation, grad_shape, shape)
