"""Compile and launch the kernels in `src/`: the only place that talks to CuPy's compiler.

A wrapper prepares its arguments, then calls `launch`. What runs the kernel is `launcher`, which tests replace
by one that runs the same source on the host.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import math
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from . import cublaslt, cupy_cache
from .cublaslt import Pointers, Product
from .tensor_map import TensorMap
from .tensor_map import encode as encode_tensor_map

SOURCE_FOLDER = Path(__file__).parent / "src"

# The options of every kernel. CuPy adds the architecture, its include folders and -ftz=true.
OPTIONS = ("--std=c++17",)

OLDEST_CAPABILITY = 70  # of a device: 10 times its compute capability

MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_THREADS = 1024
DEFAULT_SHARED_BYTES = 48 * 1024  # more than this must be asked for, once per kernel and device

# Before a measurement: more than any L2 holds, and about half a millisecond of work.
_BUSY_BYTES = 256 * 2**20
_BUSY_TIMES = 4

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

_INCLUDE = re.compile(r'^#include "([^"]+)"[^\n]*$', re.MULTILINE)


@dataclass(frozen=True)
class Kernel:
    """One variant of a kernel: a file, and the C++ name of a function in it with its template arguments.

    `least` is the capability that a device needs to run it; `only` the architecture whose instructions it has where
    no newer one has them, such as "sm_90a".
    """

    source: str
    name: str
    folder: Path = SOURCE_FOLDER
    least: int = OLDEST_CAPABILITY
    only: str | None = None

    def runs_on(self, capability: int) -> bool:
        return capability == self.least if self.only else capability >= self.least

    def text(self) -> str:
        """The source with our own headers put in place of their `#include` lines."""
        return _inlined(self.folder / self.source)

    def __str__(self) -> str:
        return f"{self.name} ({self.source})"


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

    def flat(self, array: Any) -> Any: ...

    def multiply(self, product: Product, pointers: Pointers, like: Any) -> bool: ...

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


class CupyLauncher:
    """Runs kernels on CuPy's arrays: current stream, no synchronisation. CuPy keeps the binaries on disk."""

    def __init__(self) -> None:
        self._functions: dict[tuple[Kernel, int], Any] = {}
        self._shared_limits: dict[tuple[Kernel, int], int] = {}
        self._most_shared: dict[int, int] = {}
        self._capabilities: dict[int, int] = {}

    def is_array(self, value: Any) -> bool:
        import cupy

        return isinstance(value, cupy.ndarray)

    def device(self, array: Any) -> Any:
        return array.device

    def pointer(self, array: Any) -> int:
        return array.data.ptr

    def empty(self, shape: Sequence[int], dtype: Any, like: Any) -> Any:
        import cupy

        with like.device:
            return cupy.empty(tuple(shape), dtype)

    def free_cached_memory(self, device: Any) -> None:
        import cupy

        with device:
            cupy.get_default_memory_pool().free_all_blocks()

    def shared_bytes(self, array: Any) -> int:
        device = array.device
        if device.id not in self._most_shared:
            self._most_shared[device.id] = device.attributes["MaxSharedMemoryPerBlockOptin"]
        return self._most_shared[device.id]

    def capability(self, array: Any) -> int:
        device = array.device
        if device.id not in self._capabilities:
            self._capabilities[device.id] = int(device.compute_capability)
        return self._capabilities[device.id]

    def encode(self, tensor_map: TensorMap, array: Any) -> np.ndarray:
        return encode_tensor_map(tensor_map, self.pointer(array))

    def description(self, array: Any) -> str:
        return _description(array.device.id)

    def captures(self, array: Any) -> bool:
        import cupy

        with array.device:
            return cupy.cuda.get_current_stream().is_capturing()

    def seconds(self, run: Callable[[], None], like: Any) -> float:
        import cupy

        with like.device:
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            _keep_busy()
            start.record()
            run()
            end.record()
            end.synchronize()
            return cupy.cuda.get_elapsed_time(start, end) / 1e3

    def flat(self, array: Any) -> Any:
        import cupy

        return cupy.ndarray(reach(array), array.dtype, memptr=array.data)

    def multiply(self, product: Product, pointers: Pointers, like: Any) -> bool:
        import cupy

        library, device = cublaslt.library(), like.device
        if library is None:
            return False
        nbytes = cublaslt.workspace_bytes(self.capability(like))

        def new_workspace() -> tuple[int, Any]:
            workspace = empty((nbytes,), np.uint8, like)
            return workspace.data.ptr, workspace

        with device:
            stream = cupy.cuda.get_current_stream().ptr
            return library.multiply(product, pointers, device.id, stream, nbytes, new_workspace)

    def run(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[Any],
        shared_bytes: int,
        device: Any,
        reached: Sequence[Any] = (),
    ) -> None:
        with device:
            function = self.load(kernel, device.id)
            if shared_bytes > self._shared_limits.get((kernel, device.id), DEFAULT_SHARED_BYTES):
                function.max_dynamic_shared_size_bytes = shared_bytes
                self._shared_limits[kernel, device.id] = shared_bytes
            # CuPy would pass None as a missing argument instead of a null pointer.
            values = tuple(np.uintp(0) if arg is None else arg for arg in args)
            function(grid, block, values, shared_mem=shared_bytes)

    def load(self, kernel: Kernel, device_id: int) -> Any:
        """The compiled kernel on the current device, whose number is `device_id`."""
        function = self._functions.get((kernel, device_id))
        if function is None:
            _require_capability(kernel, device_id)
            try:
                function = _compiled(kernel)
            except OSError as error:
                if not cupy_cache.keep_in_memory(error):
                    raise
                function = _compiled(kernel)
            self._functions[kernel, device_id] = function
        return function


