"""Run a kernel's source on NumPy arrays with the host's C++ compiler."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from adjoint.kernels.cuda.cublaslt import CublasLt, NewWorkspace, Pointers, Product, workspace_bytes
from adjoint.kernels.cuda.kernel import Kernel
from adjoint.kernels.cuda.tensor_map import LINE, TensorMap
from adjoint.kernels.report.occupancy import LIMITS

from . import trace as tracing
from .build import PLAIN, SANITIZE, TRACE, Entry, entry

Index = tuple[int, int, int]
# How many blocks to run at both ends of a grid, or which of a grid's blocks.
Ends = int | Callable[[Index], Iterable[Index]]

STREAM = 0x57EA  # the number of the one stream there is


# `TensorMap` of wgmma.h.
_TENSOR_MAP = np.dtype(
    [
        *(("address", np.int64), ("strides", np.int64, 3), ("dims", np.int32, 4), ("box", np.int32, 4)),
        *((name, np.int32, 2) for name in ("lower", "upper", "steps")),
        *(("window", np.int32), ("padding", np.int32, 9)),
    ]
)


class CudaOnHostError(RuntimeError):
    """A kernel did what no device, or not this one, can run: a barrier that not all reach, a wrong mask, a trap."""


class HostLauncher:
    """Takes the place of `CupyLauncher`. New arrays are filled with not-a-number.

    `seed` shuffles the order of blocks and threads, and holds one warp of every other block back until no other
    can run (None: all in order). `sanitize` builds with AddressSanitizer and UBSan, whose library must have been
    loaded before Python: see `run_under_sanitizers`.

    `trace` counts what memory accesses would cost on a GPU; `traces` has a `Trace` for each launch.

    `ends_only` is for arrays too large to fill: it runs only so many of the first and of the last blocks of a
    grid, or the blocks (x, y, z) that it returns for a grid, and leaves new arrays as the system gives them, so
    that pages which no block touches take no memory.

    `dry` runs nothing: `launches` says what would have been.

    `cublaslt` is the library that matrix products are left to, on the stream STREAM (None: our own kernels).

    `capability` is that of the device to stand in for: its blocks get as much shared memory.
    """

    def __init__(
        self,
        seed: int | None = None,
        sanitize: bool = False,
        trace: bool = False,
        ends_only: Ends | None = None,
        dry: bool = False,
        capability: int = 90,
        cublaslt: CublasLt | None = None,
    ) -> None:
        if trace and (sanitize or seed is not None):
            raise ValueError("HostLauncher: traced runs are in order and without sanitizers")
        self.seed = seed
        self.build = SANITIZE if sanitize else TRACE if trace else PLAIN
        self.ends_only = ends_only
        self.dry = dry
        self.of_device = capability
        self.cublaslt = cublaslt
        self.clock = time.perf_counter  # tests may replace it
        self.launches: list[Kernel] = []
        self.traces: list[tracing.Trace] = []

    def is_array(self, value: Any) -> bool:
        return isinstance(value, np.ndarray) and value.dtype.names is None

    def device(self, array: Any) -> Any:
        return "host"

    def pointer(self, array: Any) -> int:
        return array.ctypes.data

    def free_cached_memory(self, device: Any) -> None:
        pass

    def shared_bytes(self, array: Any) -> int:
        return LIMITS[f"sm_{self.of_device}"].block_bytes

    def capability(self, array: Any) -> int:
        return self.of_device

    def encode(self, tensor_map: TensorMap, array: Any) -> np.ndarray:
        encoded, window = np.zeros(1, _TENSOR_MAP), tensor_map.window
        encoded["address"], encoded["strides"] = self.pointer(array), tensor_map.strides
        encoded["dims"], encoded["box"], encoded["window"] = tensor_map.dims, tensor_map.box, window is not None
        if window is None:
            return encoded
        if not window.is_possible():
            raise ValueError(f"the driver encodes no such window: {window}")
        encoded["box"] = (LINE, tensor_map.lines, 1, 1)
        encoded["lower"], encoded["upper"], encoded["steps"] = window.lower, window.upper, window.steps
        return encoded

    def flat(self, array: Any, size: int) -> Any:
        return np.lib.stride_tricks.as_strided(array, (size,), (array.itemsize,))

    def multiply(self, product: Product, pointers: Pointers, like: Any, new_workspace: NewWorkspace) -> bool:
        if self.cublaslt is None:
            return False
        nbytes = workspace_bytes(self.of_device)
        return self.cublaslt.multiply(product, pointers, 0, STREAM, nbytes, new_workspace)

    def description(self, array: Any) -> str:
        return f"host as sm_{self.of_device}"

    def captures(self, array: Any) -> bool:
        return False

    def seconds(self, run: Callable[[], None], like: Any) -> float:
        start = self.clock()
        run()
        return self.clock() - start

    def empty(self, shape: Sequence[int], dtype: Any, like: Any) -> Any:
        array = np.empty(tuple(shape), dtype)
        if self.ends_only is None:
            array.reshape(-1).view(np.uint8).fill(0xFF)
        return array

    def run(
        self,
        kernel: Kernel,
        grid: Index,
        block: Index,
        args: Sequence[Any],
        shared_bytes: int,
        device: Any,
        reached: Sequence[Any] = (),
    ) -> None:
        if not kernel.runs_on(self.of_device):
            raise CudaOnHostError(f"{kernel}: needs capability {kernel.least}, the device has {self.of_device}")
        most = LIMITS[f"sm_{self.of_device}"].block_bytes
        if shared_bytes > most:
            raise CudaOnHostError(f"{kernel}: {shared_bytes} bytes of shared memory, a block can have {most}")
        self.launches.append(kernel)
        if self.dry:
            return
        built = entry(kernel, self.build)
        given = [_type_name(arg) for arg in args]
        if not _matches(given, built.signature):
            raise TypeError(f"{kernel}: its parameters are {built.signature}, the arguments are {given}")
        holders = [_holder(arg) for arg in args]
        pointers = (ctypes.c_void_p * len(holders))(*(ctypes.addressof(holder) for holder in holders))
        seed = 0 if self.seed is None else 2 * self.seed + 1
        blocks = _chosen_blocks(grid, self.ends_only)
        launch = _Launch(grid, block, shared_bytes, seed, _address(blocks), 0 if blocks is None else len(blocks))
        with built.lock:
            if self.build is not TRACE:
                _run(kernel, built, launch, pointers)
                return
            arrays = {i: arg for i, arg in enumerate((*args, *reached)) if self.is_array(arg)}
            tracer = tracing.Tracer(built.library, arrays)
            _run(kernel, built, launch, pointers)
            self.traces.append(tracer.result(kernel, grid, block, shared_bytes))


class _Launch(ctypes.Structure):
    """`Launch` of fibres.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("blocks", ctypes.c_void_p),
        ("block_count", ctypes.c_uint64),
    )


