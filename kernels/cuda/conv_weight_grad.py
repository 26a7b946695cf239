"""The weight gradient of a convolution in CUDA: its tile, and the number of parts that its sums are split into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import geometry, precision
from ..geometry import Pads, Sizes
from . import autotune, conv_choice, depthwise, launch
from .channels_last import images_with_channels_last
from .conv_axes import THREADS, axes_split, before, check_sizes, struct_type, three
from .conv_choice import WEIGHT_GRAD, BulkTile, Direct, Problem, Product, TensorTile, Variant
from .launch import divide_up
from .sums import accumulator, sum_partials, sum_taps

Array = Any

_STEP = 64  # of the reduction: a multiple of kDepth of each kernel, and kPromoted of conv_mma_weight_grad.cu

# The sums are split into parts until there are two waves of blocks on a large GPU, but never into parts that are not
# worth a block. Constants, so that every device adds in the same order.
_WANTED_THREADS = 2**17
_LEAST_PART = 512
_MOST_PART = 2**30
_MOST_PARTIAL_BYTES = 64 * 2**20

_VECTOR_BYTES = 16
_NEVER = 2**31 - 1  # positions until the next image, where all follow one another

# The fields of the structs of the same names in src/conv.cuh and src/conv_mma_weight_grad.cu, in their order.
_AXES = (
    "taps_d taps_h taps_w out_d out_h out_w source_d source_h source_w "
    "stride_d stride_h stride_w dilation_d dilation_h dilation_w first_d first_h first_w"
)
_WEIGHT_GRAD = struct_type("pixels part", f"splits groups rows channels {_AXES}")
_WEIGHT_GRAD_MMA = struct_type(
    "pixels dy_image dy_group dy_row",
    f"plane part splits groups rows channels width pitch {_AXES} step_image step_d step_h step_w",
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
    out, taps, source = three(dy.shape[2:]), three(weight_shape[2:]), three(x.shape[2:])
    pixels = dy.shape[0] * math.prod(out)
    check_sizes(geometry.conv_name(stride, "_weight_grad"), weight_shape, dy.shape, x.shape)
    dw = launch.empty(weight_shape, dy.dtype, dy)
    if dw.size == 0 or pixels == 0 or x.size == 0:
        dw.fill(0)
        return dw
    dy = launch.contiguous(dy)
    c_type = launch.c_type(dy.dtype)
    window = depthwise.window_of(dy.dtype, weight_shape, stride, dilation, groups)
    if window is not None:
        partial = depthwise.weight_grad(window, dy, launch.contiguous(x), weight_shape[2:], before(padding))
        if partial is not None:
            sum_partials(partial, dw)
        return dw
    problem = Problem(
        operation=WEIGHT_GRAD,
        c_type=c_type,
        precision=precision.get_float32_matmul_precision(),
        capability=launch.capability(dy),
        groups=groups,
        rows=filters // groups,
        channels=channels,
        taps=math.prod(taps),
        pixels=pixels,
        places=math.prod(source),
    )
    fields = {
        "pixels": pixels,
        "groups": groups,
        "rows": problem.rows,
        "channels": channels,
        "taps": taps,
        "out": out,
        "source": source,
        "stride": three(stride),
        "dilation": three(dilation),
        "first": [-before for before in before(padding)],
    }

    def run(variant: Variant) -> None:
        _run(variant, problem, dy, x, dw, fields)

    run(autotune.choose(problem, fields, run, dw))
    return dw


def _run(variant: Variant, problem: Problem, dy: Array, x: Array, dw: Array, fields: dict[str, Any]) -> None:
    if isinstance(variant, TensorTile):
        _on_tensor_cores(variant, problem, dy, x, dw, fields)
        return
    assert not isinstance(variant, Product | BulkTile)  # the table has none of them for this
    kernel = variant.kernel(WEIGHT_GRAD, problem.c_type)
    if problem.channels == 1 and problem.groups > 1:
        kernel = depthwise.weight_grad_any(problem.c_type)
        blocks = len(dw) * divide_up(problem.columns, depthwise.TAPS_AT_ONCE)
    else:
        blocks = dw.size if isinstance(variant, Direct) else conv_choice.blocks(variant, problem)
    parts = _Parts(problem.pixels, blocks, THREADS, dw.size, dw)
    settings = launch.struct(_WEIGHT_GRAD, **axes_split(**fields, part=parts.size, splits=parts.count))
    args = [dy, launch.contiguous(x), dw, parts.partial, settings]
    launch.launch(kernel, (parts.count * blocks,), (THREADS,), args)
    if parts.partial is not None:
        sum_partials(parts.partial, dw)


def _on_tensor_cores(
    tile: TensorTile, problem: Problem, dy: Array, x: Array, dw: Array, fields: dict[str, Any]
) -> None:
    width = tile.padded(problem.channels, problem.c_type)
    # A row of partial sums takes them by twos.
    pitch = divide_up(width * problem.taps, 2) * 2
    blocks = problem.groups * divide_up(problem.rows, tile.rows) * divide_up(pitch, tile.columns)
    parts = _Parts(problem.pixels, blocks, tile.threads, len(dw) * pitch, dw)
    if tile.piece == x.dtype.itemsize:
        x = launch.contiguous(x)
    else:
        to_tf32 = problem.c_type == "float" and not tile.strict
        x = images_with_channels_last(x, problem.groups, width, to_tf32)
    grads = _Grads.of(dy, problem.rows)
    depth = 64 // dy.dtype.itemsize
    settings = launch.struct(
        _WEIGHT_GRAD_MMA,
        **axes_split(
            **fields,
            **grads.fields,
            part=parts.size,
            splits=parts.count,
            width=width,
            pitch=pitch,
            **dict(zip(("step_image", "step_d", "step_h", "step_w"), _digits(depth, fields["out"]), strict=True)),
        ),
    )
    kernel = tile.kernel(WEIGHT_GRAD, problem.c_type)
    args = [grads.array, x, dw, parts.partial, settings]
    launch.launch(kernel, (parts.count * blocks,), (tile.threads,), args, tile.shared_bytes)
    if parts.partial is None:
        return
    if tile.piece == dy.dtype.itemsize:  # columns are (channels, taps) already
        sum_taps(parts.partial, dw.reshape(len(dw), -1), len(dw), pitch, pitch)
    else:
        sum_taps(parts.partial, dw, len(dw), pitch, width)


class _Parts:
    """The parts of the reduction, and the array for their sums where there is more than one."""

    def __init__(self, pixels: int, blocks: int, threads: int, sums: int, dw: Array) -> None:
        dtype = accumulator(dw.dtype)
        count = min(
            divide_up(_WANTED_THREADS // threads, blocks),
            max(1, pixels // _LEAST_PART),
            max(1, _MOST_PARTIAL_BYTES // (sums * np.dtype(dtype).itemsize)),
        )
        self.size = divide_up(divide_up(pixels, max(count, divide_up(pixels, _MOST_PART))), _STEP) * _STEP
        self.count = divide_up(pixels, self.size)
        self.partial = launch.empty((self.count, sums), dtype, dw) if self.count > 1 else None


@dataclass(frozen=True)
class _Grads:
    """dy, and how to walk along the positions of one of its filters."""

    array: Array
    fields: dict[str, int]

    @staticmethod
    def of(dy: Array, rows: int) -> _Grads:
        images, filters = dy.shape[:2]
        plane = math.prod(dy.shape[2:])
        vector = _VECTOR_BYTES // dy.dtype.itemsize
        if plane % vector == 0 and launch.aligned(dy, _VECTOR_BYTES):
            return _Grads(dy, _strides(plane, filters * plane, rows * plane, plane))
        # Vectors would span two images: a copy, filter by filter, with zeros up to a whole vector.
        length = images * plane
        row = divide_up(length, vector) * vector
        copy = launch.empty((filters, images, plane), dy.dtype, dy)
        _bits(copy)[...] = _bits(dy).reshape(images, filters, plane).transpose(1, 0, 2)
        if row > length:
            copy, whole = launch.empty((filters, row), dy.dtype, dy), copy.reshape(filters, length)
            _bits(copy)[:, :length] = _bits(whole)
            _bits(copy)[:, length:] = 0
        return _Grads(copy, _strides(_NEVER, _NEVER, rows * row, row))


def _bits(array: Array) -> Array:
    """The array as integers, which can be copied in any type."""
    return array.view(f"u{array.dtype.itemsize}")


def _strides(plane: int, image: int, group: int, row: int) -> dict[str, int]:
    return {"plane": plane, "dy_image": image, "dy_group": group, "dy_row": row}


def _digits(number: int, out: Sizes) -> Sizes:
    """A number of positions as (images, o, p, q)."""
    digits = []
    for size in reversed(out):
        number, digit = divmod(number, size)
        digits.append(digit)
    return (number, *reversed(digits))
