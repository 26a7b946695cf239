"""How bulk tensor copies see an array: the maps of `src/wgmma.cuh`, which the driver encodes (sm_90 and newer).

What is copied at once are lines of 128 bytes, swizzled; what lies outside of the array is zero.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

LINE = 64  # values of 2 bytes
MOST_BOX = 256  # lines that one copy can take
MOST_STEP = 8
CORNERS = range(-128, 128)  # what a window's corners can be
MOST_OFFSET = 255

ENCODED = np.dtype([("words", np.uint64, 16)])
_ALIGNMENT = 64

# Of cuda.h.
_DATA_TYPES = {"float16": 6, "bfloat16": 9}
_NO_INTERLEAVE, _SWIZZLE_128, _L2_256_BYTES, _ZERO_FILL = 0, 3, 3, 0


@dataclass(frozen=True)
class Window:
    """First pixels that are visited: from `lower` on, by `steps`, up to `upper` before the last pixel. All (w, h)."""

    lower: tuple[int, int]
    upper: tuple[int, int]
    steps: tuple[int, int]

    def is_possible(self) -> bool:
        return all(c in CORNERS for c in (*self.lower, *self.upper)) and max(self.steps) <= MOST_STEP


@dataclass(frozen=True)
class TensorMap:
    """An array of four dims, innermost first: `pitches` are elements between neighbours in all dims but the first.

    A copy takes `lines` lines: neighbours in the outermost dim, or, where there is a `window`, pixels that follow
    each other in it; dims are then (channels, width, height, images).
    """

    c_type: str
    dims: tuple[int, int, int, int]
    pitches: tuple[int, int, int]
    lines: int
    window: Window | None = None

    @property
    def strides(self) -> tuple[int, ...]:
        """In bytes."""
        return tuple(2 * pitch for pitch in self.pitches)

    @property
    def box(self) -> tuple[int, int, int, int]:
        return LINE, 1, 1, self.lines


def encode(tensor_map: TensorMap, pointer: int) -> np.ndarray:
    """The map of the array at `pointer`, to be passed to a kernel by value. Raises RuntimeError where there is none."""
    memory = np.zeros(ENCODED.itemsize + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    encoded = memory[start : start + ENCODED.itemsize]
    data_type, rank = _DATA_TYPES[tensor_map.c_type], len(tensor_map.dims)
    array = (
        ctypes.c_void_p(encoded.ctypes.data),
        ctypes.c_int(data_type),
        ctypes.c_uint32(rank),
        ctypes.c_void_p(pointer),
        (ctypes.c_uint64 * 4)(*tensor_map.dims),
        (ctypes.c_uint64 * 3)(*tensor_map.strides),
    )
    modes = (ctypes.c_int(mode) for mode in (_NO_INTERLEAVE, _SWIZZLE_128, _L2_256_BYTES, _ZERO_FILL))
    window = tensor_map.window
    if window is None:
        name = "cuTensorMapEncodeTiled"
        box: tuple[Any, ...] = ((ctypes.c_uint32 * 4)(*tensor_map.box), (ctypes.c_uint32 * 4)(1, 1, 1, 1))
    else:
        name = "cuTensorMapEncodeIm2col"
        box = (
            (ctypes.c_int * 2)(*window.lower),
            (ctypes.c_int * 2)(*window.upper),
            ctypes.c_uint32(LINE),
            ctypes.c_uint32(tensor_map.lines),
            (ctypes.c_uint32 * 4)(1, *window.steps, 1),
        )
    result = getattr(_driver(), name)(*array, *box, *modes)
    if result:
        raise RuntimeError(f"{name}: the driver's error {result} for {tensor_map} at {pointer:#x}")
    return encoded.view(ENCODED)


@cache
def _driver() -> ctypes.CDLL:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    return ctypes.CDLL(name)