def _compiled(kernel: Kernel) -> Any:
    import cupy

    if kernel.only:
        return _compiled_for(kernel, kernel.only)
    module = cupy.RawModule(code=kernel.text(), options=OPTIONS, name_expressions=(kernel.name,))
    try:
        return module.get_function(kernel.name)
    except cupy.cuda.compiler.CompileException as error:
        raise _compile_error([kernel], error) from error


@cache
def _description(device_id: int) -> str:
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(device_id)["name"].decode()
    return f"{name}, driver {cupy.cuda.runtime.driverGetVersion()}, CuPy {cupy.__version__}"


def _keep_busy() -> None:
    """Give the device work for as long as launches take, so that it waits for none. Its L2 is cold after that."""
    import cupy

    try:
        scratch = cupy.empty(_BUSY_BYTES, np.uint8)
    except MemoryError:  # then launches are measured too, as a program would wait for them
        return
    for _ in range(_BUSY_TIMES):
        scratch.data.memset_async(0, scratch.nbytes)


def _compiled_for(kernel: Kernel, arch: str) -> Any:
    """As `_compiled`, for an architecture that CuPy does not pass to the compiler; kept beside what CuPy keeps."""
    import cupy

    version = importlib.import_module("cupy_backends.cuda.libs.nvrtc").getVersion()
    key = "\0".join([str(version), *OPTIONS, arch, kernel.name, kernel.text()])
    path = cupy_cache.folder() / f"adjoint-{hashlib.sha256(key.encode()).hexdigest()[:40]}.cubin"
    names = path.with_suffix(".symbol")
    if not (path.exists() and names.exists()):
        compiled = compile_for([kernel], arch)[kernel]
        if os.environ.get("CUPY_CACHE_IN_MEMORY") == "1":
            path = Path(tempfile.mkdtemp(prefix="adjoint-")) / path.name
            names = path.with_suffix(".symbol")
        for target, content in ((path, compiled.cubin), (names, compiled.symbol.encode())):
            temporary = target.with_name(f"{target.name}-{os.getpid()}-{threading.get_ident()}")
            temporary.write_bytes(content)
            temporary.replace(target)
    return cupy.RawModule(path=str(path)).get_function(names.read_text())


