"""Random numbers on CUDA: a Philox stream whose place lies on the device, and the launches of src/random.cu."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from . import launch
from .kernel import Kernel

Array = Any

_SOURCE = "random.cu"
_BLOCK = 256
_TAKE = Kernel(_SOURCE, "philox_take")
_INTEGERS = Kernel(_SOURCE, "random_integers")
_WORDS = Kernel(_SOURCE, "philox_words")


def _floats(kind: str, scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"random_{kind}<{scalar}>")


class Philox:
    """A stream of random numbers, with the methods of `numpy.random.Generator` that adjoint uses.

    `place` (2,) of int64 on the device is all of its state: the seed, and how many values of the counter are used up.
    It is read and advanced there: nothing waits, and a captured graph draws new numbers at each replay.
    """

    def __init__(self, place: Array) -> None:
        if place.shape != (2,) or place.dtype != np.int64:
            raise ValueError(f"Philox: place must be int64 of the shape (2,), got {place.dtype} of {place.shape}")
        self.place = place

    def take(self, count: int) -> Array:
        """Where the next `count` values of the counter begin, (2,) of int64."""
        taken = launch.empty((2,), np.int64, self.place)
        launch.launch(_TAKE, (1,), (1,), (self.place, taken, np.int64(count)))
        return taken

    def random(self, size: Sequence[int], dtype: Any = np.float64) -> Array:
        """Uniform numbers in [0, 1), float32 or float64."""
        return self._filled("uniform", size, np.dtype(dtype))

    def standard_normal(self, size: Sequence[int], dtype: Any = np.float64) -> Array:
        """Normal numbers, float32 or float64."""
        return self._filled("normal", size, np.dtype(dtype))

    def integers(self, low: int, high: int, size: Sequence[int], dtype: Any = np.int64) -> Array:
        """Whole numbers in [low, high), int64."""
        if np.dtype(dtype) != np.int64 or not -(2**63) <= low < high <= 2**63:
            raise ValueError(f"integers: expected int64 and low < high, got {dtype}, {low} and {high}")
        out = launch.empty(size, np.int64, self.place)
        self._fill(_INTEGERS, out, np.int64(low), np.array(high - low).astype(np.uint64).astype(np.int64)[()])
        return out

    def _filled(self, kind: str, size: Sequence[int], dtype: np.dtype) -> Array:
        out = launch.empty(size, dtype, self.place)
        self._fill(_floats(kind, launch.c_type(dtype)), out)
        return out

    def _fill(self, kernel: Kernel, out: Array, *settings: Any) -> None:
        count = prod(out.shape)
        if count:
            packs = launch.divide_up(count, 16 // out.dtype.itemsize)
            args = (self.take(packs), out, np.int64(count), *settings)
            launch.launch(kernel, (launch.divide_up(packs, _BLOCK),), (_BLOCK,), args)


VARIANTS = [
    _TAKE,
    _WORDS,
    _INTEGERS,
    *(_floats(kind, scalar) for kind in ("uniform", "normal") for scalar in ("float", "double")),
]