def _run(kernel: Kernel, built: Entry, launch: _Launch, pointers: Any) -> None:
    message = built.launch(ctypes.addressof(launch), pointers)
    if message is not None:
        raise CudaOnHostError(f"{kernel}: {message.decode()}")


def _chosen_blocks(grid: Index, ends: Ends | None) -> np.ndarray | None:
    """The numbers of the blocks to run; None for all of them."""
    if ends is None:
        return None
    count = math.prod(grid)
    if isinstance(ends, int):
        return np.unique([*range(min(ends, count)), *range(max(count - ends, 0), count)]).astype(np.uint64)
    numbers = [(z * grid[1] + y) * grid[0] + x for x, y, z in ends(grid)]
    if not all(0 <= number < count for number in numbers):
        raise ValueError(f"ends_only: chose blocks beyond the grid {grid}")
    return np.array(numbers, np.uint64)


def _address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def _type_name(arg: Any) -> str:
    if arg is None:
        return "*"
    if isinstance(arg, np.generic):
        return arg.dtype.name
    return f"struct{arg.dtype.itemsize}" if arg.dtype.names else f"*{arg.dtype.name}"


def _matches(given: list[str], wanted: list[str]) -> bool:
    if len(given) != len(wanted):
        return False
    null, any_pointer = "*", "*void"
    return all(
        g == w or (g == null and w[0] == "*") or (g[0] == "*" and w == any_pointer)
        for g, w in zip(given, wanted, strict=True)
    )


def _holder(arg: Any) -> Any:
    """A ctypes object whose memory is the parameter."""
    if arg is None:
        return ctypes.c_void_p(None)
    if isinstance(arg, np.ndarray) and arg.dtype.names is None:
        return ctypes.c_void_p(arg.ctypes.data)
    return ctypes.create_string_buffer(arg.tobytes(), arg.dtype.itemsize)
