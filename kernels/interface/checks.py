"""Which implementation serves an array, and what all arrays of a call must have in common."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np

from .. import cpu

Array = Any

FLOATS = ("float32", "float64", "float16", "bfloat16")


def side(array: Array) -> ModuleType:
    """The implementation for this type of array."""
    if isinstance(array, np.ndarray):
        return cpu
    from .. import cuda

    return cuda


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "cupy"


def same_kind(operation: str, **arrays: Array | None) -> Array:
    """Check that all are NumPy arrays or all are CuPy arrays; the last one."""
    given = {name: array for name, array in arrays.items() if array is not None}
    for name, array in given.items():
        if not _is_array(array):
            raise TypeError(f"{operation}: {name} must be a NumPy or CuPy array, got {type(array).__name__}")
    kinds = {name: "NumPy" if isinstance(array, np.ndarray) else "CuPy" for name, array in given.items()}
    if len(set(kinds.values())) > 1:
        listing = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
        raise TypeError(f"{operation}: all arrays must live on one device, got: {listing}")
    return array


def check_arrays(operation: str, **arrays: Array | None) -> None:
    """Check that all arrays are of one kind and of one floating-point dtype."""
    dtype = None
    for array in arrays.values():
        if array is None:
            continue
        if type(array) is not np.ndarray or (dtype is not None and array.dtype is not dtype):
            break
        dtype = array.dtype
    else:
        if dtype is not None and dtype.char in "fde":  # nearly every call; what follows finds out what is wrong
            return
    same_kind(operation, **arrays)
    dtypes = {name: array.dtype.name for name, array in arrays.items() if array is not None}
    for name, dtype in dtypes.items():
        if dtype not in FLOATS:
            raise TypeError(f"{operation}: {name} must be float32, float64, float16 or bfloat16, got {dtype}")
    if len(set(dtypes.values())) > 1:
        listing = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{operation}: all arrays must have one dtype, got: {listing}")


def is_plain(x: Any) -> bool:
    """Whether x is a NumPy array of float32 or float64."""
    return type(x) is np.ndarray and x.dtype.char in "fd"


def all_like(x: np.ndarray, arrays: Iterable[Array | None], shape: tuple[int, ...]) -> bool:
    """Whether those that are not None are NumPy arrays of this shape and of the dtype of x."""
    dtype = x.dtype
    for array in arrays:
        if array is not None and (type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape):
            return False
    return True


def check_vectors(operation: str, x: Array, **vectors: Array | None) -> None:
    """Check that vectors beside x, of a value per channel or column, have its dtype, or float32 beside a half type."""
    given = [vector for vector in vectors.values() if vector is not None]
    if all(type(vector) is type(x) and vector.dtype == x.dtype for vector in given):
        return
    same_kind(operation, x=x, **vectors)
    dtypes = {name: vector.dtype.name for name, vector in vectors.items() if vector is not None}
    allowed = [x.dtype.name] if x.dtype.itemsize > 2 else [x.dtype.name, "float32"]
    if len(set(dtypes.values())) > 1 or not set(dtypes.values()) <= set(allowed):
        wanted = " or all ".join(name for name in FLOATS if name in allowed)
        listing = ", ".join(f"{name} is {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{operation}: beside x of {x.dtype} vectors must be all {wanted}, got: {listing}")
