"""Memory for large results, used again when nobody holds it any more.

The allocator gives back to the system what a training step frees at its end, and to touch fresh pages again costs more
than to compute in them.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from math import prod
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")

# Smaller arrays the allocator has in stock.
_LEAST_BYTES = 1 << 20
# Of all that is kept, in use or not. Beyond it results are arrays like any other.
_MOST_BYTES = 256 << 20

# By size. What is examined is taken out, so that no two threads take the same.
_kept: dict[int, deque[Memory]] = {}


class Memory(np.ndarray):
    """The bytes of one result, whose array refers to them."""


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new array, its values undefined."""
    size = prod(shape) * dtype.itemsize
    if size < _LEAST_BYTES:
        return np.empty(shape, dtype)
    memory = next(_unused(_kept.get(size, deque())), None)
    if memory is None:
        if not _has_room(size):
            return np.empty(shape, dtype)
        memory = Memory((size,), np.uint8)
    array = np.ndarray(shape, dtype, memory)
    _kept.setdefault(size, deque()).appendleft(memory)
    return array


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new array of zeros."""
    if prod(shape) * dtype.itemsize < _LEAST_BYTES:
        return np.zeros(shape, dtype)
    array = empty(shape, dtype)
    array.fill(0)
    return array


def add(a: Any, b: Any) -> Any:
    """a + b, of arrays or numbers."""
    alike = type(a) is np.ndarray and type(b) is np.ndarray and a.shape == b.shape and a.dtype == b.dtype
    if not alike or a.nbytes < _LEAST_BYTES or not (a.flags.c_contiguous and b.flags.c_contiguous):
        return a + b
    return np.add(a, b, empty(a.shape, a.dtype))


def claim(arrays: list[Any]) -> Any:
    """The one array in the list, which leaves it, to be changed as one likes; a copy if anyone else sees its memory."""
    array, others = _take(arrays)
    if others or type(array) is not np.ndarray:  # CuPy's arrays share memory without referring to one another
        return array.copy()
    owner, holders = _take([array if array.base is None else array.base])
    kept = type(owner) is Memory
    alone = holders == 1 + kept and (kept or type(owner) is np.ndarray) and owner.flags.owndata
    whole = alone and owner.nbytes == array.nbytes and array.flags.c_contiguous
    return array if whole and array.flags.writeable else array.copy()


def _take(items: list[Item] | deque[Item]) -> tuple[Item, int]:
    """Take the last item out, and count the references to it that are left."""
    item = items.pop()
    alone = object()  # has those of the interpreter itself, whose number depends on its version and on debuggers
    others = sys.getrefcount(item) - sys.getrefcount(alone)
    return item, others


def _unused(same: deque[Memory]) -> Iterator[Memory]:
    """Take out what nobody holds, one by one."""
    for _ in range(len(same)):
        try:
            memory, others = _take(same)
        except IndexError:  # other threads have taken the rest
            return
        if others:
            same.appendleft(memory)
        else:
            yield memory


def _has_room(size: int) -> bool:
    """Whether so much more may be kept, for which others that nobody holds are given up."""
    total = size + sum(len(same) * each for each, same in list(_kept.items()))
    for each, same in list(_kept.items()):
        for _ in _unused(same) if total > _MOST_BYTES else ():
            total -= each
            if total <= _MOST_BYTES:
                break
        if not same:  # what another thread puts there now is lost, not wrong
            _kept.pop(each, None)
    return total <= _MOST_BYTES
