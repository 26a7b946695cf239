"""Devices and their array modules: NumPy on the CPU, CuPy on CUDA. The one place that knows which is there."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np

from .recorder import refuse

_CHOICES = ("numpy", "cupy", "auto")


class Device:
    """Where arrays live: `Device("cpu")`, `Device("cuda")` or `Device("cuda:1")`."""

    __slots__ = ("index", "type")

    type: str
    index: int | None

    def __init__(self, type: str | Device, index: int | None = None) -> None:
        if isinstance(type, Device):
            index, type = type.index, type.type
        name, colon, number = str(type).partition(":")
        if colon and number.isdigit() and index is None:
            index = int(number)
        elif colon:
            name = ""
        if name not in ("cpu", "cuda") or (name == "cpu" and index not in (None, 0)):
            raise ValueError(f'device: expected "cpu", "cuda" or "cuda:N", got {str(type)!r}')
        self.type = name
        self.index = None if name == "cpu" else index

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            other = Device(other)
        return isinstance(other, Device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"device({str(self)!r})"


CPU = Device("cpu")


@functools.cache
def cupy() -> ModuleType:
    """CuPy with a device that answers; a RuntimeError that says what is missing and how to get it otherwise."""
    advice = (
        "install it with `pip install 'cupy-cuda12x[ctk]'` or `'cupy-cuda13x[ctk]'` (as the driver allows), "
        "or choose NumPy with ADJOINT_BACKEND=numpy"
    )
    if "cupy" not in sys.modules and importlib.util.find_spec("cupy"):
        from ..kernels.cuda import cupy_cache  # all of CUDA's wrappers come with it, which few imports need

        cupy_cache.prepare()
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(f"the CUDA backend needs CuPy, which cannot be imported ({error}); {advice}") from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # the runtime raises its own class, which differs by what is missing
        raise RuntimeError(
            f"the CUDA backend needs an NVIDIA GPU with its driver, and none answers ({error}); "
            "check `nvidia-smi`, or choose NumPy with ADJOINT_BACKEND=numpy"
        ) from error
    if count == 0:
        raise RuntimeError("the CUDA backend found no GPU (CUDA_VISIBLE_DEVICES hides all?)")
    return cupy


def cuda_is_available() -> bool:
    """Whether CuPy is installed and a GPU answers."""
    try:
        cupy()
    except RuntimeError:
        return False
    return True


def cuda_is_in_use() -> bool:
    """Whether a GPU answers and there may be arrays on it: without CuPy imported there are none."""
    return "cupy" in sys.modules and cuda_is_available()


_chosen: Device | None = None


def set_default_device(device: str | Device | None) -> None:
    """Make new tensors on `device` from now on; None returns to what ADJOINT_BACKEND says."""
    global _chosen
    _chosen = None if device is None else as_device(device)


def default_device() -> Device:
    """The device of new tensors: what `set_default_device` said, else what ADJOINT_BACKEND says."""
    return _chosen or _device_from_environment()


@functools.cache
def _device_from_environment() -> Device:
    """ADJOINT_BACKEND = numpy | cupy | auto (CuPy where a GPU answers, else NumPy)."""
    choice = os.environ.get("ADJOINT_BACKEND", "auto")
    if choice not in _CHOICES:
        raise ValueError(f"ADJOINT_BACKEND: expected one of {', '.join(_CHOICES)}, got {choice!r}")
    if choice == "numpy" or (choice == "auto" and not cuda_is_available()):
        return CPU
    return Device("cuda", cupy().cuda.runtime.getDevice())


def as_device(device: str | Device | None) -> Device:
    """`device` as a Device that is there, with its index; None means the default device."""
    if device is None:
        return default_device()
    device = Device(device)
    if device.type == "cuda":
        module = cupy()
        count = module.cuda.runtime.getDeviceCount()
        index = module.cuda.runtime.getDevice() if device.index is None else device.index
        if index >= count:
            raise ValueError(f"device: cuda:{index} asked for, but there are {count} GPUs")
        return Device("cuda", index)
    return device


def array_module(array: Any) -> ModuleType:
    """numpy or cupy, whichever made `array`."""
    return np if isinstance(array, np.ndarray | np.generic) else cupy()


def is_array(value: Any) -> bool:
    """Whether `value` is a NumPy or CuPy array (a NumPy scalar counts as a 0-d array)."""
    return isinstance(value, np.ndarray | np.generic) or type(value).__module__.partition(".")[0] == "cupy"


def device_of(array: Any) -> Device:
    """The device on which `array` lives."""
    return CPU if isinstance(array, np.ndarray) else Device("cuda", array.device.id)


def on_device(device: Device) -> AbstractContextManager[Any]:
    """A context in which new arrays of `module_of(device)` are made on `device`."""
    return nullcontext() if device.type == "cpu" else cupy().cuda.Device(device.index)


def module_of(device: Device) -> ModuleType:
    """numpy or cupy, whichever serves `device`."""
    return np if device.type == "cpu" else cupy()


def transfer(array: Any, device: Device) -> Any:
    """`array` on `device`: itself where it is there, else a copy."""
    if device_of(array) == device:
        return array
    refuse("copy from the GPU" if device.type == "cpu" else "copy to the GPU")
    if device.type == "cpu":
        return cupy().asnumpy(array)
    with on_device(device):
        return cupy().asarray(array)


def constant(array: Any, device: Device) -> Any:
    """A number of the program, as an array of no dimensions, on `device`: CuPy fills it in, which a graph can do."""
    if not isinstance(array, np.ndarray) or device.type == "cpu":
        return transfer(array, device)
    with on_device(device):
        return cupy().asarray(array)


def device_count() -> int:
    """The number of GPUs that answer; 0 without CuPy or a driver."""
    return cupy().cuda.runtime.getDeviceCount() if cuda_is_available() else 0


def synchronize() -> None:
    """Wait for the work of the current stream of the current GPU; nothing to wait for without one."""
    refuse("wait for the GPU")
    if cuda_is_available():
        cupy().cuda.get_current_stream().synchronize()
