"""Convolution in CUDA: choice of kernel, tile and number of parts, and the description of each launch.

Forward and input gradient are the same computation over differently described arrays (`Gather` in
`src/conv.cuh`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import geometry
from ..geometry import Pads, Sizes
from . import launch
from .launch import FLOAT_TYPES, Kernel, divide_up

Array = Any


@dataclass(frozen=True)
class Tile:
    """What a block and each of its threads compute. All tiles have 256 threads and walk in steps of 8."""

    rows: int
    columns: int
    rows_each: int
    columns_each: int

    def kernel(self, name: str, c_type: str) -> Kernel:
        sizes = f"{self.rows}, {self.columns}, {self.rows_each}, {self.columns_each}"
        return Kernel("conv_gemm.cu", f"{name}<{c_type}, {sizes}>")


_THREADS = 256
_DEPTH = 8  # kDepth in conv_gemm.cu

# Widest first. A wide tile loads less for each multiplication; a narrow one leaves less of itself empty and
# gives more blocks. The sums of a wide tile of doubles would not fit into the registers.
_GATHER_TILES = (Tile(128, 128, 8, 8), Tile(64, 128, 4, 8), Tile(32, 128, 4, 4))
_WEIGHT_GRAD_TILES = (Tile(128, 128, 8, 8), Tile(64, 64, 4, 4))

_LEAST_USED = 8  # rows, columns or steps: with fewer, most of the narrowest tile would be empty
_FEW_BLOCKS = 128  # fewer leave multiprocessors of a large GPU idle
# A weight gradient is split into parts until there are two waves of blocks on a large GPU, but never into
# parts that are not worth a block. Constants, so that every device adds in the same order.
_WANTED_BLOCKS = 512
_LEAST_PART = 512
_MOST_PARTIAL_BYTES = 64 * 2**20

_MOST_ELEMENTS = 2**30  # of one image and of all weights: offsets within them have 32 bits


def _tiles(tiles: Sequence[Tile], c_type: str) -> Sequence[Tile]:
    return tiles[1:] if c_type == "double" else tiles


VARIANTS = [
    *(Kernel("conv_direct.cu", f"gather_direct<{t}>") for t in FLOAT_TYPES),
    *(Kernel("conv_direct.cu", f"weight_grad_direct<{t}>") for t in FLOAT_TYPES),
    *(tile.kernel("gather_gemm", t) for t in FLOAT_TYPES for tile in _tiles(_GATHER_TILES, t)),
    *(tile.kernel("weight_grad_gemm", t) for t in FLOAT_TYPES for tile in _tiles(_WEIGHT_GRAD_TILES, t)),
    *(Kernel("conv_gemm.cu", f"sum_partials<{t}>") for t in FLOAT_TYPES),
]


def gather_tile(c_type: str, groups: int, rows: int, reduction: int, pixels: int) -> Tile | None:
    """The tile for a forward pass or an input gradient; None for the direct kernel (depthwise, for one)."""
    if min(rows, reduction) < _LEAST_USED:
        return None
    *wider, narrowest = _tiles(_GATHER_TILES, c_type)
    for tile in wider:
        blocks = groups * divide_up(rows, tile.rows) * divide_up(pixels, tile.columns)
        if rows > tile.rows // 2 and blocks >= _FEW_BLOCKS:
            return tile
    return narrowest


def weight_grad_tile(c_type: str, rows: int, columns: int) -> Tile | None:
    """The tile for a weight gradient; None for the direct kernel. Enough blocks come from its parts."""
    if min(rows, columns) < _LEAST_USED:
        return None
    *wider, narrowest = _tiles(_WEIGHT_GRAD_TILES, c_type)
    for tile in wider:
        if rows > tile.rows // 2 and columns > tile.columns // 2:
            return tile
    return narrowest


def conv(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> Array:
    images, _, *source = x.shape
    filters, channels, *taps = weight.shape
    shape = geometry.conv(x.shape, weight.shape, None, stride, padding, dilation, groups)
    out_h, out_w = shape[2:]
    _check_sizes("conv", weight.shape, x.shape, shape)
    y = launch.empty(shape, x.dtype, x)
    weights_of_row = math.prod(weight.shape[1:])
    _gather(
        launch.contiguous(x),
        launch.contiguous(weight),
        None if bias is None else launch.contiguous(bias),
        y,
        pixels=images * out_h * out_w,
        groups=groups,
        rows=filters // groups,
        channels=channels,
        taps=taps,
        out=(out_h, out_w),
        source=source,
        step=stride,
        tap=dilation,
        first=(-padding[0][0], -padding[1][0]),
        filter_group=filters // groups * weights_of_row,
        filter_row=weights_of_row,
        filter_channel=math.prod(taps),
        filter=(taps[1], 1),
        filter_first=0,
        target_plane=out_h * out_w,
        target_first=0,
        target=(out_w, 1),
    )
    return y


def conv_input_grad(
    dy: Array,
    weight: Array,
    input_shape: Sizes,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> Array:
    images, _, height, width = input_shape
    filters, channels, taps_h, taps_w = weight.shape
    _check_sizes("conv_input_grad", weight.shape, dy.shape, input_shape)
    dx = launch.empty(input_shape, dy.dtype, dy)
    dy, weight = launch.contiguous(dy), launch.contiguous(weight)
    for vertical in _residues(height, taps_h, stride[0], padding[0][0], dilation[0]):
        for horizontal in _residues(width, taps_w, stride[1], padding[1][0], dilation[1]):
            met = vertical.taps * horizontal.taps > 0
            _gather(
                dy,
                weight,
                None,
                dx,
                pixels=images * vertical.positions * horizontal.positions,
                groups=groups,
                rows=channels,
                channels=filters // groups if met else 0,
                taps=(max(vertical.taps, 1), max(horizontal.taps, 1)),
                out=(vertical.positions, horizontal.positions),
                source=dy.shape[2:],
                step=(1, 1),
                tap=(vertical.distance, horizontal.distance),
                first=(vertical.source, horizontal.source),
                filter_group=filters // groups * channels * taps_h * taps_w,
                filter_row=taps_h * taps_w,
                filter_channel=channels * taps_h * taps_w,
                filter=(vertical.tap_step * taps_w, horizontal.tap_step),
                filter_first=vertical.tap * taps_w + horizontal.tap,
                target_plane=height * width,
                target_first=vertical.position * width + horizontal.position,
                target=(stride[0] * width, stride[1]),
            )
    return dx


def conv_weight_grad(
    dy: Array,
    x: Array,
    weight_shape: Sizes,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> Array:
    images, _, out_h, out_w = dy.shape
    filters, channels, *taps = weight_shape
    rows, columns, pixels = filters // groups, channels * math.prod(taps), images * out_h * out_w
    _check_sizes("conv_weight_grad", weight_shape, dy.shape, x.shape)
    dw = launch.empty(weight_shape, dy.dtype, dy)
    if dw.size == 0 or pixels == 0:
        dw.fill(0)
        return dw
    c_type = launch.c_type(dy.dtype)
    tile = weight_grad_tile(c_type, rows, columns)
    if tile is None:
        kernel, blocks = Kernel("conv_direct.cu", f"weight_grad_direct<{c_type}>"), dw.size
    else:
        kernel = tile.kernel("weight_grad_gemm", c_type)
        blocks = groups * divide_up(rows, tile.rows) * divide_up(columns, tile.columns)
    accumulator = np.float64 if c_type == "double" else np.float32
    part = _part(pixels, blocks, dw.size * np.dtype(accumulator).itemsize)
    splits = divide_up(pixels, part)
    partial = launch.empty((splits, dw.size), accumulator, dy) if splits > 1 else None
    settings = launch.struct(
        _WEIGHT_GRAD,
        **_pairs_split(
            pixels=pixels,
            part=part,
            splits=splits,
            groups=groups,
            rows=rows,
            channels=channels,
            taps=taps,
            out=(out_h, out_w),
            source=x.shape[2:],
            stride=stride,
            dilation=dilation,
            first=(-padding[0][0], -padding[1][0]),
        ),
    )
    arrays = [launch.contiguous(dy), launch.contiguous(x), dw, partial]
    launch.launch(kernel, (splits * blocks,), (_THREADS,), [*arrays, settings])
    if partial is not None:
        kernel = Kernel("conv_gemm.cu", f"sum_partials<{c_type}>")
        sizes = [np.int32(splits), np.int32(dw.size)]
        launch.launch(kernel, (divide_up(dw.size, _THREADS),), (_THREADS,), [partial, dw, *sizes])
    return dw


def _gather(source: Array, weight: Array, bias: Array | None, target: Array, /, **fields: Any) -> None:
    groups, rows, pixels, plane = fields["groups"], fields["rows"], fields["pixels"], math.prod(fields["out"])
    c_type = launch.c_type(source.dtype)
    tile = gather_tile(c_type, groups, rows, fields["channels"] * math.prod(fields["taps"]), pixels)
    if tile is None:
        kernel = Kernel("conv_direct.cu", f"gather_direct<{c_type}>")
        blocks = pixels // max(plane, 1) * divide_up(groups * rows * plane, _THREADS)
    else:
        kernel = tile.kernel("gather_gemm", c_type)
        blocks = groups * divide_up(rows, tile.rows) * divide_up(pixels, tile.columns)
    dense = fields["target_plane"] == plane and tuple(fields["target"]) == (fields["out"][1], 1)
    settings = launch.struct(_GATHER, **_pairs_split(**fields, packed=dense and plane % 4 == 0))
    launch.launch(kernel, (blocks,), (_THREADS,), [source, weight, bias, target, settings])


@dataclass(frozen=True)
class _Residue:
    """The positions of one residue modulo the stride, in one dimension, and the taps that reach them.

    Positions are position, position + stride, …; taps are tap, tap + tap_step, …. Position number i meets tap
    number t at source + i + t * distance in the convolution's output.
    """

    position: int
    positions: int
    tap: int
    tap_step: int
    taps: int
    source: int
    distance: int


def _residues(size: int, taps: int, stride: int, padding: int, dilation: int) -> list[_Residue]:
    # Tap r takes output p to position p * stride + r * dilation - padding. Solved for p, that divides evenly
    # for every tap_step-th tap or for none.
    tap_step = stride // math.gcd(stride, dilation)
    residues = []
    for position in range(min(stride, size)):
        reached = [t for t in range(min(taps, tap_step)) if (position + padding - t * dilation) % stride == 0]
        tap = reached[0] if reached else 0
        residues.append(
            _Residue(
                position=position,
                positions=len(range(position, size, stride)),
                tap=tap,
                tap_step=tap_step,
                taps=len(range(tap, taps, tap_step)) if reached else 0,
                source=(position + padding - tap * dilation) // stride,
                distance=-(tap_step * dilation // stride),
            )
        )
    return residues


def _part(pixels: int, blocks: int, bytes_of_split: int) -> int:
    """The number of positions that one block of a weight gradient sums up, a multiple of the tile's step."""
    splits = min(
        divide_up(_WANTED_BLOCKS, blocks),
        max(1, pixels // _LEAST_PART),
        max(1, _MOST_PARTIAL_BYTES // bytes_of_split),
    )
    return divide_up(divide_up(pixels, splits), _DEPTH) * _DEPTH


def _check_sizes(operation: str, weight: Sizes, *images: Sizes) -> None:
    sizes = {"an image": max(math.prod(shape[1:]) for shape in images), "the weight": math.prod(weight)}
    for name, size in sizes.items():
        if size > _MOST_ELEMENTS:
            raise ValueError(f"{operation}: {name} has {size} elements, the kernels reach {_MOST_ELEMENTS}")


def _struct_type(wide: str, narrow: str) -> np.dtype:
    fields = [(name, np.int64) for name in wide.split()] + [(name, np.int32) for name in narrow.split()]
    return np.dtype(fields, align=True)


# The fields of the structs of the same names in src/conv.cuh, in their order.
_GATHER = _struct_type(
    "pixels",
    "groups rows channels taps_h taps_w out_h out_w "
    "source_h source_w step_h step_w tap_h tap_w first_h first_w "
    "filter_group filter_row filter_channel filter_h filter_w filter_first "
    "target_plane target_first target_h target_w packed",
)
_WEIGHT_GRAD = _struct_type(
    "pixels part",
    "splits groups rows channels taps_h taps_w out_h out_w source_h source_w stride_h stride_w "
    "dilation_h dilation_w first_h first_w",
)


def _pairs_split(**fields: Any) -> dict[str, int]:
    """The fields with each pair `name` made into `name_h` and `name_w`."""
    split: dict[str, int] = {}
    for name, value in fields.items():
        if isinstance(value, (tuple, list)):
            split[f"{name}_h"], split[f"{name}_w"] = value
        else:
            split[name] = value
    return split
