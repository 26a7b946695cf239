"""What the formulas of the activations share: memory, arrays of constants, choices without branches."""

from __future__ import annotations

from functools import cache

import numpy as np

from .scratch import Scratch

Array = np.ndarray

# Of each array. Longer than the second-level cache would have it: threads of one interpreter get in each other's way
# where loops are short. A thread that works alone takes twice as much.
PIECE_BYTES = 1 << 19


class Work:
    """Memory for the steps between, made when first asked for, and arrays of constants; of one piece's length."""

    __slots__ = ("_arrays", "dtype", "length", "memory", "most")

    def __init__(self, memory: Scratch | None, length: int, dtype: np.dtype) -> None:
        self.memory, self.most, self.dtype = memory, length, dtype
        self._arrays: dict[tuple[str, int], Array] = {}
        self.length = length

    def cut(self, length: int) -> None:
        """Go on with a piece of this length, which is at most that of the first."""
        self.length = length

    @property
    def zero(self) -> Array:
        """Zeros."""
        return constant(0, self.length, self.dtype)

    @property
    def one(self) -> Array:
        """Ones."""
        return constant(1, self.length, self.dtype)

    def array(self, number: int) -> Array:
        """Scratch array `number`."""
        return self._kept("array", number, self.dtype)

    def wide(self, number: int) -> Array:
        """The same, for the pieces of half types."""
        return self._kept("wide", number, self.dtype)

    @property
    def mask(self) -> Array:
        """Scratch memory of bools."""
        return self._kept("mask", 0, _BOOL)

    def _kept(self, use: str, number: int, dtype: np.dtype) -> Array:
        array = self._arrays.get((use, number))
        if array is None:
            shape = (self.most,)
            array = np.empty(shape, dtype) if self.memory is None else self.memory.empty(shape, dtype)
            self._arrays[use, number] = array
        return array[: self.length]


_BOOL = np.dtype(bool)
_UINT32, _UINT64 = np.dtype(np.uint32), np.dtype(np.uint64)


@cache
def _kept_constant(value: int, dtype: np.dtype) -> Array:
    kept = np.full(2 * PIECE_BYTES // dtype.itemsize, value, dtype)
    kept.flags.writeable = False
    return kept


def constant(value: int, length: int, dtype: np.dtype) -> Array:
    """`value` so many times."""
    kept = _kept_constant(value, dtype)
    return kept[:length] if length <= len(kept) else np.full(length, value, dtype)


def keep(mask: Array, x: Array, out: Array) -> None:
    """x where the mask is true, else zero, whatever x is there: its bits times 0 or 1."""
    bits = bits_of(x.dtype)
    np.multiply(x.view(bits), mask.view(np.uint8), out=out.view(bits))


def bits_of(dtype: np.dtype) -> np.dtype:
    """The unsigned integers of the same size."""
    return _UINT64 if dtype.itemsize == 8 else _UINT32


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
