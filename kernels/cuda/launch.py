"""Check and launch the kernels in `src/`.

A wrapper prepares its arguments, then calls `launch`. What runs the kernel is `launcher`, which tests replace
by one that runs the same source on the host.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from .cublaslt import NewWorkspace, Pointers, Product
from .cupy_launcher import CupyLauncher
from .kernel import Kernel
from .tensor_map import TensorMap

MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_THREADS = 1024

C_TYPES = {
    np.dtype(np.float32): "float",
    np.dtype(np.float64): "double",
    np.dtype(np.float16): "float16",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
    np.dtype(np.uint8): "uint8",
    np.dtype(np.int16): "int16",
    np.dtype(np.int32): "int32",
    np.dtype(np.int64): "int64",
    np.dtype(np.bool_): "bool",
}
FLOAT_TYPES = ("float", "double", "float16", "bfloat16")


class Launcher(Protocol):
    """What runs kernels. `run` gets arguments that `launch` has checked."""

    def is_array(self, value: Any) -> bool: ...

    def device(self, array: Any) -> Any: ...

    def pointer(self, array: Any) -> int: ...

    def empty(self, shape: Sequence[int], dtype: Any, like: Any) -> Any: ...

    def free_cached_memory(self, device: Any) -> None: ...

    def shared_bytes(self, array: Any) -> int: ...

    def capability(self, array: Any) -> int: ...

    def encode(self, tensor_map: TensorMap, array: Any) -> np.ndarray: ...

    def description(self, array: Any) -> str: ...

    def captures(self, array: Any) -> bool: ...

    def seconds(self, run: Callable[[], None], like: Any) -> float: ...

    def flat(self, array: Any, size: int) -> Any: ...

    def multiply(self, product: Product, pointers: Pointers, like: Any, new_workspace: NewWorkspace) -> bool: ...

    def run(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[Any],
        shared_bytes: int,
        device: Any,
        reached: Sequence[Any] = (),
    ) -> None: ...


launcher: Launcher = CupyLauncher()


def empty(shape: Sequence[int], dtype: Any, like: Any) -> Any:
    """A new C-contiguous array on the device of the array `like`, with arbitrary contents."""
    if not launcher.is_array(like):
        raise TypeError(f"CUDA kernels take CuPy arrays, got {type(like).__module__}.{type(like).__name__}")
    return _allocated(lambda: launcher.empty(shape, dtype, like), shape, dtype, like)


def shared_bytes(array: Any) -> int:
    """How much shared memory a block can have on the array's device. Sums must not have their order from it."""
    return launcher.shared_bytes(array)


def capability(array: Any) -> int:
    """10 times the compute capability of the array's device: kernels whose `least` is above it do not run there."""
    return launcher.capability(array)


def description(array: Any) -> str:
    """The array's device, its driver and CuPy: what times and choices that are kept depend on."""
    return launcher.description(array)


def captures(array: Any) -> bool:
    """Whether launches on the array's device go into a graph now, which is no time to measure."""
    return launcher.captures(array)


def seconds(run: Callable[[], None], like: Any) -> float:
    """How long the device of the array `like` takes for what `run` launches. Waits for it."""
    return launcher.seconds(run, like)


