"""Depthwise convolution on CUDA: which windows have kernels of their own, and how their planes are cut into tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from ..geometry import Pads, Sizes
from . import launch
from .kernel import Kernel
from .launch import FLOAT_TYPES, divide_up

Array = Any


@dataclass(frozen=True)
class Patch:
    """What a thread makes, `rows` x `columns` targets, and what it reads of a source tile in shared memory.

    A row of patches lies `down` source rows below the one before it, and sees `more` rows beyond them; a thread's
    elements of a row lie `across` behind those of the thread before it, and are `span` elements.
    """

    rows: int
    columns: int
    down: int
    more: int
    across: int
    span: int


@dataclass(frozen=True)
class Window:
    """The template arguments of a kernel, as in src/depthwise.cuh. All taps lie side by side."""

    depth: int
    height: int
    width: int
    stride: int
    padding: int
    rows: int

    @property
    def patch(self) -> Patch:
        columns = _VECTOR // self.stride
        seen = _MARGIN - self.padding + (columns - 1) * self.stride + self.width
        down, more = self.rows * self.stride, self.height - self.stride
        return Patch(self.rows, columns, down, more, _VECTOR, divide_up(seen, _VECTOR) * _VECTOR)

    @property
    def for_weight_grad(self) -> Window:
        """Where rows of a patch are met one at a time (`add_row_by_row`), they may be more."""
        return replace(self, rows=7) if self.depth == self.stride == 1 < self.height else self

    def kernel(self, source: str, name: str, c_type: str) -> Kernel:
        sizes = (self.depth, self.height, self.width, self.stride, self.padding, self.rows)
        return Kernel(source, f"{name}<{c_type}, {', '.join(map(str, sizes))}>")


_VECTOR = 4  # kVector
_MARGIN = 4  # kMargin
_LARGEST_BLOCK = 256
_WARP = 32

_ROW = Window(1, 1, 8, 1, 3, 1)  # of up to 8 taps
_WINDOWS: dict[tuple[int, ...], Window] = {
    (1, 3, 3, 1): Window(1, 3, 3, 1, 1, 4),
    (1, 3, 3, 2): Window(1, 3, 3, 2, 1, 4),
    (1, 5, 5, 1): Window(1, 5, 5, 1, 2, 4),
    (1, 7, 7, 1): Window(1, 7, 7, 1, 3, 4),
    (3, 3, 3, 1): Window(3, 3, 3, 1, 1, 2),
}
_TYPES = tuple(c_type for c_type in FLOAT_TYPES if c_type != "double")
_STRIDE2 = {c_type: Kernel("depthwise.cu", f"depthwise_input_grad_stride2<{c_type}, 3, 1>") for c_type in _TYPES}

TAPS_AT_ONCE = 9  # kTapsAtOnce

_STRIDE2_PATCH = Patch(rows=4, columns=4, down=2, more=1, across=2, span=8)

# Several blocks of a multiprocessor share its memory, and more than 48 KB would have to be asked for.
_SHARED_BYTES = 40 * 1024
# A walk along the depth is cut into chunks, which read the planes between them twice, until there are so many blocks. A
# weight gradient is cut into so many parts. Constants, so that every device adds in the same order.
_WANTED_BLOCKS = 1024
_LEAST_DEPTHS = 4

VARIANTS = [
    *(window.kernel("depthwise.cu", "depthwise", t) for window in (*_WINDOWS.values(), _ROW) for t in _TYPES),
    *_STRIDE2.values(),
    *(
        window.for_weight_grad.kernel("depthwise_weight_grad.cu", "depthwise_weight_grad", t)
        for window in (*_WINDOWS.values(), _ROW)
        for t in _TYPES
    ),
    *(Kernel("depthwise_weight_grad.cu", f"depthwise_weight_grad_any<{t}>") for t in FLOAT_TYPES),
]

_TRIPLE = (np.int32, 3)
_IMAGES = np.dtype([("pitches", np.int64, 3), ("sizes", *_TRIPLE)], align=True)
_DEPTHWISE = np.dtype(
    [
        ("source", _IMAGES),
        ("target", _IMAGES),
        ("pad", *_TRIPLE),
        *((name, np.int32) for name in ("planes", "filters", "multiplier", "planes_at_once")),
        *((name, np.int32) for name in ("bands", "column_tiles", "chunks", "depths")),
        *((name, np.int32) for name in ("lanes", "lanes_used", "tile_rows")),
        *((name, np.int32) for name in ("taps_w", "flipped")),
        *((name, *_TRIPLE) for name in ("tile", "patch")),
        *((name, np.int32) for name in ("images", "units", "units_of_part")),
    ],
    align=True,
)


def window_of(dtype: Any, weight_shape: Sizes, stride: Sizes, dilation: Sizes, groups: int) -> Window | None:
    """The window that forward and weight gradient are compiled for, None where the general kernels are to be used."""
    taps = weight_shape[2:]
    if weight_shape[1] != 1 or groups == 1 or launch.c_type(dtype) == "double":
        return None
    if any(gap != 1 for gap, count in zip(dilation, taps, strict=True) if count > 1):
        return None
    if math.prod(taps[:-1]) == 1 and set(stride) == {1} and taps[-1] <= _ROW.width:
        return _ROW
    if any(step != (stride[-1] if count > 1 else 1) for step, count in zip(stride, taps, strict=True)):
        return None
    return _WINDOWS.get((*(1,) * (3 - len(taps)), *taps, stride[-1]))


def input_grad_window(
    dtype: Any, weight_shape: Sizes, stride: Sizes, padding: Pads, dilation: Sizes, groups: int
) -> Window | None:
    """The same for the input gradient."""
    window = window_of(dtype, weight_shape, stride, dilation, groups)
    if window is None or weight_shape[0] != groups:
        return None
    paddings = {pads[0] for pads, count in zip(padding, weight_shape[2:], strict=True) if count > 1}
    return window if window.stride == 1 or paddings == {window.padding} else None


def forward(
    window: Window, x: Array, weight: Array, bias: Array | None, y: Array, before: Sequence[int], flipped: bool = False
) -> None:
    """The convolution y of x, so much padding before it; `flipped`: by the filters read backwards."""
    images, channels = x.shape[:2]
    filters, *target = y.shape[1:]
    # The channels of several filters would not lie one after the other.
    most = _LARGEST_BLOCK if filters == channels else 1
    tiles = _tiles(window.patch, *_three(target)[1:], min(most, images * filters))
    groups = divide_up(images * filters, tiles.planes)
    chunks, depths = _chunks(window, _three(target)[0], groups * tiles.bands * tiles.column_tiles)
    settings = tiles.settings(
        planes=images * filters,
        filters=filters,
        multiplier=filters // channels,
        chunks=chunks,
        depths=depths,
        source=_images(x),
        target=_images(y),
        pad=before,
        taps_w=weight.shape[-1],
        flipped=flipped,
    )
    kernel = window.kernel("depthwise.cu", "depthwise", launch.c_type(x.dtype))
    blocks = groups * chunks * tiles.bands * tiles.column_tiles
    launch.launch(kernel, (blocks,), (tiles.threads,), [x, weight, bias, y, settings], tiles.bytes)


def input_grad(window: Window, dy: Array, weight: Array, dx: Array, before: Sequence[int]) -> None:
    """The gradient dx of the input, by as many filters as channels."""
    if window.stride == 1:
        around = [taps - 1 - pad for taps, pad in zip(_three(weight.shape[2:]), before, strict=True)]
        forward(window, dy, weight, None, dx, around, flipped=True)
        return
    images, channels, *target = dx.shape
    tiles = _tiles(_STRIDE2_PATCH, *_three(target)[1:], min(_LARGEST_BLOCK, images * channels))
    settings = tiles.settings(planes=images * channels, filters=channels, source=_images(dy), target=_images(dx))
    blocks = divide_up(images * channels, tiles.planes) * tiles.bands * tiles.column_tiles
    kernel = _STRIDE2[launch.c_type(dy.dtype)]
    launch.launch(kernel, (blocks,), (tiles.threads,), [dy, weight, dx, settings], tiles.bytes)


def weight_grad(window: Window, dy: Array, x: Array, taps: Sizes, before: Sequence[int]) -> Array:
    """Partial sums (parts, filters * taps) of the weight gradient, in the compute type."""
    images, channels = x.shape[:2]
    filters, *target = dy.shape[1:]
    window = window.for_weight_grad
    most_threads = 192 if window.depth > 1 else _LARGEST_BLOCK  # kGradThreads
    tiles = _tiles(window.patch, *_three(target)[1:], min(most_threads, images), most_threads, apart=True)
    groups = divide_up(images, tiles.planes)
    chunks, depths = _chunks(window, _three(target)[0], filters * groups * tiles.bands * tiles.column_tiles)
    units = groups * chunks * tiles.bands * tiles.column_tiles
    units_of_part = divide_up(units, min(units, divide_up(_WANTED_BLOCKS, filters)))
    parts = divide_up(units, units_of_part)
    partial = launch.empty((parts, filters * math.prod(taps)), np.float32, x)
    settings = tiles.settings(
        filters=filters,
        multiplier=filters // channels,
        chunks=chunks,
        depths=depths,
        source=_images(x),
        target=_images(dy),
        pad=before,
        taps_w=taps[-1],
        images=images,
        units=units,
        units_of_part=units_of_part,
    )
    kernel = window.kernel("depthwise_weight_grad.cu", "depthwise_weight_grad", launch.c_type(x.dtype))
    threads = max(tiles.threads, divide_up(math.prod(taps), _WARP) * _WARP)  # one for each tap's sum
    launch.launch(kernel, (filters * parts,), (threads,), [dy, x, partial, settings], tiles.bytes)
    return partial


def weight_grad_any(c_type: str) -> Kernel:
    """The kernel for any other window, TAPS_AT_ONCE taps at a time; its settings are the direct kernels'."""
    return Kernel("depthwise_weight_grad.cu", f"depthwise_weight_grad_any<{c_type}>")


