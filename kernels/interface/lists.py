"""What the arrays of lists must have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .checks import FLOATS, Array, check_arrays, same_kind

NUMBERS = (int, float, np.integer, np.floating)


def check_lists(operation: str, **lists: Sequence[Array] | None) -> None:
    """Check that all arrays of all lists are of one kind and of one floating-point dtype."""
    given = {name: arrays for name, arrays in lists.items() if arrays is not None}
    named = _representatives(given)
    if named:
        check_arrays(operation, **named)


def check_each(operation: str, name: str, arrays: Sequence[Array]) -> None:
    """Check that all arrays are of one kind and each of a floating-point dtype."""
    named = _representatives({name: arrays})
    if not named:
        return
    same_kind(operation, **named)
    for key, array in named.items():
        if array.dtype.name not in FLOATS:
            raise TypeError(f"{operation}: {key} must be float32, float64, float16 or bfloat16, got {array.dtype}")


def check_writeable(operation: str, **lists: Sequence[Array] | None) -> None:
    """Check that no NumPy array is read-only."""
    for name, arrays in lists.items():
        for i, array in enumerate(arrays or ()):
            if isinstance(array, np.ndarray) and not array.flags.writeable:
                raise ValueError(f"{operation}: {name}[{i}] is read-only, and would be changed in place")


def check_number_or_array(operation: str, like: Array, **values: Any) -> None:
    """Check that each value is a number, None, or an array of one number of the kind of `like`."""
    for name, value in values.items():
        if value is None or isinstance(value, NUMBERS):
            continue
        same_kind(operation, params=like, **{name: value})
        if value.shape != ():
            raise ValueError(f"{operation}: {name} must be a number or a 0-d array, got the shape {value.shape}")


def _representatives(lists: dict[str, Sequence[Array]]) -> dict[str, Array]:
    """By name the first array of each type and dtype: there may be hundreds, and nearly always all are alike."""
    found = {}
    for name, arrays in lists.items():
        for i, array in enumerate(arrays):
            kind = type(array), id(getattr(array, "dtype", None))
            if kind not in found:
                found[kind] = f"{name}[{i}]", array
    return dict(found.values())
