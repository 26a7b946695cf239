"""Sums in a fixed order on CUDA: of the parts that blocks leave, and of the channels of images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import launch
from .conv_axes import check_sizes
from .kernel import Kernel
from .launch import FLOAT_TYPES, divide_up

Array = Any

_SOURCE = "sums.cu"
_THREADS = 256
# Sums of many parts of few results are shared by lines of threads, which are added in their order.
_FEW_RESULTS = 2**15
_MANY_PARTS = 16
_LINES = 8
# Constants, so that sums have the same order on every device: blocks enough for a large one.
_BLOCKS = 1024
_LEAST_UNITS = 4
_VECTOR_BYTES = 16

VARIANTS = [Kernel(_SOURCE, f"{name}<{t}>") for name in ("sum_partials", "channel_sums") for t in FLOAT_TYPES]

_PARTIALS = np.dtype([(name, np.int32) for name in ("parts", "rows", "pitch", "width", "channels", "taps")], align=True)
_CHANNEL_SUMS = np.dtype(
    [
        ("image", np.int64),
        *((name, np.int32) for name in ("units", "units_at_once", "channels", "channels_at_once")),
        *((name, np.int32) for name in ("plane", "piece", "pieces", "vectors")),
    ],
    align=True,
)


def accumulator(dtype: Any) -> type:
    """What sums of this type are kept in."""
    return np.float64 if dtype == np.float64 else np.float32


def sum_partials(partial: Array, results: Array) -> None:
    """Add partial sums (parts, results) in their order."""
    size = results.size
    _sum(partial, results, rows=1, pitch=size, width=size, channels=size, taps=1)


def sum_taps(partial: Array, results: Array, rows: int, pitch: int, width: int) -> None:
    """Add partial sums (parts, rows, pitch) of filters (rows, channels, *taps), each tap a run of `width` columns."""
    channels, taps = results.shape[1], math.prod(results.shape[2:])
    _sum(partial, results, rows=rows, pitch=pitch, width=width, channels=channels, taps=taps)


def _sum(partial: Array, results: Array, rows: int, pitch: int, **fields: int) -> None:
    parts, size = len(partial), rows * pitch
    lines = _LINES if size <= _FEW_RESULTS and parts >= _MANY_PARTS else 1
    block = _THREADS // lines, lines
    settings = launch.struct(_PARTIALS, parts=parts, rows=rows, pitch=pitch, **fields)
    kernel = Kernel(_SOURCE, f"sum_partials<{launch.c_type(results.dtype)}>")
    launch.launch(kernel, (divide_up(size, block[0]),), block, [partial, results, settings])


def conv_bias_grad(dy: Array) -> Array:
    images, channels, plane = dy.shape[0], dy.shape[1], math.prod(dy.shape[2:])
    check_sizes("conv_bias_grad", (), dy.shape)
    sums = launch.empty((channels,), dy.dtype, dy)
    if dy.size == 0:
        sums.fill(0)
        return sums
    dy = launch.contiguous(dy)
    vector = _VECTOR_BYTES // dy.dtype.itemsize
    vectors = channels * plane % vector == 0 and launch.aligned(dy, _VECTOR_BYTES)
    sector = 2 * vector
    most = _THREADS * vector - sector  # columns of a block: its vectors may begin before the first of them
    pieces = divide_up(plane, most)
    piece = divide_up(divide_up(plane, pieces), sector) * sector
    pieces = divide_up(plane, piece)
    channels_at_once = min(channels, max(1, most // plane))
    groups, units = divide_up(channels, channels_at_once), images * pieces
    parts = min(divide_up(_BLOCKS, groups), divide_up(units, _LEAST_UNITS))
    units_at_once = divide_up(units, parts)
    parts = divide_up(units, units_at_once)
    partial = launch.empty((parts, channels), accumulator(dy.dtype), dy) if parts > 1 else None
    settings = launch.struct(
        _CHANNEL_SUMS,
        image=channels * plane,
        units=units,
        units_at_once=units_at_once,
        channels=channels,
        channels_at_once=channels_at_once,
        plane=plane,
        piece=piece,
        pieces=pieces,
        vectors=vectors,
    )
    kernel = Kernel(_SOURCE, f"channel_sums<{launch.c_type(dy.dtype)}>")
    launch.launch(kernel, (groups * parts,), (_THREADS,), [dy, sums, partial, settings])
    if partial is not None:
        sum_partials(partial, sums)
    return sums
