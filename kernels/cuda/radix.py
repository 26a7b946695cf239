"""A stable sort of indices by src/radix.cu, without atomics whose order shows, and without waiting for the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import launch
from .kernel import Kernel

Array = Any

_SOURCE = "radix.cu"
_BLOCK = 256
_TILE = 2048
_DIGITS = 512
_DIGIT_BITS = 9
_MOST_BLOCKS = 2048
MOST = 2**31 - 1  # places are int32

_RADIX = np.dtype(
    [
        ("count", np.int32),
        ("bound", np.int32),
        ("dropped", np.int32),
        ("shift", np.int32),
        ("bits", np.int32),
        ("blocks", np.int32),
    ],
    align=True,
)


class Sorted(NamedTuple):
    """Indices in ascending order as int32 arrays: row r's are keys[starts[r]:starts[r + 1]]."""

    keys: Array  # (n,); of an index that was dropped or is out of range the bound, which comes last
    positions: Array  # (n,): where the index stood; ascending within a row
    starts: Array  # (bound + 1,)


def sort(indices: Array, bound: int, dropped: int = -1) -> Sorted:
    """Sort a flat int64 array of indices below `bound`."""
    n = len(indices)
    bits = max(1, bound.bit_length())  # the bound itself is a key
    passes = launch.divide_up(bits, _DIGIT_BITS)
    width = launch.divide_up(bits, passes)
    blocks = launch.divide_up(n, _TILE)
    buffers = [launch.empty((2, n), np.int32, indices) for _ in range(min(passes, 2))]
    counts = launch.empty((blocks, _DIGITS), np.int32, indices)
    keys, positions = indices, None
    for number in range(passes):
        radix = launch.struct(
            _RADIX, count=n, bound=bound, dropped=dropped, shift=number * width, bits=width, blocks=blocks
        )
        sorted_keys, sorted_positions = buffers[number % 2]
        first = number == 0
        launch.launch(_count(first), (blocks,), (_BLOCK,), (keys, counts, radix))
        launch.launch(_PLACES, (min(blocks, 1),), (_DIGITS,), (counts, radix))
        args = (keys, positions, counts, sorted_keys, sorted_positions, radix)
        launch.launch(_move(first), (blocks,), (_BLOCK,), args)
        keys, positions = sorted_keys, sorted_positions
    starts = launch.empty((bound + 1,), np.int32, indices)
    grid = min(_MOST_BLOCKS, launch.divide_up(bound + 1, _BLOCK))
    launch.launch(_STARTS, (grid,), (_BLOCK,), (keys, starts, radix))
    return Sorted(keys, positions, starts)


def _count(first: bool) -> Kernel:
    return Kernel(_SOURCE, f"radix_count<{str(first).lower()}>")


def _move(first: bool) -> Kernel:
    return Kernel(_SOURCE, f"radix_move<{str(first).lower()}>")


_PLACES = Kernel(_SOURCE, "radix_places<int>")
_STARTS = Kernel(_SOURCE, "radix_starts<int>")

VARIANTS = [_count(True), _count(False), _PLACES, _move(True), _move(False), _STARTS]