@dataclass(frozen=True)
class _Tiles:
    """How planes are cut: threads and shared memory of a block, and how many blocks a plane has."""

    lanes: int
    lanes_used: int
    tile_rows: int
    planes: int  # of a block
    bands: int
    column_tiles: int
    tile: tuple[int, int, int]  # rows, pitch and size of a source plane in shared memory
    patch: tuple[int, int, int]  # the same of a target plane
    apart: bool  # whether both are there at once

    @property
    def threads(self) -> int:
        return divide_up(self.lanes * self.tile_rows * self.planes, _WARP) * _WARP

    @property
    def bytes(self) -> int:
        elements = self.tile[2] + self.patch[2] if self.apart else max(self.tile[2], self.patch[2])
        return self.planes * elements * np.dtype(np.float32).itemsize

    def settings(self, **given: Any) -> np.ndarray:
        """The struct of a launch; what is not given is 0, or 1 for what is multiplied with."""
        defaults = dict.fromkeys(_DEPTHWISE.names or (), 0) | {"multiplier": 1, "chunks": 1, "depths": 1}
        own = {name: getattr(self, name) for name in ("lanes", "lanes_used", "tile_rows", "bands", "column_tiles")}
        own |= {"planes_at_once": self.planes, "tile": self.tile, "patch": self.patch}
        return launch.struct(_DEPTHWISE, **defaults | own | given)


