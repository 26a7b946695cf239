"""Memory: segments of the device, pools that hand freed blocks out again, and staging memory of the host."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

__name__ = "cupy"  # in the lines that an error has passed, and as the module of the classes

UNIT = 512  # bytes: what sizes in a pool are rounded to
POISON = 0xFF  # not-a-number, and the index -1


class CUDARuntimeError(RuntimeError):
    """What the CUDA runtime answers."""


segments: dict[int, weakref.ref[Memory]] = {}
_numbers = itertools.count()


class Memory:
    """Memory of the device, which goes back when the object goes."""

    def __init__(self, size: int) -> None:
        self.size, self.device_id, self.number = size, 0, next(_numbers)
        whole = np.full(size + 256, POISON, np.uint8)
        start = -whole.ctypes.data % 256
        self.bytes = whole[start : start + size]
        self.ptr = self.bytes.ctypes.data
        number = self.number
        segments[number] = weakref.ref(self, lambda _: segments.pop(number, None))

    @staticmethod
    def live_bytes() -> int:
        """Bytes that are taken from the device."""
        return sum(memory.size for reference in list(segments.values()) if (memory := reference()) is not None)


def segment_of(address: int) -> Memory | None:
    """The memory in which an address lies."""
    for reference in list(segments.values()):
        memory = reference()
        if memory is not None and memory.ptr <= address < memory.ptr + max(memory.size, 1):
            return memory
    return None


class UnownedMemory:
    def __init__(self, ptr: int, size: int, owner: Any, device_id: int) -> None:
        self.ptr, self.size, self._owner, self.device_id = ptr, size, owner, device_id


class MemoryPointer:
    def __init__(self, mem: Any, offset: int) -> None:
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, mem.device_id


class PooledMemory:
    """A block of a pool, which it knows only weakly."""

    def __init__(self, segment: Memory, pool: MemoryPool) -> None:
        self.ptr, self.size, self.device_id, self.pool = segment.ptr, segment.size, 0, weakref.ref(pool)

    def __del__(self) -> None:
        pool = self.pool()
        if pool is not None:
            pool.free(self.ptr)


class MemoryPool:
    """Freed blocks serve again at once."""

    def __init__(self, allocator: Callable[[int], MemoryPointer] | None = None) -> None:
        self._allocator = allocator or (lambda size: MemoryPointer(Memory(size), 0))
        self._in_use: dict[int, Memory] = {}
        self._free: defaultdict[int, list[Memory]] = defaultdict(list)

    def malloc(self, nbytes: int) -> MemoryPointer:
        size = max(-(-nbytes // UNIT), 1) * UNIT
        free = self._free[size]
        segment = free.pop() if free else self._allocator(size).mem
        self._in_use[segment.ptr] = segment
        return MemoryPointer(PooledMemory(segment, self), 0)

    def free(self, ptr: int) -> None:
        segment = self._in_use.pop(ptr)
        self._free[segment.size].append(segment)

    def free_all_blocks(self) -> None:
        self._free.clear()


class _Thread(threading.local):
    allocator: Callable[[int], MemoryPointer] | None = None


default_pool = MemoryPool()
_thread = _Thread()


def allocate(nbytes: int) -> Any:
    """New memory for an array of this thread."""
    return (_thread.allocator or default_pool.malloc)(nbytes)


@contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer]) -> Iterator[None]:
    before, _thread.allocator = _thread.allocator, allocator
    try:
        yield
    finally:
        _thread.allocator = before


class _Staging:
    """Pinned memory of the host."""

    def __init__(self) -> None:
        self.allocator: Callable[[int], np.ndarray] = self.malloc

    def malloc(self, nbytes: int) -> np.ndarray:
        return np.empty(nbytes, np.uint8)


staging = _Staging()


def set_pinned_memory_allocator(allocator: Callable[[int], np.ndarray]) -> None:
    staging.allocator = allocator
