"""Tensors in files: safetensors, which holds numbers only and runs no code when it is read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from .backend import CPU, Device, as_device, is_array, transfer
from .dtypes import as_dtype, bfloat16, bool_, float16, float32, float64, int8, int16, int32, int64, uint8
from .tensor import Tensor, wrap

_DTYPES = {
    "BOOL": bool_,
    "U8": uint8,
    "I8": int8,
    "I16": int16,
    "I32": int32,
    "I64": int64,
    "F16": float16,
    "BF16": bfloat16,
    "F32": float32,
    "F64": float64,
}


def save(tensors: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write named tensors or arrays to a safetensors file, as `load` and other libraries read it.

    The file is written beside its place and then moved there: an older one stays whole if writing fails.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"save: expected a dict of names and tensors, got {type(tensors).__name__}")
    arrays = {}
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise TypeError(f"save: expected names of type str, got {name!r}")
        array = value._data if isinstance(value, Tensor) else value
        if not is_array(array):
            raise TypeError(f"save: {name!r}: expected a tensor or array, got {type(value).__name__}")
        try:
            as_dtype(array.dtype)
        except TypeError as error:
            raise TypeError(f"save: {name!r}: {error}") from None
        host = np.asarray(array) if isinstance(array, np.generic) else transfer(array, CPU)
        arrays[name] = host if host.flags.c_contiguous else host.copy()
    target = os.path.abspath(os.fspath(path))
    if not os.path.isdir(os.path.dirname(target)):
        raise FileNotFoundError(f"save: {target}: its folder does not exist")
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=f".{os.path.basename(target)}.")
    try:
        os.close(handle)
        safetensors.numpy.save_file(arrays, temporary)
        os.chmod(temporary, _usual_mode())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _usual_mode() -> int:
    """The permissions that `open` would give a new file; temporary files have stricter ones."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def load(path: str | os.PathLike[str], device: str | Device | None = None) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, on `device` (the default device unless given)."""
    name = os.fspath(path)
    place = as_device(device)
    try:
        with open(name, "rb") as file:
            entries = safetensors.deserialize(file.read())
    except FileNotFoundError:
        raise FileNotFoundError(f"load: {name}: there is no such file") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"load: {name}: not a whole safetensors file ({error})") from None
    tensors = {}
    for key, entry in entries:
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"load: {name}: {key!r} has dtype {entry['dtype']}, which is not supported")
        array = np.frombuffer(bytearray(entry["data"]), dtype).reshape(entry["shape"])
        tensors[key] = wrap(transfer(array, place))
    return tensors
