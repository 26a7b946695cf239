"""Memory for large results, used again when nobody holds it any more.

The system takes back what is freed in large pieces, and to touch fresh pages costs more than to compute in them.
"""

from __future__ import annotations

import threading
from math import prod
from sys import getrefcount

import numpy as np

# Smaller arrays the allocator has in stock.
_LEAST_BYTES = 1 << 20
# In all; what is older is freed as any array is.
_MOST_BYTES = 64 << 20

_lock = threading.Lock()
_known: list[np.ndarray] = []
# References to an array that only a list holds, as they are counted below: the arrays that show its memory have others.
_probe = [np.empty(0)]
_UNUSED = getrefcount(_probe[0])


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new array, its values undefined."""
    size = prod(shape) * dtype.itemsize
    if not _LEAST_BYTES <= size <= _MOST_BYTES:
        return np.empty(shape, dtype)
    with _lock:
        for k in range(len(_known)):
            if size <= _known[k].nbytes <= size + size // 8 and getrefcount(_known[k]) == _UNUSED:
                _known.append(_known.pop(k))
                return np.ndarray(shape, dtype, _known[-1])
        _known.append(np.empty(size, np.uint8))
        while sum([memory.nbytes for memory in _known]) > _MOST_BYTES:
            del _known[0]
        return np.ndarray(shape, dtype, _known[-1])


def zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new array of zeros."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


def copy(source: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A new contiguous array of the same values."""
    array = empty(source.shape, dtype)
    np.copyto(array, source, casting="unsafe")
    return array
