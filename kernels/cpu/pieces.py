"""Lists of arrays that belong together, in pieces that stay in the cache, on threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import parallel
from .arithmetic import compute_dtype
from .scratch import scratch

# Elements of a piece. Two threads hand the interpreter over at every NumPy call: where they share the work, long calls
# cost less than what no longer fits into a core's own cache.
_PIECE = 1 << 16
_SHARED_PIECE = 1 << 17
# Fewer elements in all are computed sooner than by two threads.
_SHARED = 1 << 19

Update = Callable[..., None]


class Piece(NamedTuple):
    """Arrays, one of each list, and the part of them that is meant."""

    arrays: Sequence[np.ndarray]
    part: slice | None


def pieces(lists: Sequence[Sequence[np.ndarray]]) -> list[Piece]:
    """Small arrays whole, others in parts."""
    found = []
    least = _PIECE if _total(lists) < _SHARED else _SHARED_PIECE
    for arrays in zip(*lists, strict=True):
        size = arrays[0].size
        if size <= least:
            if size:
                found.append(Piece(arrays, None))
        elif all(array.flags.c_contiguous for array in arrays):
            flat = [array.reshape(-1) for array in arrays]
            found.extend(Piece(flat, part) for part in parallel.split(size, least))
        else:
            rows = len(arrays[0])
            found.extend(Piece(arrays, part) for part in parallel.split(rows, max(1, least * rows // size)))
    return found


def share(work: Callable[[Iterator[Any]], Any], found: Sequence[Any], lists: Sequence[Sequence[np.ndarray]]) -> None:
    """`parallel.share` of the pieces found in the lists."""
    parallel.share(work, found, limit=1 if _total(lists) < _SHARED else None)


def update(lists: Sequence[Sequence[np.ndarray]], stored: Sequence[int], temporaries: int, change: Update) -> None:
    """Call `change(*parts, *temporaries)` for parts of the lists, in the type they are computed in.

    The lists at the positions `stored` are changed in place; `temporaries` are arrays to work in.
    """
    found = pieces(lists)
    if not found:
        return
    first = lists[0][0]
    dtype = compute_dtype(first.dtype)
    widens = dtype != first.dtype
    count = temporaries + len(lists) * widens
    most = max(piece.arrays[0][piece.part or ...].size for piece in found)

    def work(rest: Iterator[Piece]) -> None:
        with scratch() as memory:
            buffers = [memory.empty((most,), dtype) for _ in range(count)]
            shape, shaped = None, buffers
            for arrays, part in rest:
                parts = arrays if part is None else [array[part] for array in arrays]
                if parts[0].shape != shape:
                    shape = parts[0].shape
                    shaped = [buffer[: parts[0].size].reshape(shape) for buffer in buffers]
                if not widens:
                    change(*parts, *shaped)
                    continue
                wide, free = shaped[: len(lists)], shaped[len(lists) :]
                for source, target in zip(parts, wide, strict=True):
                    np.copyto(target, source)
                change(*wide, *free)
                for k in stored:
                    np.copyto(parts[k], wide[k], casting="unsafe")

    share(work, found, lists)


def _total(lists: Sequence[Sequence[np.ndarray]]) -> int:
    return sum([array.size for array in lists[0]])
