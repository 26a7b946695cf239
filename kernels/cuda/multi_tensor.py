"""Lists of arrays for kernels that take many of them at once: src/multi_tensor.cuh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from . import launch

Array = Any
Lists = Sequence[Sequence[Array]]

BLOCK = 256
_CHUNK = 4096
_PARAMETER_BYTES = 4096 - 320


def most_arrays(lists: int) -> int:
    """How many arrays of each list one launch takes."""
    return _PARAMETER_BYTES // (8 * lists + 8 + 4)


@cache
def array_lists(lists: int) -> np.dtype:
    """The struct ArrayLists."""
    most = most_arrays(lists)
    return np.dtype(
        [
            ("address", np.uint64, (lists, most)),
            ("size", np.int64, (most,)),
            ("first_chunk", np.int32, (most,)),
            ("arrays", np.int32),
            ("chunks", np.int32),
        ],
        align=True,
    )


class Batch(NamedTuple):
    """The arrays of one launch: as a struct, how many chunks they have, and the arrays themselves."""

    struct: np.ndarray
    chunks: int
    arrays: list[Array]


def batches(lists: Lists) -> Iterator[Batch]:
    """The launches that take all arrays, which must be contiguous and on one device."""
    places = [launch.launcher.device(array) for arrays in lists for array in arrays]
    if places.count(places[0]) != len(places):
        names = sorted(set(map(str, places)))
        raise ValueError(f"arrays are on different devices: {', '.join(names)}")
    sizes = np.array([array.size for array in lists[0]], np.int64)
    addresses = np.array([[launch.launcher.pointer(array) for array in arrays] for arrays in lists], np.uint64)
    filled = sizes.nonzero()[0]
    most = most_arrays(len(lists))
    for start in range(0, len(filled), most):
        which = filled[start : start + most]
        chunks = -(-sizes[which] // _CHUNK)
        total = int(chunks.sum())
        struct = np.zeros(1, array_lists(len(lists)))
        struct["address"][0, :, : len(which)] = addresses[:, which]
        struct["size"][0, : len(which)] = sizes[which]
        struct["first_chunk"][0, : len(which)] = chunks.cumsum() - chunks
        struct["arrays"], struct["chunks"] = len(which), total
        yield Batch(struct, total, [arrays[i] for arrays in lists for i in which])


@contextmanager
def contiguous(lists: Lists, stored: Sequence[int]) -> Iterator[Lists]:
    """The arrays as kernels take them; what is written into a copy of one of a `stored` list goes back."""
    dense = [[launch.contiguous(array) for array in arrays] for arrays in lists]
    yield dense
    for k in stored:
        for array, used in zip(lists[k], dense[k], strict=True):
            if used is not array:
                array[...] = used
