"""How a pooling is cut into tiles, one for each block; the host's side of src/pool.cuh."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from ..geometry.pooling import Sizes
from .launch import divide_up

BLOCK = 256
LARGEST_PLANE = 2**31 - 1  # positions in a plane are int32

# Shared memory of a block: eight of them on a large GPU; four where smaller tiles would load much twice.
_SHARED, _MOST_SHARED = 24 << 10, 48 << 10
_MUCH_TWICE = 1.1
# A constant, so that tiles and with them the order of sums are the same on every device.
_LEAST_BLOCKS = 512
_LEAST_PLACES, _MOST_PLACES = 1024, 8192
_DIRECT_PLACES = 1024
# More passes than this over a tile, and each element asks the windows that cover it.
_MOST_CLASSES = 9
# From so many elements of a window on, so many neighbouring threads share it.
_LANES = ((512, 32), (32, 8), (0, 1))

DIVISOR = np.dtype([("multiplier", np.uint32), ("shift", np.int32)], align=True)
_AXIS = np.dtype(
    [
        *((name, np.int32) for name in ("size", "count", "kernel", "stride", "pad", "dilation")),
        *((name, np.int32) for name in ("tile", "tiles", "classes", "reach")),
        *((f"by_{name}", DIVISOR) for name in ("kernel", "stride", "dilation", "tile", "tiles", "reach")),
    ],
    align=True,
)
_POOL = np.dtype(
    [
        ("axis", _AXIS, 3),
        ("planes", np.int64),
        ("planes_per_block", np.int32),
        ("by_volume", DIVISOR),
        *((name, np.int32) for name in ("offset_bytes", "adaptive", "whole", "count_include_pad", "lanes")),
        *((name, np.int32) for name in ("second", "third")),
        ("divisor", np.float64),
        ("norm", np.float64),
    ],
    align=True,
)


class Pooling(NamedTuple):
    """One pooling of (N, C, *spatial), and what the kernels need to know of it."""

    operation: str
    x_shape: Sizes
    y_shape: Sizes
    kernel_size: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    itemsize: int
    adaptive: bool = False
    offset_bytes: int = 0
    count_include_pad: bool = False
    divisor: float = 0.0  # of every window, or 0 where each has its own
    norm: float = 0.0


class Plan(NamedTuple):
    """What to launch: `staged` tells one variant from the other."""

    staged: bool
    grid: tuple[int]
    pool: np.ndarray
    shared_bytes: int


class _Axis(NamedTuple):
    size: int
    windows: int
    kernel: int
    stride: int
    pad: int
    dilation: int
    adaptive: bool

    @property
    def extent(self) -> int:
        return (self.kernel - 1) * self.dilation + 1

    @property
    def classes(self) -> int:
        """Windows this far apart share no element."""
        return min(divide_up(self.extent, self.stride), self.windows)

    def seen(self, count: int) -> int:
        """Elements that a tile of so many windows needs."""
        if count >= self.windows:
            return self.size
        if self.adaptive:
            return min(self.size, count * self.size // self.windows + 2)
        return min(self.size, (count - 1) * self.stride + self.extent)

    def met(self, elements: int) -> int:
        """Windows that meet a tile of so many elements, at most."""
        if elements >= self.size:
            return self.windows
        if self.adaptive:
            return min(self.windows, elements * self.windows // self.size + 2)
        if elements % self.stride == 0:  # every tile begins at the same place of a window
            last, before = (elements - 1 + self.pad) // self.stride, (self.pad - self.extent) // self.stride
            return min(self.windows, last - before)
        return min(self.windows, (elements + self.extent - 2) // self.stride + 1)


class _Tile(NamedTuple):
    along: Sizes
    planes: int
    arrays: tuple[int, ...]  # bytes of each array in shared memory

    @property
    def places(self) -> int:
        return prod(self.along) * self.planes


@lru_cache(maxsize=1024)
def plan(pooling: Pooling, direction: str) -> Plan:
    """The plan of a pass: "max", "average", "scatter" or "spread", or "places" for windows taken one by one."""
    axes = _axes(pooling)
    if prod(axis.size for axis in axes) > LARGEST_PLANE or prod(axis.windows for axis in axes) > LARGEST_PLANE:
        sizes = " x ".join(map(str, pooling.x_shape[2:]))
        raise ValueError(
            f"{pooling.operation}: on CUDA one plane may have {LARGEST_PLANE} elements, got {sizes} pooled to "
            f"{' x '.join(map(str, pooling.y_shape[2:]))}"
        )
    planes = pooling.x_shape[0] * pooling.x_shape[1]
    backward = direction in ("scatter", "spread")
    whole = direction == "spread" and _is_whole(pooling, axes)
    tile = None if direction == "places" or whole else _staged_tile(pooling, direction, axes, planes)
    staged = tile is not None
    lanes = 1 if backward or direction == "places" else _lanes(pooling)
    if tile is None:
        tile = _direct_tile(axes, planes, backward, (4 if whole else 1) * _DIRECT_PLACES // lanes)
    while 1 < lanes < 32 and tile.places * lanes < BLOCK:
        lanes *= 2
    tiles = [divide_up(axis.size if backward else axis.windows, n) for axis, n in zip(axes, tile.along, strict=True)]
    second, third, end = np.cumsum([*tile.arrays, 0, 0, 0])[:3].tolist() if staged else (0, 0, 0)
    pool = np.zeros(1, _POOL)
    pool[0] = (
        [_axis_fields(axis, n, count) for axis, n, count in zip(axes, tile.along, tiles, strict=True)],
        planes,
        tile.planes,
        divisor(prod(axis.size for axis in axes)),
        pooling.offset_bytes,
        pooling.adaptive,
        whole,
        pooling.count_include_pad,
        lanes,
        second,
        third,
        pooling.divisor,
        pooling.norm,
    )
    pool.flags.writeable = False
    return Plan(staged, (divide_up(planes, tile.planes) * prod(tiles),), pool, end)


def divisor(n: int) -> tuple[int, int]:
    """The fields of the struct Divisor in divisor.cuh, for 1 <= n <= 2^31."""
    shift = 31 + (n - 1).bit_length()
    return (1 << shift) // n + 1, shift


def _axes(pooling: Pooling) -> tuple[_Axis, ...]:
    settings = zip(
        pooling.x_shape[2:],
        pooling.y_shape[2:],
        pooling.kernel_size,
        pooling.stride,
        pooling.padding,
        pooling.dilation,
        strict=True,
    )
    axes = [
        # A stride or dilation that no window ever uses may be any number.
        _Axis(size, windows, kernel, min(stride, 2**30), pad, min(dilation, 2**30), pooling.adaptive)
        for size, windows, kernel, stride, pad, dilation in settings
    ]
    return (*[_Axis(1, 1, 1, 1, 0, 1, pooling.adaptive)] * (3 - len(axes)), *axes)


def _axis_fields(axis: _Axis, tile: int, tiles: int) -> tuple:
    reach = divide_up(axis.met(tile), axis.classes)
    numbers = (axis.size, axis.windows, axis.kernel, axis.stride, axis.pad, axis.dilation, tile, tiles)
    by = (axis.kernel, axis.stride, axis.dilation, tile, tiles, reach)
    return (*numbers, axis.classes, reach, *map(divisor, by))


def _is_whole(pooling: Pooling, axes: tuple[_Axis, ...]) -> bool:
    one = all(axis.windows == 1 and axis.pad == 0 and axis.extent >= axis.size and axis.dilation == 1 for axis in axes)
    return one and pooling.divisor != 0


def _lanes(pooling: Pooling) -> int:
    return next(lanes for least, lanes in _LANES if prod(pooling.kernel_size) >= least)


def _staged_tile(pooling: Pooling, direction: str, axes: tuple[_Axis, ...], planes: int) -> _Tile | None:
    """The tile for which least is loaded twice, None if none fits or staging would load what nobody needs."""
    if direction == "scatter" and (pooling.adaptive or prod(axis.classes for axis in axes) > _MOST_CLASSES):
        return None
    if _gaps(axes):
        return None
    best = _best_tile(pooling, direction, axes, planes, _SHARED)
    if best is None or best[0] > _MUCH_TWICE:
        larger = _best_tile(pooling, direction, axes, planes, _MOST_SHARED)
        if larger is not None and (best is None or larger[0] < best[0]):
            best = larger
    return None if best is None else best[1]


def _gaps(axes: tuple[_Axis, ...]) -> bool:
    """Whether windows leave out much of the input."""
    used = prod(min(axis.size, axis.windows * axis.extent) for axis in axes if not axis.adaptive)
    return 2 * used < prod(axis.size for axis in axes if not axis.adaptive)


def _best_tile(
    pooling: Pooling, direction: str, axes: tuple[_Axis, ...], planes: int, most: int
) -> tuple[float, _Tile] | None:
    backward = direction in ("scatter", "spread")
    lengths = [axis.size if backward else axis.windows for axis in axes]
    whole_seen = prod(axis.windows if backward else axis.size for axis in axes)
    # Fewer elements a block where there would be fewer blocks than a large GPU has room for.
    fair = max(_LEAST_PLACES, min(_MOST_PLACES, planes * prod(lengths) // _LEAST_BLOCKS))
    best: tuple[float, _Tile] | None = None
    for along in product(*map(_candidates, lengths, (1, 1, 32))):
        places = prod(along)
        if places > fair and not (along[0] == along[1] == 1 and along[2] <= _LEAST_PLACES):
            continue
        seen = prod((axis.met if backward else axis.seen)(n) for axis, n in zip(axes, along, strict=True))
        arrays = _arrays(pooling, direction, seen, places)
        room = most // sum(arrays)
        if room == 0:
            continue
        full = list(along) == lengths
        tiles = prod(divide_up(length, n) for length, n in zip(lengths, along, strict=True))
        # What all blocks load and store, over what there is. Small tiles leave threads without work, and parts of
        # rows are loaded with parts of sectors at both ends.
        cost = (tiles * seen + prod(lengths)) / (whole_seen + prod(lengths))
        cost *= (1 if full else 1 + 32 / places) * (1 if along[2] == lengths[2] else 1 + 32 / along[2])
        count = max(1, min(room, fair // places, planes)) if full else 1
        if best is None or cost < best[0]:
            best = cost, _Tile(along, count, _arrays(pooling, direction, seen * count, places * count))
    return best


def _candidates(length: int, least: int) -> Iterator[int]:
    yield length
    n = 1 << max(0, length - 1).bit_length()
    while n > least:
        n //= 2
        if n < length:
            yield n


def _arrays(pooling: Pooling, direction: str, seen: int, places: int) -> tuple[int, ...]:
    """Bytes of what a block keeps in shared memory, in the order in which the kernels lay it out."""
    item, wide, offset = pooling.itemsize, max(4, pooling.itemsize), pooling.offset_bytes
    if direction == "max":
        sizes: tuple[int, ...] = (seen * item, places * item, places * offset)
    elif direction == "average":
        sizes = (seen * wide, places * item)
    elif direction == "scatter":
        sizes = (places * wide, seen * item, seen * offset)
    else:
        sizes = (seen * wide, places * item, seen * wide if pooling.norm else 0)
    # Each begins where its region begins within 16 bytes of memory: of 8 half-precision numbers widened, 32.
    return tuple(divide_up(size, 16) * 16 + 32 for size in sizes)


def _direct_tile(axes: tuple[_Axis, ...], planes: int, backward: bool, places: int) -> _Tile:
    """Rows, then slices, then planes, until there are enough places for a block."""
    along = [1, 1, 1]
    left = places
    for number in (2, 1, 0):
        length = axes[number].size if backward else axes[number].windows
        along[number] = max(1, min(length, left))
        left //= along[number]
        if along[number] < length:
            return _Tile(tuple(along), 1, ())
    fair = max(divide_up(planes, _LEAST_BLOCKS), places // 4 // prod(along))
    return _Tile(tuple(along), max(1, min(left, fair)), ())
