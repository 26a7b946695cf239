"""The arguments of an elementwise operation brought to one device and one dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from .backend import array_module, device_of, is_array, transfer
from .dtypes import is_supported, result_type


def promote(operation: type, arrays: list[Any]) -> list[Any]:
    """`arrays` in their common dtype; a Python number stays one where it is weak in NumPy as it is in PyTorch."""
    if len(arrays) == 2:
        a, b = arrays
        if type(a) is np.ndarray:
            kind = type(b)
            if kind is np.ndarray:
                if a.dtype is b.dtype:
                    return arrays
            elif a.dtype.kind == "f" and (kind is float or kind is int):
                return arrays
    elif len(arrays) == 1 and type(arrays[0]) is np.ndarray:
        return arrays
    name = operation.__name__
    values = [_plain(name, value) for value in arrays]
    dtype = result_type(*values)
    values = on_one_device(name, values)
    like = next((value for value in values if is_array(value)), None)
    if like is None or dtype.kind == "V":  # numbers alone, or bfloat16, beside which NumPy's numbers are not weak
        module = np if like is None else array_module(like)
        values = [value if is_array(value) else module.asarray(value, dtype=dtype) for value in values]
    return [value.astype(dtype) if is_array(value) and value.dtype != dtype else value for value in values]


def on_one_device(name: str, values: list[Any]) -> list[Any]:
    """`values` with 0-d CPU arrays moved to the device of the others; an error where arrays live on several."""
    devices: set[Any] = {device_of(value) for value in values if is_array(value) and value.ndim}
    devices = devices or {device_of(value) for value in values if is_array(value)}
    if len(devices) > 1:
        places = ", ".join(sorted(str(device) for device in devices))
        raise RuntimeError(f"{name}: expected all tensors on one device, got {places}")
    if not devices:
        return values
    (device,) = devices
    return [transfer(value, device) if is_array(value) else value for value in values]


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if is_array(value):
        if not is_supported(value.dtype):
            raise TypeError(f"{name}: there are no tensors of dtype {value.dtype}; convert the array first")
        return value
    raise TypeError(f"{name}: expected tensors, arrays or numbers, got {type(value).__name__}")
