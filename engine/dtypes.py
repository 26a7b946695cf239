"""Types of elements and PyTorch's promotion between them: the one place where a result's dtype is decided."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

float16 = half = np.dtype(np.float16)
bfloat16 = np.dtype(ml_dtypes.bfloat16)
float32 = np.dtype(np.float32)
float64 = double = np.dtype(np.float64)
uint8 = np.dtype(np.uint8)
int8 = np.dtype(np.int8)
int16 = short = np.dtype(np.int16)
int32 = np.dtype(np.int32)
int64 = long = np.dtype(np.int64)
bool_ = np.dtype(np.bool_)

_BOOL, _INT, _FLOAT = 0, 1, 2
_CATEGORY = {bool_: _BOOL} | dict.fromkeys((uint8, int8, int16, int32, int64), _INT)
_CATEGORY |= dict.fromkeys((float16, bfloat16, float32, float64), _FLOAT)

_default = float32


def set_default_dtype(dtype: Any) -> None:
    """Set the dtype of new float tensors: float16, bfloat16, float32 or float64."""
    global _default
    dtype = as_dtype(dtype)
    if _CATEGORY[dtype] != _FLOAT:
        raise TypeError(f"set_default_dtype: expected a floating dtype, got {dtype}")
    _default = dtype


def get_default_dtype() -> np.dtype:
    """The dtype of new float tensors."""
    return _default


def as_dtype(dtype: Any) -> np.dtype:
    """`dtype` (a NumPy dtype, scalar type, name, or Python's bool, int, float) as a supported NumPy dtype."""
    if dtype is float:
        return _default
    try:
        result = bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"unknown dtype {dtype!r}: expected one of {_names()}") from error
    if result not in _CATEGORY:
        raise TypeError(f"dtype {result} is not supported: expected one of {_names()}")
    return result


def _names() -> str:
    return ", ".join(str(dtype) for dtype in _CATEGORY)


def is_supported(dtype: np.dtype) -> bool:
    """Whether there are tensors of `dtype`."""
    return dtype in _CATEGORY


def is_floating(dtype: np.dtype) -> bool:
    """Whether `dtype` can carry a gradient."""
    return _CATEGORY.get(dtype) == _FLOAT


def is_half(dtype: np.dtype) -> bool:
    """Whether `dtype` has 16 bits, so that sums and products of it accumulate in float32."""
    return dtype is float16 or dtype is bfloat16 or dtype in (float16, bfloat16)


def promote_types(first: np.dtype, second: np.dtype) -> np.dtype:
    """The dtype in which arrays of two dtypes meet: within a kind the wider, across kinds the higher kind's own."""
    if first == second:
        return first
    difference = _CATEGORY[first] - _CATEGORY[second]
    if difference > 0:
        return first
    if difference < 0:
        return second
    if {first, second} == {float16, bfloat16}:
        return float32
    return np.promote_types(first, second)


def can_cast(source: np.dtype, target: np.dtype) -> bool:
    """Whether values of `source` may be written in place into `target`: never from a higher kind to a lower one."""
    return _CATEGORY[source] <= _CATEGORY[target]


def result_type(*operands: Any) -> np.dtype:
    """PyTorch's promotion of arrays and Python scalars.

    Arrays with dimensions decide; 0-d arrays and then Python scalars count only where their kind (bool < int < float)
    is higher than what was decided before them, and a Python float then means the default dtype.
    """
    best: list[np.dtype | None] = [None, None, None]
    dtype: np.dtype | None
    for operand in operands:
        if isinstance(operand, bool):
            rank, dtype = 2, bool_
        elif isinstance(operand, int):
            rank, dtype = 2, int64
        elif isinstance(operand, float):
            rank, dtype = 2, _default
        else:
            rank, dtype = (0 if operand.ndim else 1), operand.dtype
        known = best[rank]
        best[rank] = dtype if known is None else promote_types(known, dtype)
    result: np.dtype | None = None
    for dtype in best:
        if dtype is not None and (result is None or _CATEGORY[dtype] > _CATEGORY[result]):
            result = dtype
    if result is None:
        raise TypeError("result_type: expected at least one array or scalar")
    return result
