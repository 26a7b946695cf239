"""Checks of shapes and settings that several families share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
Shape = tuple[int, int, int, int]
Sizes = tuple[int, ...]  # one for each axis, or a whole shape

# Of so many axes the last; and the inputs of one, two and three.
AXES = ("depth", "height", "width")
INPUTS = ("(N, C, L)", "(N, C, H, W)", "(N, C, D, H, W)")


def check_same(operation: str, got: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(got) != tuple(wanted):
        raise ValueError(
            f"{operation}: the gradient must have the shape {tuple(wanted)} of the result, got {tuple(got)}"
        )


def is_pair(value: Any, least: int) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_int, value)) and min(value) >= least


def is_int(value: object) -> bool:
    # The first question is the cheap one, and enough for nearly every call.
    return type(value) is int or (isinstance(value, int) and not isinstance(value, bool))
