"""Max pooling by windows that lie side by side, such as 2 x 2 at stride 2.

No element is seen twice and none is padding: one copy brings what a tap sees from all outputs together, and back it
takes one call for each tap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np

from . import gathered, parallel, taps
from .arithmetic import compute_dtype
from .scratch import Scratch, scratch
from .taps import Window

_MOST_TAPS = 9
# Of x. One thread is as quick with less than a piece for each of two.
_PIECE_BYTES = 1 << 20
_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_OFFSET = np.dtype(np.uint8)

Array = np.ndarray


def serves(window: Window) -> bool:
    return prod(window.kernel_size) <= _MOST_TAPS and window.kernel_size == window.stride and gathered.serves(window)


def maximum(x: Array, window: Window, y: Array, offsets: Array) -> None:
    dtype = compute_dtype(x.dtype)

    def compute(memory: Scratch, x: Array, y: Array, offsets: Array) -> None:
        windows = _windows(x, window)
        values = memory.empty(windows.shape, dtype)
        np.copyto(values, windows)
        best = y if dtype == y.dtype else memory.empty(y.shape, dtype)
        _maxima(values, best, offsets, memory)
        if np.isnan(best.max(initial=-np.inf)):  # the last NaN wins
            taps.maximum(x, window, y, offsets)
        elif best is not y:
            np.copyto(y, best, casting="unsafe")

    _in_pieces(compute, x.nbytes, x, y, offsets)


def scatter(dy: Array, offsets: Array, window: Window, dx: Array) -> None:
    word = _WORDS[dy.dtype.itemsize]

    def compute(memory: Scratch, dy: Array, offsets: Array, dx: Array) -> None:
        windows = _windows(dx.view(word), window)
        if windows.size < dx.size:
            dx.fill(0)
        bits = dy.view(word)
        hit = memory.empty(offsets.shape, _OFFSET)
        for number, tap in enumerate(product(*map(range, window.kernel_size))):
            np.equal(offsets, number, out=hit.view(bool))
            # Bits times 0 or 1: what is not hit is 0, were it NaN.
            np.multiply(bits, hit, out=windows[tap])

    _in_pieces(compute, dx.nbytes, dy, offsets, dx)


def _windows(x: Array, window: Window) -> Array:
    """View (*taps, planes, *outputs) of planes."""
    pairs = [*zip(window.pooled, window.kernel_size, strict=True)]
    seen = x[:, *(slice(0, count * step) for count, step in pairs)]
    apart = seen.reshape(len(x), *(number for pair in pairs for number in pair))
    return apart.transpose(*range(2, apart.ndim, 2), 0, *range(1, apart.ndim, 2))


def _maxima(values: Array, y: Array, offsets: Array, memory: Scratch) -> None:
    """The maxima of values (*taps, *y's shape) and their offsets.

    Along the last axis first: among equal ones the first in the order of the window wins.
    """
    places: Array | None = None
    inner = 1  # taps of the axes that are done
    for axis in reversed(range(values.ndim - y.ndim)):
        count = values.shape[axis]
        taps_of_axis: list[Any] = [(*(slice(None),) * axis, tap) for tap in range(count)]
        along = [values[tap] for tap in taps_of_axis]
        placed = None if places is None else [places[tap] for tap in taps_of_axis]
        values, places = along[0], None if placed is None else placed[0]
        if count > 1:
            last = values.size == y.size
            best = y.reshape(values.shape) if last else memory.empty(values.shape, y.dtype)
            found = offsets.reshape(values.shape) if last else memory.empty(values.shape, _OFFSET)
            _along(along, placed, inner, best, found, memory)
            values, places, inner = best, found, inner * count
    if places is None:
        np.copyto(y, values)
        offsets.fill(0)


def _along(
    values: list[Array], places: list[Array] | None, inner: int, best: Array, found: Array, memory: Scratch
) -> None:
    """The maxima along one axis, and their offsets in the window."""
    better, term = memory.empty(best.shape, _OFFSET), memory.empty(best.shape, _OFFSET)
    top, place = values[0], None if places is None else places[0]
    for tap in range(1, len(values)):
        np.greater(values[tap], top, out=better.view(bool))
        np.maximum(values[tap], top, out=best)
        offset = tap if places is None else np.add(places[tap], tap * inner, out=term)
        # The offset of a later tap is always the larger one.
        if place is None:
            np.multiply(better, offset, out=found)
        else:
            np.maximum(np.multiply(better, offset, out=term), place, out=found)
        top, place = best, found


def _in_pieces(compute: Callable[..., None], nbytes: int, *arrays: Array) -> None:
    """Call `compute(memory, *pieces)` with some planes of each array (N, C, *axes), on all threads."""
    planes = arrays[0].shape[0] * arrays[0].shape[1]
    flat = [array.reshape(planes, *array.shape[2:]) for array in arrays]
    count = 1 if nbytes < 2 * _PIECE_BYTES else 2 * -(-nbytes // (2 * _PIECE_BYTES))

    def work(parts: Iterator[slice]) -> None:
        with scratch() as memory:
            for part in parts:
                memory.clear()
                compute(memory, *(array[part] for array in flat))

    parallel.share(work, parallel.split(planes, max(1, -(-planes // count))))
