"""Shapes of layer and RMS normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .checks import check_same


def layer_norm(operation: str, shape: Sequence[int], vectors: Mapping[str, Sequence[int] | None]) -> None:
    """Check that x is (rows, size) and that vectors have one value for each of its columns."""
    if len(shape) != 2:
        raise ValueError(f"{operation}: x must have the shape (rows, size), got {tuple(shape)}")
    for name, given in vectors.items():
        if given is not None and tuple(given) != (shape[1],):
            raise ValueError(
                f"{operation}: {name} must have the shape ({shape[1]},), one value per column, got {tuple(given)}"
            )


def layer_norm_grad(
    operation: str,
    shape: Sequence[int],
    dy_shape: Sequence[int],
    weight_shape: Sequence[int] | None,
    statistics: Mapping[str, Sequence[int]],
) -> None:
    """Check the shapes of the result's gradient, of the weight, and of what there is one of for each row."""
    layer_norm(operation, shape, {"weight": weight_shape})
    check_same(operation, dy_shape, shape)
    for name, given in statistics.items():
        if tuple(given) != (shape[0],):
            raise ValueError(f"{operation}: {name} must have the shape ({shape[0]},), got {tuple(given)}")
