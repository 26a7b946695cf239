"""What the formulas of the activations share: memory, arrays of constants, choices without branches."""

from __future__ import annotations

from functools import cache

import numpy as np

from .scratch import Scratch

Array = np.ndarray

PIECE_BYTES = 1 << 17


class Work:
    """Memory for the steps between, made when first asked for, and arrays of constants; of one piece's length."""

    def __init__(self, memory: Scratch, length: int, dtype: np.dtype) -> None:
        self.memory, self.most, self.dtype = memory, length, dtype
        self._arrays: dict[tuple[str, int], Array] = {}
        self.cut(length)

    def cut(self, length: int) -> None:
        """Go on with a piece of this length, which is at most that of the first."""
        self.length = length
        self.zero, self.one = (array[:length] for array in _constants(length, self.dtype))

    def array(self, number: int) -> Array:
        """Scratch array `number`."""
        return self._kept("array", number, self.dtype)

    def wide(self, number: int) -> Array:
        """The same, for the pieces of half types."""
        return self._kept("wide", number, self.dtype)

    @property
    def mask(self) -> Array:
        """Scratch memory of bools."""
        return self._kept("mask", 0, np.dtype(bool))

    def _kept(self, use: str, number: int, dtype: np.dtype) -> Array:
        array = self._arrays.get((use, number))
        if array is None:
            array = self._arrays[use, number] = self.memory.empty((self.most,), dtype)
        return array[: self.length]


@cache
def _kept_constants(dtype: np.dtype) -> tuple[Array, Array]:
    length = PIECE_BYTES // dtype.itemsize
    return np.zeros(length, dtype), np.ones(length, dtype)


def _constants(length: int, dtype: np.dtype) -> tuple[Array, Array]:
    if length * dtype.itemsize <= PIECE_BYTES:
        return _kept_constants(dtype)
    return np.zeros(length, dtype), np.ones(length, dtype)


def keep(mask: Array, x: Array, out: Array) -> None:
    """x where the mask is true, else zero, whatever x is there: its bits times 0 or 1."""
    bits = bits_of(x.dtype)
    np.multiply(x.view(bits), mask.view(np.uint8), out=out.view(bits))


def bits_of(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"u{dtype.itemsize}")


def two_slopes(mask: Array, a: float, slope: Array, work: Work) -> None:
    """1 where the mask is true, else `a`."""
    np.copyto(slope, mask)
    if 0 <= a <= 1:  # 1 - a rounds to what, with a, rounds to 1
        slope *= slope.dtype.type(1) - slope.dtype.type(a)
        slope += a
        return
    t = np.subtract(work.one, slope, out=work.array(0))
    t *= a
    slope += t
