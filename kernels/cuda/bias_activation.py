"""Activations with one number per channel on CUDA: chooses the kernel of src/bias_activation.cu, and the grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..geometry.activation import planes
from . import launch
from .activation import ACTIVATION, described, tiles
from .kernel import Kernel

Array = Any

_SOURCE = "bias_activation.cu"
_BLOCK = 256
_WARP = 32
_SUM_ROWS = 8
_VECTOR_BYTES = 16
_PRELU = -1
# Constants, so that sums have the same order on every device.
_MOST_BLOCKS = 2048
_MOST_PARTS = 512
_LEAST_WORK = 16  # elements of a thread before a channel's elements are parted
_MOST_CHANNELS = 2**30
_ONE_CHANNEL = 2**20  # elements of a made-up plane where one number is for all elements

_CHANNELS = np.dtype(
    [
        ("size", np.int64),
        ("channels", np.int32),
        ("inner", np.int32),
        ("lines", np.int64),
        ("lines_per_block", np.int64),
    ],
    align=True,
)


def bias_activation(x: Array, bias: Array, kind: str, dim: int, a: float = 0.0, b: float = 0.0) -> Array:
    return _forward(x, bias, planes(x.shape, dim), described(kind, a, b))


def bias_activation_with_slope(
    x: Array, bias: Array, kind: str, dim: int, a: float = 0.0, b: float = 0.0
) -> tuple[Array, Array | None]:
    # As in `activation_with_slope`.
    return bias_activation(x, bias, kind, dim, a, b), None


def bias_activation_scale(
    slope: Array, dy: Array, dim: int, with_bias_grad: bool = True, in_place: bool = False
) -> tuple[Array, Array | None]:
    # No slope was made here: it came from elsewhere.
    dx = slope * dy
    others = tuple(i for i in range(dx.ndim) if i != dim)
    return dx, dx.sum(axis=others) if with_bias_grad else None


def bias_activation_grad(
    dy: Array,
    saved: Array,
    bias: Array | None,
    kind: str,
    dim: int,
    a: float = 0.0,
    b: float = 0.0,
    with_bias_grad: bool = True,
) -> tuple[Array, Array | None]:
    return _backward(dy, saved, bias, planes(dy.shape, dim), described(kind, a, b), with_bias_grad)


def prelu(x: Array, weight: Array) -> Array:
    return _forward(x, weight, _prelu_planes(x, weight), _prelu())


def prelu_grad(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    return _backward(dy, x, weight, _prelu_planes(x, weight), _prelu(), True)


def _prelu() -> np.ndarray:
    return launch.struct(ACTIVATION, a=0, b=0, kind=_PRELU)


def _prelu_planes(x: Array, weight: Array) -> tuple[int, int, int]:
    return (1, 1, x.size) if weight.size == 1 else planes(x.shape, 1)


def _forward(x: Array, numbers: Array, shape: tuple[int, int, int], how: np.ndarray) -> Array:
    x, numbers = launch.contiguous(x), launch.contiguous(numbers)
    y = launch.empty(x.shape, x.dtype, x)
    args = (x, numbers, y, _channels(x.size, _checked(shape), 0, 0), how)
    launch.launch(_kernel("", launch.c_type(x.dtype)), (tiles(x.size, x.dtype),), (_BLOCK,), args)
    return y


def _backward(
    dy: Array, saved: Array, numbers: Array | None, shape: tuple[int, int, int], how: np.ndarray, with_sums: bool
) -> tuple[Array, Array | None]:
    dy, saved = launch.contiguous(dy), launch.contiguous(saved)
    numbers = None if numbers is None else launch.contiguous(numbers)
    scalar = launch.c_type(dy.dtype)
    dx = launch.empty(dy.shape, dy.dtype, dy)
    outer, channels, inner = shape = _checked(shape)
    block: tuple[int, ...]
    grid: tuple[int, ...]
    if inner == 1:
        vector = _VECTOR_BYTES // dy.dtype.itemsize
        width = min(_WARP, max(1, 1 << (launch.divide_up(channels, vector) - 1).bit_length()))
        columns = launch.divide_up(channels, width * vector)
        lines, block = outer, (width, _BLOCK // width)
        parts, each = _parts(lines, columns, _LEAST_WORK * block[1])
        kernel, grid = _kernel("_grad_rows", scalar), (columns, parts)
    else:
        lines, block = min(outer * inner, dy.size), (_BLOCK,)
        parts, each = _parts(lines, channels, _LEAST_WORK * _BLOCK)
        kernel, grid = _kernel("_grad_planes", scalar), (parts * channels,)
    accumulator = np.float64 if dy.dtype == np.float64 else np.float32
    partials = launch.empty((parts, channels), accumulator, dy) if with_sums else None
    args = (dy, saved, numbers, dx, partials, _channels(dy.size, shape, lines, each), how)
    launch.launch(kernel, grid, block, args)
    if not with_sums:
        return dx, None
    totals = launch.empty((channels,), dy.dtype, dy)
    sizes = (np.int32(parts), np.int32(channels))
    grid = (launch.divide_up(channels, _WARP),)
    launch.launch(_kernel("_sum", scalar), grid, (_WARP, _SUM_ROWS), (partials, totals, *sizes))
    return dx, totals


def _parts(lines: int, blocks: int, least: int) -> tuple[int, int]:
    """In how many parts `blocks` blocks share their lines, and the lines of one; none where there are no lines."""
    most = max(1, min(_MOST_PARTS, _MOST_BLOCKS // max(1, blocks)))
    # A multiple of `least`, which keeps vectors whole.
    each = least * launch.divide_up(launch.divide_up(lines, most), least) or least
    return launch.divide_up(lines, each), each


def _checked(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    outer, channels, inner = shape
    if channels == 1:
        # One number for all: planes may be cut anywhere, so their length is one that vectors fit.
        return launch.divide_up(outer * inner, _ONE_CHANNEL), 1, _ONE_CHANNEL
    if max(channels, inner) > _MOST_CHANNELS:
        raise ValueError(
            f"bias_activation: on CUDA there may be {_MOST_CHANNELS} channels and elements in a plane, "
            f"got {channels} and {inner}"
        )
    return shape


def _channels(size: int, shape: tuple[int, int, int], lines: int, lines_per_block: int) -> np.ndarray:
    _, channels, inner = shape
    fields = {"channels": max(1, channels), "inner": max(1, inner)}
    return launch.struct(_CHANNELS, size=size, lines=lines, lines_per_block=lines_per_block, **fields)


def _kernel(name: str, scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"bias_activation{name}<{scalar}>")


VARIANTS = [
    _kernel(name, scalar) for name in ("", "_grad_rows", "_grad_planes", "_sum") for scalar in launch.FLOAT_TYPES
]
