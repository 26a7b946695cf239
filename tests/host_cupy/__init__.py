"""A stand-in for CuPy on machines without a GPU: its arrays lie in host memory, its kernels run on the host.

What a captured graph depends on is as on a device: while a stream is captured nothing runs, and afterwards a graph
knows addresses and no objects. Memory that was given back, to a pool or to the device, shows when a replay uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from adjoint.kernels.cuda.kernel import Kernel
from cuda_on_host import HostLauncher

from .arrays import (
    View,
    arrays_in,
    asarray,
    compute,
    concatenate,
    empty,
    empty_like,
    full,
    ndarray,
    on_host,
    with_views,
)
from .memory import (
    Memory,
    MemoryPointer,
    MemoryPool,
    UnownedMemory,
    default_pool,
    set_pinned_memory_allocator,
    staging,
    using_allocator,
)
from .streams import Device, Graph, Stream, current, must_not_be_captured, queue

__name__ = "cupy"  # in the lines that an error has passed, and as the module of the classes


class Module(ModuleType):
    """The module `cupy`: what is not defined here is NumPy's, on these arrays."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)  # an AttributeError where NumPy has none
        if not callable(function) or isinstance(function, type):
            return function

        def call(*args: Any, **options: Any) -> Any:
            if not arrays_in(args):  # arange, eye and the like run on the device too
                host = function(*args, **options)
                result = empty(host.shape, host.dtype)
                put = View(result)
                queue(lambda: put.host().__setitem__(..., host))
                return result
            return compute(function, args, options)

        return call


def module() -> ModuleType:
    cupy: Any = Module("cupy")
    cupy.ndarray, cupy.asarray, cupy.empty, cupy.full, cupy.empty_like = ndarray, asarray, empty, full, empty_like
    cupy.zeros = lambda shape, dtype=float: full(shape, 0, dtype)
    cupy.ones = lambda shape, dtype=float: full(shape, 1, dtype)
    cupy.concatenate = concatenate
    cupy.asnumpy = lambda array: array.get()
    cupy.get_default_memory_pool = lambda: default_pool
    cupy.get_default_pinned_memory_pool = lambda: staging
    cupy.cuda = SimpleNamespace(
        Device=Device, Stream=Stream, Graph=Graph, Memory=Memory, MemoryPool=MemoryPool, MemoryPointer=MemoryPointer,
        UnownedMemory=UnownedMemory, using_allocator=using_allocator, get_current_stream=current,
        set_pinned_memory_allocator=set_pinned_memory_allocator,
        runtime=SimpleNamespace(getDeviceCount=lambda: 1, getDevice=lambda: 0),
    )  # fmt: skip
    return cupy


class Launcher(HostLauncher):
    """Runs kernels on these arrays, in a graph as well."""

    def is_array(self, value: Any) -> bool:
        return isinstance(value, ndarray)

    def device(self, array: Any) -> Any:
        return array.device

    def pointer(self, array: Any) -> int:
        return array.data.ptr

    def empty(self, shape: Sequence[int], dtype: Any, like: Any) -> Any:
        return empty(shape, dtype)

    def flat(self, array: Any, size: int) -> Any:
        return ndarray(super().flat(array.host, size), array._memory, array)

    def free_cached_memory(self, device: Any) -> None:
        must_not_be_captured("free")
        default_pool.free_all_blocks()

    def captures(self, array: Any) -> bool:
        return current().is_capturing()

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
        # A launch takes structs by value, and knows addresses only.
        given = [arg.copy() if isinstance(arg, np.ndarray) else with_views(arg) for arg in args]
        others = [View(array) for array in reached]

        def run() -> None:
            on_host(others)
            HostLauncher.run(self, kernel, grid, block, [on_host(arg) for arg in given], shared_bytes, "host")

        queue(run)
