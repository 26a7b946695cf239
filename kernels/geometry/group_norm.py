"""Shapes of group normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .checks import check_same, is_int


def group_norm(operation: str, shape: Sequence[int], groups: int, vectors: Mapping[str, Sequence[int] | None]) -> None:
    """Check that x is (N, C, ...), that `groups` divides C, and that vectors have one value per channel."""
    if len(shape) < 2:
        raise ValueError(f"{operation}: x must have the shape (N, C, ...), got {tuple(shape)}")
    channels = shape[1]
    if not is_int(groups) or groups < 1 or channels % groups:
        raise ValueError(
            f"{operation}: groups must be a positive integer that divides the {channels} channels, got {groups!r}"
        )
    for name, given in vectors.items():
        if given is not None and tuple(given) != (channels,):
            raise ValueError(
                f"{operation}: {name} must have the shape ({channels},), one value per channel, got {tuple(given)}"
            )


def group_norm_grad(
    operation: str,
    shape: Sequence[int],
    dy_shape: Sequence[int],
    weight_shape: Sequence[int] | None,
    groups: int,
    statistics: Mapping[str, Sequence[int]],
) -> None:
    """Check the shapes of the result's gradient, of the weight, and of what there is one of for each group."""
    group_norm(operation, shape, groups, {"weight": weight_shape})
    check_same(operation, dy_shape, shape)
    for name, given in statistics.items():
        if tuple(given) != (shape[0], groups):
            raise ValueError(f"{operation}: {name} must have the shape {(shape[0], groups)}, got {tuple(given)}")
