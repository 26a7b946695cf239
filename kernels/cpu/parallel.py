"""Pieces of one computation on several threads.

NumPy releases the interpreter inside its loops, so pieces of about a cache's size run side by side. Which
thread takes which piece is left open; each piece must write to a place of its own, so that results never
depend on it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

Piece = TypeVar("Piece")

# Up to this many multiplications OpenBLAS computes a product on the calling thread.
SMALL_PRODUCT = (1 << 19) - 1

# Two threads hand the interpreter over at every NumPy call: results of fewer bytes are made sooner by one, where they
# take many calls.
_SHARED_BYTES = 4 << 20

_VARIABLE = "ADJOINT_NUM_THREADS"

_threads: int | None = None
_pool: ThreadPoolExecutor | None = None


def threads() -> int:
    """How many threads compute: by `set_threads`, ADJOINT_NUM_THREADS or the process's processors."""
    if _threads is None:
        set_threads(_default())
    assert _threads is not None
    return _threads


def set_threads(count: int) -> None:
    """Compute on `count` threads, the calling one included."""
    global _threads, _pool
    if count < 1:
        raise ValueError(f"set_threads: the number of threads must be at least 1, got {count}")
    if count != _threads and _pool is not None:
        _pool.shutdown(wait=False)
        _pool = None
    _threads = count


def share(work: Callable[[Iterator[Piece]], Any], pieces: Sequence[Piece], limit: int | None = None) -> None:
    """Call `work` on each thread (at most `limit`) with an iterator that draws from the same pieces."""
    if len(pieces) == 1:  # what follows costs as much as a small piece
        with np.errstate(all="ignore"):
            work(iter(pieces))
        return
    rest = deque(pieces)
    helpers = min(threads() if limit is None else min(limit, threads()), len(rest)) - 1
    futures = [_workers().submit(_drain, work, rest) for _ in range(helpers)]
    try:
        _drain(work, rest)
    finally:
        rest.clear()
        # A helper that never started, because the pool is busy for someone else, has nothing left to do.
        running = [future for future in futures if not future.cancel()]
        errors = [future.exception() for future in running]
    for error in errors:
        if error is not None:
            raise error


def worth(nbytes: int) -> int | None:
    """The `limit` of threads for results of so many bytes that many calls make: 1, or None for all."""
    return 1 if nbytes < _SHARED_BYTES else None


def split(count: int, step: int) -> list[slice]:
    """range(count) in slices of `step`."""
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def evenly(count: int, most: int) -> int:
    """The step, at most `most` and at least 1, by which `split` makes parts of range(count) of about one length."""
    parts = max(1, -(-count // max(1, most)))
    return max(1, -(-count // parts))


def _drain(work: Callable[[Iterator[Piece]], Any], rest: deque[Piece]) -> None:
    # IEEE results need no warnings, and a thread does not inherit the caller's error state.
    with np.errstate(all="ignore"):
        work(_draw(rest))


def _draw(rest: deque[Piece]) -> Iterator[Piece]:
    while True:
        try:
            piece = rest.popleft()
        except IndexError:
            return
        yield piece


def _default() -> int:
    given = os.environ.get(_VARIABLE, "")
    if not given:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{_VARIABLE} must be a positive integer, got {given!r}")
    return int(given)


def _workers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(threads() - 1, thread_name_prefix="adjoint")
    return _pool


def _forget() -> None:
    global _pool
    _pool = None


# The threads of a pool do not live on in a forked process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
