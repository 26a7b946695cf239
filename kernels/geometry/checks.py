"""Checks of shapes and settings that several families share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
Shape = tuple[int, int, int, int]

AXES = ("height", "width")


def check_rank(operation: str, name: str, shape: Sequence[int], wanted: str) -> None:
    if len(shape) != 4 or not all(map(is_int, shape)) or min(shape) < 0:
        raise ValueError(f"{operation}: {name} must have the shape {wanted}, got {tuple(shape)}")


def check_same(operation: str, got: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(got) != tuple(wanted):
        raise ValueError(
            f"{operation}: the gradient must have the shape {tuple(wanted)} of the result, got {tuple(got)}"
        )


def check_pair(operation: str, name: str, value: Pair, least: int) -> None:
    if not is_pair(value, least):
        raise ValueError(f"{operation}: {name} must be two integers of at least {least}, got {value!r}")


def is_pair(value: Any, least: int) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_int, value)) and min(value) >= least


def is_int(value: object) -> bool:
    # The first question is the cheap one, and enough for nearly every call.
    return type(value) is int or (isinstance(value, int) and not isinstance(value, bool))
