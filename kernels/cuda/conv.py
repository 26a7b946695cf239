"""Convolution in CUDA: choice of kernel, tile and number of parts, and the description of each launch.

Forward and input gradient are the same computation over differently described arrays (`Gather` in
`src/conv.cuh`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import geometry
from ..geometry import Pads, Sizes
from . import depthwise, launch
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
    """The tile for a forward pass or an input gradient; None for the direct kernel."""
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
    shape = geometry.conv(x.shape, weight.shape, None, stride, padding, dilation, groups)
    _check_sizes(geometry.conv_name(stride), weight.shape, x.shape, shape)
    y = launch.empty(shape, x.dtype, x)
    x, weight = launch.contiguous(x), launch.contiguous(weight)
    bias = None if bias is None else launch.contiguous(bias)
    window = depthwise.window_of(x.dtype, weight.shape, stride, dilation, groups)
    if window is not None and x.size and y.size:
        depthwise.forward(window, x, weight, bias, y, _before(padding))
        return y
    filters, channels = weight.shape[:2]
    out, source, taps = _three(y.shape[2:]), _three(x.shape[2:]), _three(weight.shape[2:])
    weights_of_row = math.prod(weight.shape[1:])
    _gather(
        x,
        weight,
        bias,
        y,
        pixels=x.shape[0] * math.prod(out),
        groups=groups,
        rows=filters // groups,
        channels=channels,
        taps=taps,
        out=out,
        source=source,
        step=_three(stride),
        tap=_three(dilation),
        first=[-before for before in _before(padding)],
        filter_group=filters // groups * weights_of_row,
        filter_row=weights_of_row,
        filter_channel=math.prod(taps),
        filter=_pitches(taps),
        filter_first=0,
        target_plane=math.prod(out),
        target_first=0,
        target=_pitches(out),
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
    _check_sizes(geometry.conv_name(stride, "_input_grad"), weight.shape, dy.shape, input_shape)
    dx = launch.empty(input_shape, dy.dtype, dy)
    dy, weight = launch.contiguous(dy), launch.contiguous(weight)
    window = depthwise.input_grad_window(dy.dtype, weight.shape, stride, padding, dilation, groups)
    if window is not None and dy.size and dx.size:
        depthwise.input_grad(window, dy, weight, dx, _before(padding))
        return dx
    filters, channels = weight.shape[:2]
    size, taps, steps = _three(input_shape[2:]), _three(weight.shape[2:]), _three(stride)
    axes = zip(size, taps, steps, _before(padding), _three(dilation), strict=True)
    pitches, tap_pitches = _pitches(size), _pitches(taps)
    for residues in itertools.product(*(_residues(*axis) for axis in axes)):
        met = all(residue.taps > 0 for residue in residues)
        out = [residue.positions for residue in residues]
        _gather(
            dy,
            weight,
            None,
            dx,
            pixels=input_shape[0] * math.prod(out),
            groups=groups,
            rows=channels,
            channels=filters // groups if met else 0,
            taps=[max(residue.taps, 1) for residue in residues],
            out=out,
            source=_three(dy.shape[2:]),
            step=(1, 1, 1),
            tap=[residue.distance for residue in residues],
            first=[residue.source for residue in residues],
            filter_group=filters // groups * channels * math.prod(taps),
            filter_row=math.prod(taps),
            filter_channel=channels * math.prod(taps),
            filter=[residue.tap_step * pitch for residue, pitch in zip(residues, tap_pitches, strict=True)],
            filter_first=sum(residue.tap * pitch for residue, pitch in zip(residues, tap_pitches, strict=True)),
            target_plane=math.prod(size),
            target_first=sum(residue.position * pitch for residue, pitch in zip(residues, pitches, strict=True)),
            target=[step * pitch for step, pitch in zip(steps, pitches, strict=True)],
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
    filters, channels = weight_shape[:2]
    out, taps = _three(dy.shape[2:]), _three(weight_shape[2:])
    rows, columns, pixels = filters // groups, channels * math.prod(taps), dy.shape[0] * math.prod(out)
    _check_sizes(geometry.conv_name(stride, "_weight_grad"), weight_shape, dy.shape, x.shape)
    dw = launch.empty(weight_shape, dy.dtype, dy)
    if dw.size == 0 or pixels == 0:
        dw.fill(0)
        return dw
    dy, x = launch.contiguous(dy), launch.contiguous(x)
    c_type = launch.c_type(dy.dtype)
    accumulator = np.float64 if c_type == "double" else np.float32
    window = depthwise.window_of(dy.dtype, weight_shape, stride, dilation, groups)
    if window is not None and x.size:
        _sum_partials(depthwise.weight_grad(window, dy, x, weight_shape[2:], _before(padding)), dw)
        return dw
    tile = weight_grad_tile(c_type, rows, columns) if len(stride) == 2 else None
    if channels == 1 and groups > 1:
        kernel, blocks = depthwise.weight_grad_any(c_type), filters * divide_up(columns, depthwise.TAPS_AT_ONCE)
    elif tile is None:
        kernel, blocks = Kernel("conv_direct.cu", f"weight_grad_direct<{c_type}>"), dw.size
    else:
        kernel = tile.kernel("weight_grad_gemm", c_type)
        blocks = groups * divide_up(rows, tile.rows) * divide_up(columns, tile.columns)
    part = _part(pixels, blocks, dw.size * np.dtype(accumulator).itemsize)
    splits = divide_up(pixels, part)
    partial = launch.empty((splits, dw.size), accumulator, dy) if splits > 1 else None
    settings = launch.struct(
        _WEIGHT_GRAD,
        **_axes_split(
            pixels=pixels,
            part=part,
            splits=splits,
            groups=groups,
            rows=rows,
            channels=channels,
            taps=taps,
            out=out,
            source=_three(x.shape[2:]),
            stride=_three(stride),
            dilation=_three(dilation),
            first=[-before for before in _before(padding)],
        ),
    )
    launch.launch(kernel, (splits * blocks,), (_THREADS,), [dy, x, dw, partial, settings])
    _sum_partials(partial, dw)
    return dw


def _sum_partials(partial: Array | None, dw: Array) -> None:
    """Add partial sums (parts, weights), where there are any, in their order."""
    if partial is None:
        return
    kernel = Kernel("conv_gemm.cu", f"sum_partials<{launch.c_type(dw.dtype)}>")
    sizes = [np.int32(len(partial)), np.int32(dw.size)]
    launch.launch(kernel, (divide_up(dw.size, _THREADS),), (_THREADS,), [partial, dw, *sizes])


def _three(values: Sequence[int]) -> Sequence[int]:
    """Sizes, strides or dilations along (depth, height, width)."""
    return (1,) * (3 - len(values)) + tuple(values)


def _before(padding: Pads) -> Sequence[int]:
    return (0,) * (3 - len(padding)) + tuple(before for before, _ in padding)


def _pitches(sizes: Sequence[int]) -> Sequence[int]:
    """How far neighbours along (depth, height, width) lie apart."""
    return sizes[1] * sizes[2], sizes[2], 1


def _gather(source: Array, weight: Array, bias: Array | None, target: Array, /, **fields: Any) -> None:
    groups, rows, pixels, plane = fields["groups"], fields["rows"], fields["pixels"], math.prod(fields["out"])
    c_type = launch.c_type(source.dtype)
    tile = None
    if fields["source"][0] == fields["taps"][0] == fields["out"][0] == 1:
        tile = gather_tile(c_type, groups, rows, fields["channels"] * math.prod(fields["taps"]), pixels)
    if tile is None:
        kernel = Kernel("conv_direct.cu", f"gather_direct<{c_type}>")
        blocks = pixels // max(plane, 1) * divide_up(groups * rows * plane, _THREADS)
    else:
        kernel = tile.kernel("gather_gemm", c_type)
        blocks = groups * divide_up(rows, tile.rows) * divide_up(pixels, tile.columns)
    dense = fields["target_plane"] == plane and tuple(fields["target"]) == _pitches(fields["out"])
    settings = launch.struct(_GATHER, **_axes_split(**fields, packed=dense and plane % 4 == 0))
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
    "groups rows channels taps_d taps_h taps_w out_d out_h out_w "
    "source_d source_h source_w step_d step_h step_w tap_d tap_h tap_w first_d first_h first_w "
    "filter_group filter_row filter_channel filter_d filter_h filter_w filter_first "
    "target_plane target_first target_d target_h target_w packed",
)
_WEIGHT_GRAD = _struct_type(
    "pixels part",
    "splits groups rows channels taps_d taps_h taps_w out_d out_h out_w source_d source_h source_w "
    "stride_d stride_h stride_w dilation_d dilation_h dilation_w first_d first_h first_w",
)


def _axes_split(**fields: Any) -> dict[str, int]:
    """The fields with each triple `name` made into `name_d`, `name_h` and `name_w`."""
    split: dict[str, int] = {}
    for name, value in fields.items():
        if isinstance(value, (tuple, list)):
            split[f"{name}_d"], split[f"{name}_h"], split[f"{name}_w"] = value
        else:
            split[name] = value
    return split
