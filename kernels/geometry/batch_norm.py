"""Shapes of batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod


def batch_norm(
    operation: str,
    shape: Sequence[int],
    vectors: Mapping[str, Sequence[int]],
    images: Mapping[str, Sequence[int]],
) -> None:
    """Check that x is (N, C, ...), that vectors have one value per channel, and that images have the shape of x."""
    if len(shape) < 2:
        raise ValueError(f"{operation}: x must have the shape (N, C, ...), got {tuple(shape)}")
    for name, given in vectors.items():
        if tuple(given) != (shape[1],):
            raise ValueError(f"{operation}: {name} must have the shape ({shape[1]},), got {tuple(given)}")
    for name, given in images.items():
        if tuple(given) != tuple(shape):
            raise ValueError(f"{operation}: {name} must have the shape {tuple(shape)} of x, got {tuple(given)}")


def channel_runs(shape: Sequence[int]) -> tuple[int, int, int]:
    """(N, C, ...) as images, channels and the elements of one channel in one image, which lie side by side."""
    return shape[0], shape[1], prod(shape[2:])
