"""Numbers that change from replay to replay of a captured graph, in device memory that is filled before each replay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import launch
from .graph import Memory
from .kernel import Kernel

Array = Any

_SOURCE = "replay.cu"
_WORDS = 448  # of 8 bytes, in one launch
_STRUCT = np.dtype([("word", np.int64, (_WORDS,))], align=True)
_PUT = Kernel(_SOURCE, "put_words")


class Live(float):
    """A number as it is now, which `read()` tells anew before each replay."""

    __slots__ = ("read",)

    read: Callable[[], float]

    def __new__(cls, read: Callable[[], float]) -> Live:
        self = super().__new__(cls, read())
        self.read = read
        return self


def now(number: float) -> float:
    """The number as it is now."""
    return number.read() if isinstance(number, Live) else number


class Slots:
    """The numbers of one graph in device memory. `actions` are those of the host before a replay, in order.

    `memory` is of their own: what the graph writes before it comes to them must not lie there, as they are filled in
    before it begins.
    """

    def __init__(self, actions: list[Callable[[], None]], memory: Memory) -> None:
        self._actions = actions
        self._memory = memory
        self._chunks: list[tuple[np.ndarray, Array]] = []  # the words on the host, and on the device
        self._used = _WORDS  # of the last chunk

    def add(self, read: Callable[[], np.ndarray], like: Array) -> Array:
        """Words on the device of `like` that begin with the bytes of `read()`, as it is before each replay."""
        count = launch.divide_up(read().nbytes, 8)
        if count > _WORDS:
            raise ValueError(f"{8 * count} bytes of numbers are more than one launch takes, {8 * _WORDS}")
        if self._used + count > _WORDS:
            with self._memory.used():
                device = launch.empty((_WORDS,), np.int64, like)
            self._chunks.append((np.zeros(1, _STRUCT), device))
            self._used = 0
        host, device = self._chunks[-1]
        place = slice(self._used, self._used + count)
        self._used += count

        def fill() -> None:
            data = read().tobytes()
            host["word"][0, place].view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)

        fill()
        self._actions.append(fill)
        return device[place]

    def put(self) -> None:
        """Bring all numbers to the device, in the order of the current stream."""
        for host, device in self._chunks:
            launch.launch(_PUT, (1,), (_WORDS,), (host, device, np.int32(_WORDS)))


class _Current(threading.local):
    slots: Slots | None = None


_current = _Current()


@contextmanager
def recording(slots: Slots) -> Iterator[None]:
    """Numbers that this thread hands to kernels go into `slots`."""
    _current.slots = slots
    try:
        yield
    finally:
        _current.slots = None


def refreshed(read: Callable[[], np.ndarray], like: Array) -> Array | None:
    """Device memory that holds `read()` at each replay of the graph that is being captured; None if none is."""
    return None if _current.slots is None else _current.slots.add(read, like)


def scalars(read: Callable[[], np.ndarray], like: Array) -> list[Array]:
    """The numbers `read()` as 0-d arrays beside `like`; in a graph they are what they are before each replay."""
    values = read()
    if _current.slots is not None:
        found = _current.slots.add(read, like).view(values.dtype)
    else:
        words = np.zeros(1, _STRUCT)
        words["word"].view(np.uint8)[0, : values.nbytes] = np.frombuffer(values.tobytes(), np.uint8)
        memory = launch.empty((_WORDS,), np.int64, like)
        launch.launch(_PUT, (1,), (_WORDS,), (words, memory, np.int32(_WORDS)))
        found = memory.view(values.dtype)
    return [found[i : i + 1].reshape(()) for i in range(values.size)]


VARIANTS = [_PUT]
