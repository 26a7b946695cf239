"""Copies with channels last, so that a pixel's channels can be loaded together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import launch
from .conv_axes import THREADS
from .kernel import Kernel
from .launch import divide_up
from .pool_plan import divisor

Array = Any

_TYPES = ("float", "float16", "bfloat16")
_VECTOR = 4  # kVector in channels_last.cu
_TILE_SIZE = 2112  # kTileSize in channels_last.cu
_WANTED = 2048  # values of a tile: some space is left between lines

VARIANTS = [
    *(Kernel("channels_last.cu", f"channels_last<{t}, false>", least=80) for t in _TYPES),
    Kernel("channels_last.cu", "channels_last<float, true>", least=80),
]

_DIVISOR = np.dtype([("multiplier", np.uint32), ("shift", np.int32)])
_CHANNELS_LAST = np.dtype(
    [
        *((name, np.int32) for name in ("channels", "padded", "plane", "across", "down", "pitch")),
        *((name, np.int32) for name in ("column_tiles", "row_tiles")),
        *((name, _DIVISOR) for name in ("by_across", "by_vectors")),
    ],
    align=True,
)


def images_with_channels_last(x: Array, groups: int, padded: int, to_tf32: bool = False) -> Array:
    """(N, C, *sizes) as (N * groups, places, padded): x itself where it lies so already, else a copy."""
    channels, places = x.shape[1] // groups, math.prod(x.shape[2:])
    last = x.transpose(0, *range(2, x.ndim), 1)
    as_it_lies = groups == 1 and padded == channels and not to_tf32
    if as_it_lies and last.flags.c_contiguous and launch.aligned(x, 16):
        return last
    return channels_last(launch.contiguous(x), len(x) * groups, channels, places, padded, to_tf32)


def channels_last(array: Array, images: int, channels: int, plane: int, padded: int, to_tf32: bool) -> Array:
    """A contiguous (images, channels, plane) as (images, plane, padded) with zeros behind the channels.

    `padded` is a multiple of 4. `to_tf32` rounds floats to the nearest TF32.
    """
    copy = launch.empty((images, plane, padded), array.dtype, array)
    if copy.size == 0:
        return copy
    tiles = divide_up(plane, max(64, _WANTED // padded))
    across = divide_up(plane, tiles)
    # Halves share a bank by twos: an odd number of words in a line too.
    pitch = across | 1 if array.itemsize == 4 else 2 * (divide_up(across, 2) | 1)
    down = min(padded, _TILE_SIZE // pitch // _VECTOR * _VECTOR)
    row_tiles = divide_up(padded, down)
    settings = launch.struct(
        _CHANNELS_LAST,
        channels=channels,
        padded=padded,
        plane=plane,
        across=across,
        down=down,
        pitch=pitch,
        column_tiles=tiles,
        row_tiles=row_tiles,
        by_across=divisor(across),
        by_vectors=divisor(down // _VECTOR),
    )
    kernel = Kernel(
        "channels_last.cu", f"channels_last<{launch.c_type(array.dtype)}, {str(to_tf32).lower()}>", least=80
    )
    launch.launch(kernel, (images * row_tiles * tiles,), (THREADS,), [array, copy, settings])
    return copy
