"""The weight gradient of a convolution in CUDA: its tile, and the number of parts that its sums are split into."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import geometry, precision
from ..geometry import Pads, Sizes
from . import conv_choice, depthwise, launch
from .conv_axes import THREADS, axes_split, before, check_sizes, struct_type, three
from .conv_choice import WEIGHT_GRAD, Direct, Problem
from .launch import FLOAT_TYPES, Kernel, divide_up

Array = Any

_STEP = 8  # kDepth in conv_gemm.cu

# The sums are split into parts until there are two waves of blocks on a large GPU, but never into parts that are not
# worth a block. Constants, so that every device adds in the same order.
_WANTED_BLOCKS = 512
_LEAST_PART = 512
_MOST_PARTIAL_BYTES = 64 * 2**20

VARIANTS = [Kernel("conv_gemm.cu", f"sum_partials<{t}>") for t in FLOAT_TYPES]

# The fields of the struct of the same name in src/conv.cuh, in their order.
_WEIGHT_GRAD = struct_type(
    "pixels part",
    "splits groups rows channels taps_d taps_h taps_w out_d out_h out_w source_d source_h source_w "
    "stride_d stride_h stride_w dilation_d dilation_h dilation_w first_d first_h first_w",
)


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
    out, taps = three(dy.shape[2:]), three(weight_shape[2:])
    pixels = dy.shape[0] * math.prod(out)
    check_sizes(geometry.conv_name(stride, "_weight_grad"), weight_shape, dy.shape, x.shape)
    dw = launch.empty(weight_shape, dy.dtype, dy)
    if dw.size == 0 or pixels == 0:
        dw.fill(0)
        return dw
    dy, x = launch.contiguous(dy), launch.contiguous(x)
    c_type = launch.c_type(dy.dtype)
    accumulator = np.float64 if c_type == "double" else np.float32
    window = depthwise.window_of(dy.dtype, weight_shape, stride, dilation, groups)
    if window is not None and x.size:
        _sum_partials(depthwise.weight_grad(window, dy, x, weight_shape[2:], before(padding)), dw)
        return dw
    problem = Problem(
        operation=WEIGHT_GRAD,
        c_type=c_type,
        precision=precision.get_float32_matmul_precision(),
        capability=launch.OLDEST_CAPABILITY,
        groups=groups,
        rows=filters // groups,
        channels=channels,
        taps=math.prod(taps),
        pixels=pixels,
        volumes=len(stride) == 3,
    )
    if channels == 1 and groups > 1:
        kernel = depthwise.weight_grad_any(c_type)
        blocks = filters * divide_up(problem.columns, depthwise.TAPS_AT_ONCE)
    else:
        variant = conv_choice.choose(problem)
        kernel = variant.kernel(WEIGHT_GRAD, c_type)
        blocks = dw.size if isinstance(variant, Direct) else conv_choice.blocks(variant, problem)
    part = _part(pixels, blocks, dw.size * np.dtype(accumulator).itemsize)
    splits = divide_up(pixels, part)
    partial = launch.empty((splits, dw.size), accumulator, dy) if splits > 1 else None
    settings = launch.struct(
        _WEIGHT_GRAD,
        **axes_split(
            pixels=pixels,
            part=part,
            splits=splits,
            groups=groups,
            rows=problem.rows,
            channels=channels,
            taps=taps,
            out=out,
            source=three(x.shape[2:]),
            stride=three(stride),
            dilation=three(dilation),
            first=[-before for before in before(padding)],
        ),
    )
    launch.launch(kernel, (splits * blocks,), (THREADS,), [dy, x, dw, partial, settings])
    _sum_partials(partial, dw)
    return dw


def _sum_partials(partial: Array | None, dw: Array) -> None:
    """Add partial sums (parts, weights), where there are any, in their order."""
    if partial is None:
        return
    kernel = Kernel("conv_gemm.cu", f"sum_partials<{launch.c_type(dw.dtype)}>")
    sizes = [np.int32(len(partial)), np.int32(dw.size)]
    launch.launch(kernel, (divide_up(dw.size, THREADS),), (THREADS,), [partial, dw, *sizes])


def _part(pixels: int, blocks: int, bytes_of_split: int) -> int:
    """The number of positions that one block of a weight gradient sums up, a multiple of the tile's step."""
    splits = min(
        divide_up(_WANTED_BLOCKS, blocks),
        max(1, pixels // _LEAST_PART),
        max(1, _MOST_PARTIAL_BYTES // bytes_of_split),
    )
    return divide_up(divide_up(pixels, splits), _STEP) * _STEP
