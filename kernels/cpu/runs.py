"""Arrays (N, C, ...) in pieces of a few channels, or of parts of them, and sums over their channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..geometry import channel_runs
from . import parallel
from .scratch import Scratch, scratch

_PIECE_BYTES = 4 << 20  # of all arrays; smaller ones are passed on too often
# A channel of more bytes is cut into pieces, and read twice.
_CHANNEL_BYTES = 2 << 20
# Below so many elements one piece is faster than two threads, and than parts of channels one after the other.
_SMALL = 1 << 20
# Rows of fewer bytes cost more than their bytes where only some of the channels are taken.
_LEAST_ROW = 256
# Runs of fewer elements are worked on with one number for each element of an image, not for each channel.
_LONG_RUN = 4096
# Shorter rows are joined, up to so many elements: NumPy begins a loop for each.
_JOINED = 8192
# From so many elements on a dot product for each run is faster than sums over the images.
_DOT_RUN = 64
# So many float32 numbers are added before float64 takes over, and at most so many by one call of BLAS.
_MOST_ROWS = 256
_LONGEST_DOT = 8192

Array = np.ndarray
Result = TypeVar("Result")


class Piece(NamedTuple):
    """Images, channels and a part of each run."""

    images: slice
    channels: slice
    run: slice


class Runs:
    """Arrays of one shape (N, C, ...) as (N, C, L), and the pieces that are worked on at a time."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, arrays: int) -> None:
        self.shape = n, c, length = channel_runs(shape)
        self.dtype = dtype
        self.count = n * length
        self.expands = length < _LONG_RUN and n > 3
        channel = n * length * dtype.itemsize
        budget = _PIECE_BYTES // arrays
        step = max(1, budget // max(1, channel), -(-_LEAST_ROW // max(1, length * dtype.itemsize)))
        # At least one piece for each of two threads.
        step = c if n * c * length < _SMALL else min(step, -(-c // 2))
        self.whole = step * channel <= _CHANNEL_BYTES or n * c * length < _SMALL
        self.pieces = self._whole(step) if self.whole else self._parts(budget // dtype.itemsize)
        self._joined = 1
        if self.expands and len(self.pieces) == 1:
            while n % (2 * self._joined) == 0 and 2 * self._joined * c * length <= _JOINED:
                self._joined *= 2
        self._ones = np.ones(max(_MOST_ROWS, min(length, _LONGEST_DOT)), dtype)

    def _whole(self, step: int) -> list[Piece]:
        """Some channels each."""
        n, c, length = self.shape
        parts = -(-c // max(1, step))
        parts += parts % 2 if parts > 1 else 0  # as many for each of two threads
        step = -(-c // min(parts, c)) if parts else 1
        return [Piece(slice(0, n), part, slice(0, length)) for part in parallel.split(c, step)]

    def _parts(self, elements: int) -> list[Piece]:
        """At most so many elements each."""
        n, c, length = self.shape
        run = min(length, max(1, elements))
        channels = min(c, max(1, elements // run))
        images = max(1, elements // (run * channels))
        return [
            Piece(i, j, k)
            for i in parallel.split(n, images)
            for j in parallel.split(c, channels)
            for k in parallel.split(length, run)
        ]

    def view(self, array: Array) -> Array:
        return np.ascontiguousarray(array).reshape(self.shape)

    def cut(self, array: Array, piece: Piece) -> Array:
        """The piece of an (N, C, L) array in the form in which numbers of channels are spread over it."""
        part = array[piece] if len(self.pieces) > 1 else array
        return part.reshape(len(part) // self._joined, -1) if self.expands else part

    def spread(self, vector: Array, piece: Piece) -> Array:
        """One number per channel so that it broadcasts over a piece."""
        vector = vector.astype(self.dtype, copy=False)
        if not self.expands:
            return vector[:, None]
        length = piece.run.stop - piece.run.start
        row = vector if length == 1 else vector.repeat(length)
        return row if self._joined == 1 else row[None].repeat(self._joined, axis=0).reshape(-1)

    def sums(self, a: Array, piece: Piece, b: Array | None = None) -> Array:
        """For each channel of a piece the sum of a, or of a times b, in float64."""
        channels = piece.channels.stop - piece.channels.start
        length = piece.run.stop - piece.run.start
        if length < _DOT_RUN:
            return self._sums_over_images(a, b, channels, length)
        a = a.reshape(-1, channels, length)
        b = self._ones[:length] if b is None else b.reshape(a.shape)
        if length <= _LONGEST_DOT:
            return np.add.reduce(np.vecdot(a, b), axis=0, dtype=np.float64)
        total = np.zeros(channels)
        for part in parallel.split(length, _LONGEST_DOT):
            other = b if b.ndim == 1 else b[..., part]
            of_runs = np.vecdot(a[..., part], other[..., : part.stop - part.start])
            total += np.add.reduce(of_runs, axis=0, dtype=np.float64)
        return total

    def _sums_over_images(self, a: Array, b: Array | None, channels: int, length: int) -> Array:
        a = a.reshape(-1, channels * length)
        b = b if b is None else b.reshape(a.shape)
        rows = max(1, min(_MOST_ROWS, parallel.SMALL_PRODUCT // a.shape[1]))
        total: Any = 0.0
        for part in parallel.split(len(a), rows):
            some = a[part]
            found = self._ones[: len(some)] @ some if b is None else np.einsum("nc,nc->c", some, b[part])
            total = total + found if part.start else found.astype(np.float64)
        return total if length == 1 else np.add.reduce(total.reshape(channels, length), axis=1)

    def share(self, work: Callable[[Piece, Scratch], Result]) -> list[Result]:
        """What `work` returns for each piece."""
        if len(self.pieces) == 1:
            with np.errstate(all="ignore"), scratch() as memory:
                return [work(self.pieces[0], memory)]
        results: list[Any] = [None] * len(self.pieces)

        def each(numbers: Iterator[int]) -> None:
            for number in numbers:
                with scratch() as memory:
                    results[number] = work(self.pieces[number], memory)

        nbytes = self.count * self.shape[1] * self.dtype.itemsize
        parallel.share(each, range(len(self.pieces)), parallel.worth(nbytes))
        return results

    def add_up(self, work: Callable[[Piece, Scratch], tuple[Array, Array]]) -> tuple[Array, Array]:
        """The sums over all pieces of the two vectors that `work` returns for the channels of each."""
        totals = np.zeros((2, self.shape[1]))
        for piece, found in zip(self.pieces, self.share(work), strict=True):
            totals[:, piece.channels] += found
        return totals[0], totals[1]


runs_of = lru_cache(maxsize=256)(Runs)
