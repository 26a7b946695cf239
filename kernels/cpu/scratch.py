"""Memory that a thread keeps between calls: to touch fresh pages costs more than to compute in them."""

from __future__ import annotations

import threading
from math import prod

import numpy as np

_MOST_BYTES = 20 << 20
# A cache line, and as long as the longest vector.
_ALIGNMENT = 64

_kept = threading.local()


class Scratch:
    """Arrays one after the other in one piece of memory, all of them given up by `clear`."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array for use until `clear`; from fresh memory where there is not enough."""
        start = self._used
        self._used += -(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        if self._used > len(self._memory):
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, self._memory, start)

    def clear(self) -> None:
        """Begin anew, with as much memory as was wanted."""
        if len(self._memory) < min(self._used, _MOST_BYTES):
            memory = np.empty(min(self._used, _MOST_BYTES) + _ALIGNMENT, np.uint8)
            self._memory = memory[-memory.ctypes.data % _ALIGNMENT :]
        self._used = 0


class scratch:
    """This thread's memory; for a call inside another call the thread keeps a second one."""

    __slots__ = ("kept", "memory")

    def __enter__(self) -> Scratch:
        kept = getattr(_kept, "memories", None)
        if kept is None:
            kept = _kept.memories = []
        self.kept: list[Scratch] = kept
        self.memory = kept.pop() if kept else Scratch()
        return self.memory

    def __exit__(self, *exception: object) -> None:
        self.memory.clear()
        self.kept.append(self.memory)