@cache
def _tiles(
    patch: Patch, height: int, width: int, most_planes: int, most_threads: int = _LARGEST_BLOCK, apart: bool = False
) -> _Tiles:
    lanes_wanted = divide_up(width, patch.columns)
    # A row of many lanes has threads enough; otherwise rows are worth more than what lies beside them.
    lanes_used = min(lanes_wanted, most_threads if height == 1 else _WARP)
    lanes = 1 << (lanes_used - 1).bit_length()
    rows_wanted = divide_up(height, patch.rows)
    bands = divide_up(rows_wanted, most_threads // lanes)
    while True:
        tile_rows = divide_up(rows_wanted, bands)
        pitch = divide_up((lanes_used - 1) * patch.across + patch.span, _VECTOR) * _VECTOR
        tile = _layout(tile_rows * patch.down + patch.more, pitch, patch.down, lanes, tile_rows)
        columns = divide_up(lanes_used * patch.columns, _VECTOR) * _VECTOR
        written = _layout(tile_rows * patch.rows, columns, patch.rows, lanes, tile_rows)
        one = _Tiles(
            lanes,
            lanes_used,
            tile_rows,
            1,
            divide_up(rows_wanted, tile_rows),
            divide_up(lanes_wanted, lanes_used),
            tile,
            written,
            apart,
        )
        if one.bytes <= _SHARED_BYTES or tile_rows == 1:
            break
        bands += 1
    if one.bands * one.column_tiles > 1:
        return one
    planes = min(most_planes, most_threads // (lanes * tile_rows), _SHARED_BYTES // one.bytes)
    return replace(one, planes=max(1, planes))


def _layout(rows: int, pitch: int, step: int, lanes: int, tile_rows: int) -> tuple[int, int, int]:
    """Rows, pitch and size of a plane, such that eight neighbouring threads read vectors from all banks.

    A row of patches lies `step` rows below the one before it.
    """
    vectors, apart = pitch // _VECTOR, lanes * tile_rows
    if lanes < 8 and tile_rows > 1:
        near = range(vectors, vectors + 8)
        fitting = next((v for v in near if step * v % 8 == lanes), None)
        if fitting is None:
            # Rows half of the banks apart, and planes between them.
            fitting, apart = next((v for v in near if step * v % 8 == 4), vectors), 2
        vectors = fitting
    size = rows * vectors
    if lanes * tile_rows < 8:
        size += (apart - size) % 8
    return rows, vectors * _VECTOR, size * _VECTOR


def _chunks(window: Window, depth: int, blocks: int) -> tuple[int, int]:
    """Into how many chunks the depth is cut, and the depths of each."""
    wanted = divide_up(_WANTED_BLOCKS, blocks)
    # Without taps along it the depth may be cut anywhere.
    least = _LEAST_DEPTHS if window.depth > 1 else 1
    depths = max(divide_up(depth, wanted), min(least, depth))
    return divide_up(depth, depths), depths


def _images(array: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many elements lie between planes, channels and images of a contiguous array, and the sizes of its axes."""
    depth, height, width = _three(array.shape[2:])
    channel = depth * height * width
    return (height * width, channel, channel * array.shape[1]), (depth, height, width)


def _three(sizes: Sequence[int]) -> tuple[int, ...]:
    return (1,) * (3 - len(sizes)) + tuple(sizes)
