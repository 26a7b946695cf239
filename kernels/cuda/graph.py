"""CUDA graphs: the only place that asks CuPy for streams, captures and memory of their own."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from . import launch

Array = Any


class Memory:
    """Device memory for one graph: what is freed while it is captured serves what comes later in it, and nothing else.

    A pool alone would not do. Short of memory it gives its free blocks back, which the kernels captured before still
    write to at each replay; and arrays that outlive it lose their memory. Here every segment stays until neither this
    object nor any of its arrays is left.
    """

    def __init__(self) -> None:
        import cupy

        self._segments: list[Any] = []
        self._pool = cupy.cuda.MemoryPool(partial(_segment, self._segments))

    def allocate(self, nbytes: int) -> Any:
        """CuPy's allocator."""
        import cupy

        block = self._pool.malloc(nbytes)
        owner = (self._segments, self._pool, block)
        return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(block.ptr, nbytes, owner, block.device_id), 0)

    def holds(self, array: Array) -> bool:
        """Whether the array lies here."""
        address = launch.launcher.pointer(array)
        return any(segment.ptr <= address < segment.ptr + segment.size for segment in self._segments)

    def is_outside(self, value: Any) -> bool:
        """Whether the value is an array of the device that lies elsewhere."""
        return launch.launcher.is_array(value) and not self.holds(value)

    @property
    def nbytes(self) -> int:
        """Bytes taken from the device."""
        return sum(segment.size for segment in self._segments)

    @contextmanager
    def used(self) -> Iterator[None]:
        """All new arrays of this thread come from here."""
        import cupy

        with cupy.cuda.using_allocator(self.allocate):
            yield


_one_at_a_time = (
    threading.Lock()
)  # where pinned memory comes from, and whether garbage is collected, is for all threads


def _segment(segments: list[Any], nbytes: int) -> Any:
    import cupy

    segments.append(cupy.cuda.Memory(nbytes))
    return cupy.cuda.MemoryPointer(segments[-1], 0)


def capture(work: Callable[[], Any], memory: Memory) -> tuple[Any, Any]:
    """A graph of what `work` launches on the current device, and what it returns; nothing runs.

    An error of `work` is raised as it is; the device can be used afterwards. A capture in another thread waits.
    """
    with _one_at_a_time:
        return _captured(work, memory)


def _captured(work: Callable[[], Any], memory: Memory) -> tuple[Any, Any]:
    import cupy

    from . import cublaslt

    thread = threading.get_ident()
    pinned = cupy.get_default_pinned_memory_pool().malloc

    def staging(nbytes: int) -> Any:
        # CuPy would put a copy into the graph, from host memory that serves others by the time of a replay.
        if threading.get_ident() == thread:
            raise RuntimeError("a CUDA graph cannot copy from host memory: make the array before the captured step")
        return pinned(nbytes)

    device = cupy.cuda.Device()
    launch.launcher.free_cached_memory(device)  # the graph needs about as much as the step left in the common pool
    stream = cupy.cuda.Stream(non_blocking=True)
    collects = gc.isenabled()
    cupy.cuda.set_pinned_memory_allocator(staging)
    gc.disable()  # the end of another graph, or of an event, is nothing to come across now
    try:
        with stream, memory.used():
            stream.begin_capture()
            try:
                result = work()
            except BaseException:
                with suppress(Exception):  # what went wrong first says more than that the capture is broken
                    stream.end_capture()
                raise
            return stream.end_capture(), result
    finally:
        cupy.cuda.set_pinned_memory_allocator(pinned)
        cublaslt.release(device.id, stream.ptr)
        if collects:
            gc.enable()
