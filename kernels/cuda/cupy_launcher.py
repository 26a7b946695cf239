"""Kernels on CuPy's arrays: compiled at first use, kept on disk, launched on the current stream."""

from __future__ import annotations

import hashlib
import importlib
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from . import cublaslt, cupy_cache
from .cublaslt import NewWorkspace, Pointers, Product
from .kernel import OPTIONS, Kernel, compile_error, compile_for
from .tensor_map import TensorMap
from .tensor_map import encode as encode_tensor_map

DEFAULT_SHARED_BYTES = 48 * 1024  # more than this must be asked for, once per kernel and device

# Before a measurement: more than any L2 holds, and about half a millisecond of work.
_BUSY_BYTES = 256 * 2**20
_BUSY_TIMES = 4


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

    def flat(self, array: Any, size: int) -> Any:
        import cupy

        return cupy.ndarray(size, array.dtype, memptr=array.data)

    def multiply(self, product: Product, pointers: Pointers, like: Any, new_workspace: NewWorkspace) -> bool:
        import cupy

        library, device = cublaslt.library(), like.device
        if library is None:
            return False
        nbytes = cublaslt.workspace_bytes(self.capability(like))
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
        raise compile_error([kernel], error) from error


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
