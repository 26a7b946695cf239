"""Devices, streams and graphs: while a stream is captured nothing runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from .memory import CUDARuntimeError

__name__ = "cupy"  # in the lines that an error has passed, and as the module of the classes


class Device:
    compute_capability = "90"

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def __str__(self) -> str:
        return f"<CUDA Device {self.id}>"


class Graph:
    """What was launched while a stream was captured."""

    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work
        self.launches = 0

    def launch(self) -> None:
        if current().captured is not None:
            raise CUDARuntimeError("the graph's launch would become part of another graph")
        self.launches += 1
        with np.errstate(all="ignore"):
            for run in self.work:
                run()


class Stream:
    """A stream; `open_captures` says how many are being captured."""

    open_captures = 0

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else id(self)
        self.captured: list[Callable[[], None]] | None = None
        self.broken = False
        self._outer: list[Stream | None] = []

    def __enter__(self) -> Stream:
        self._outer.append(_thread.stream)
        _thread.stream = self
        return self

    def __exit__(self, *_: object) -> None:
        _thread.stream = self._outer.pop()

    def begin_capture(self) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self.captured, self.broken = [], False
        Stream.open_captures += 1

    def end_capture(self) -> Graph:
        work, self.captured = self.captured, None
        Stream.open_captures -= 1
        if work is None or self.broken:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated")
        return Graph(work)

    def is_capturing(self) -> bool:
        return self.captured is not None

    def synchronize(self) -> None:
        must_not_be_captured("synchronize")


class _Thread(threading.local):
    stream: Stream | None = None


_thread = _Thread()
_null = Stream(null=True)


def current() -> Stream:
    return _thread.stream or _null


def must_not_be_captured(what: str) -> None:
    """What waits for the device breaks a capture."""
    stream = current()
    if stream.captured is not None:
        stream.broken = True
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}")


def queue(run: Callable[[], None]) -> None:
    """Run now, or at each launch of the graph that is being captured."""
    captured = current().captured
    if captured is not None:
        captured.append(run)
        return
    with np.errstate(all="ignore"):
        run()