def flat(array: Any) -> Any:
    """The memory from an array's first element to its last as a vector: how kernels get a strided view.

    The strides must not be negative.
    """
    itemsize = array.dtype.itemsize
    steps = ((size - 1) * stride // itemsize for size, stride in zip(array.shape, array.strides, strict=True))
    return launcher.flat(array, 1 + sum(steps))


def multiply(product: Product, pointers: Pointers, like: Any) -> bool:
    """Let cuBLASLt compute a product on the device of the array `like`; False where it does not."""

    def new_workspace(nbytes: int) -> tuple[int, Any]:
        workspace = empty((nbytes,), np.uint8, like)
        return launcher.pointer(workspace), workspace

    return launcher.multiply(product, pointers, like, new_workspace)


def encode(tensor_map: TensorMap, array: Any) -> np.ndarray:
    """A map of the array for bulk tensor copies, as an argument of a launch. The array must be named in `reached`."""
    return launcher.encode(tensor_map, array)


def contiguous(array: Any) -> Any:
    """The array itself where it is C-contiguous and aligned, else a copy that is."""
    if array.flags.c_contiguous and getattr(array.flags, "aligned", True):
        return array
    return _allocated(lambda: array.copy(order="C"), array.shape, array.dtype, array)


def _allocated(make: Callable[[], Any], shape: Sequence[int], dtype: Any, like: Any) -> Any:
    """`make()`, an array where `like` is; if memory is short, once more after what is cached was given back."""
    try:
        return make()
    except MemoryError:
        device = launcher.device(like)
        launcher.free_cached_memory(device)
    try:
        return make()
    except MemoryError as error:
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        message = (
            f"{_operation()}: out of memory on {device}: wanted {nbytes:,} bytes for an array of shape {tuple(shape)} "
            f"and type {np.dtype(dtype)}; cached memory was given back already ({error})"
        )
        raise _with_message(type(error), message) from None


def _operation() -> str:
    """The function of this package that was called from outside, for a message."""
    name = "launch"
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(f"{__package__}."):
        name, frame = frame.f_code.co_name, frame.f_back
    return name


def _with_message(kind: type[MemoryError], message: str) -> MemoryError:
    """An error that handlers of `kind` catch. CuPy's makes its message from numbers: this one has its own."""

    def init(self: MemoryError, text: str) -> None:
        MemoryError.__init__(self, text)

    fields = {"__init__": init, "__str__": lambda self: self.args[0], "__module__": kind.__module__}
    return type(kind.__name__, (kind,), fields)(message)


def aligned(array: Any, nbytes: int) -> bool:
    """Whether the address is a multiple of `nbytes`, as vector loads need. A slice may break that."""
    return launcher.pointer(array) % nbytes == 0


def c_type(dtype: Any) -> str:
    """The name in `common.cuh` of the C++ type of a dtype."""
    try:
        return C_TYPES[np.dtype(dtype)]
    except KeyError:
        known = ", ".join(map(str, C_TYPES))
        raise TypeError(f"no kernel takes {np.dtype(dtype)}; known are {known}") from None


def struct(dtype: np.dtype, **fields: Any) -> np.ndarray:
    """A C++ struct to be passed by value. `dtype` was made with `align=True`; every field must be given."""
    if fields.keys() != set(dtype.names or ()):
        raise TypeError(f"the struct has the fields {dtype.names}, given were {tuple(fields)}")
    return np.array([tuple(fields[name] for name in dtype.names or ())], dtype)


def divide_up(a: int, b: int) -> int:
    """a / b rounded up: how many tiles of b cover a."""
    return -(-a // b)


def launch(
    kernel: Kernel,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    shared_bytes: int = 0,
    reached: Sequence[Any] = (),
) -> None:
    """Run `kernel` on the device of its array arguments.

    `grid` and `block` have one to three dimensions; an empty grid runs nothing. Each argument is a
    C-contiguous array (passed as a pointer), None (a null pointer), a NumPy scalar of the parameter's exact
    type, or a `struct`. `reached` are the arrays whose addresses stand in a struct or in another array, which the
    caller has checked.
    """
    if 0 in grid:
        return
    grid3, block3 = _three(grid), _three(block)
    if any(not 1 <= size <= limit for size, limit in zip(grid3, MAX_GRID, strict=True)):
        raise ValueError(f"{kernel}: grid {tuple(grid)} is outside CUDA's limits {MAX_GRID}")
    if min(block3) < 1 or block3[2] > 64 or block3[0] * block3[1] * block3[2] > MAX_THREADS:
        raise ValueError(f"{kernel}: block {tuple(block)} is outside CUDA's limit of {MAX_THREADS} threads")
    arrays = [*(_checked(kernel, position, arg) for position, arg in enumerate(args)), *reached[:1]]
    devices = [launcher.device(array) for array in arrays if array is not None]
    if not devices:
        raise TypeError(f"{kernel}: needs at least one array argument to know its device")
    if any(device != devices[0] for device in devices):
        raise ValueError(f"{kernel}: arrays are on different devices: {', '.join(map(str, devices))}")
    launcher.run(kernel, grid3, block3, args, shared_bytes, devices[0], reached)


def _checked(kernel: Kernel, position: int, arg: Any) -> Any:
    """`arg` where it is an array, None where it is another permitted argument; raises for anything else."""
    if launcher.is_array(arg):
        if not arg.flags.c_contiguous:
            layout = f"shape {arg.shape}, strides {arg.strides}"
            raise ValueError(f"{kernel}: argument {position} is not C-contiguous: {layout}")
        c_type(arg.dtype)
        return arg
    is_struct = isinstance(arg, np.ndarray) and arg.dtype.names is not None and arg.size == 1
    if arg is None or is_struct or (isinstance(arg, np.generic) and arg.dtype.kind in "biuf"):
        return None
    raise TypeError(
        f"{kernel}: argument {position} is {type(arg).__name__}; expected an array of the launcher, None, "
        "a NumPy scalar such as np.int32(3), or a one-element structured array"
    )


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*sizes, 1, 1)[:3]
    return int(x), int(y), int(z)
