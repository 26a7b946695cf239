"""What the arrays of lists must have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .checks import FLOATS, Array, check_arrays, same_kind

NUMBERS = (int, float, np.integer, np.floating)
_FLOAT_CHARS = {"f", "d", "e"}
_ONE_FLOAT: tuple[set[Any], ...] = (set(), *({np.dtype(name)} for name in ("float32", "float64", "float16")))


def check_lists(operation: str, **lists: Sequence[Array] | None) -> None:
    """Check that all arrays of all lists are of one kind and of one floating-point dtype."""
    given = {name: arrays for name, arrays in lists.items() if arrays is not None}
    everything = [array for arrays in given.values() for array in arrays]
    if len(set(map(type, everything))) <= 1 and _common_float(everything):
        return
    check_arrays(operation, **_named(given))


def check_each(operation: str, name: str, arrays: Sequence[Array]) -> None:
    """Check that all arrays are of one kind and each of a floating-point dtype."""
    if set(map(type, arrays)) == {np.ndarray} and {array.dtype.char for array in arrays} <= _FLOAT_CHARS:
        return
    named = _named({name: arrays})
    if not named:
        return
    same_kind(operation, **named)
    for key, array in named.items():
        if array.dtype.name not in FLOATS:
            raise TypeError(f"{operation}: {key} must be float32, float64, float16 or bfloat16, got {array.dtype}")


def check_number_or_array(operation: str, like: Array, **values: Any) -> None:
    """Check that each value is a number, None, or an array of one number of the kind of `like`."""
    for name, value in values.items():
        if value is None or isinstance(value, NUMBERS):
            continue
        same_kind(operation, params=like, **{name: value})
        if value.shape != ():
            raise ValueError(f"{operation}: {name} must be a number or a 0-d array, got the shape {value.shape}")


def _common_float(arrays: Sequence[Any]) -> bool:
    return {getattr(array, "dtype", None) for array in arrays} in _ONE_FLOAT


def _named(lists: dict[str, Sequence[Array]]) -> dict[str, Array]:
    return {f"{name}[{i}]": array for name, arrays in lists.items() for i, array in enumerate(arrays)}