def _require_capability(kernel: Kernel, device_id: int) -> None:
    import cupy

    capability = int(cupy.cuda.Device(device_id).compute_capability)
    if not kernel.runs_on(capability):
        name = cupy.cuda.runtime.getDeviceProperties(device_id)["name"].decode()
        newer = "and no other" if kernel.only else "or newer"
        raise RuntimeError(
            f"{kernel} needs compute capability {_version(kernel.least)} {newer}; device {device_id}, {name}, has "
            f"{_version(capability)}. NumPy arrays work everywhere"
        )


def _version(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"


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
    """The memory from an array's first element to its last as a vector: how kernels get a strided view."""
    return launcher.flat(array)


def reach(array: Any) -> int:
    """How many elements lie from the first to the last of an array whose strides are not negative."""
    itemsize = array.dtype.itemsize
    return 1 + sum((size - 1) * stride // itemsize for size, stride in zip(array.shape, array.strides, strict=True))


def multiply(product: Product, pointers: Pointers, like: Any) -> bool:
    """Let cuBLASLt compute a product on the device of the array `like`; False where it does not."""
    return launcher.multiply(product, pointers, like)


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


@dataclass(frozen=True)
class Compiled:
    """One kernel in the machine code of one architecture, and what the compiler's log says of it."""

    cubin: bytes
    symbol: str  # the kernel's name in it
    log: str


def compile_for(kernels: Sequence[Kernel], arch: str) -> dict[Kernel, Compiled]:
    """Compile kernels of one source for an architecture such as "sm_90", which needs no device.

    Raises RuntimeError with the compiler's log if they do not compile.
    """
    from cupy._core.core import assemble_cupy_compiler_options
    from cupy.cuda import compiler

    # What CuPy itself passes for a RawModule, so that the report is about the code that will run.
    options = assemble_cupy_compiler_options(OPTIONS)
    options += ("-ftz=true", f"-arch={arch}", "--device-as-default-execution-space", "-Xptxas", "-v")
    names = tuple(kernel.name for kernel in kernels)
    program = compiler._NVRTCProgram(kernels[0].text(), kernels[0].source, name_expressions=names, method="cubin")
    log = io.StringIO()
    try:
        cubin, symbols = program.compile(options, log)
    except compiler.CompileException as error:
        raise _compile_error(kernels, error, f" for {arch}") from error
    entries = {entry.partition("'")[0]: entry for entry in log.getvalue().split("Compiling entry function '")}
    cubin += b"\0"  # CuPy takes the last byte, which is zero, for the end of a text
    found = {kernel: symbols[kernel.name] for kernel in kernels}
    return {kernel: Compiled(cubin, symbol, entries[symbol]) for kernel, symbol in found.items()}


def _compile_error(kernels: Sequence[Kernel], error: Exception, target: str = "") -> RuntimeError:
    hint = ""
    if "could not open source file" in str(error):
        hint = "\nCUDA's headers are missing: pip install 'cupy-cuda12x[ctk]' or 'cupy-cuda13x[ctk]'"
    elif "invalid value for --gpu-architecture" in str(error):
        hint = "\nThis NVRTC does not know the architecture: Volta needs cupy-cuda12x, a new device a newer CuPy"
    names = ", ".join(map(str, kernels))
    return RuntimeError(f"{names}: compilation failed{target}:\n{error}{hint}")


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


@cache
def _inlined(path: Path) -> str:
    # CuPy's cache knows the source's text only: a header left as an #include could change unseen.
    seen: set[str] = set()

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in seen:
            return ""
        seen.add(name)
        return _INCLUDE.sub(replacement, (SOURCE_FOLDER / name).read_text())

    return _INCLUDE.sub(replacement, path.read_text())
