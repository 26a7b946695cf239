"""Pooling over one, two or three axes: x is (N, C, *spatial), and the length of `kernel_size` is the rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..geometry import pooling as geometry
from ..geometry.checks import check_same
from ..geometry.pooling import Sizes
from .checks import Array, check_arrays, same_kind, side


def max_pool(
    x: Array, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool = False
) -> tuple[Array, Array]:
    """The maximum of each window, and its offset inside the window: the number of its tap, the last axis fastest.

    Offsets are uint8 for windows of at most 256 elements, else int16 up to 32,768, else int32. A NaN wins
    over everything (the last one of a window); among equal maxima the first in window order wins.
    """
    check_arrays(_name("max_pool", x), x=x)
    geometry.max_pool(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return side(x).max_pool(x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool_scatter(
    dy: Array,
    offsets: Array,
    input_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> Array:
    """The gradient of `max_pool`: dy added up where its offsets point, zero elsewhere."""
    check_arrays(_name("max_pool", dy, "_scatter"), dy=dy)
    _check_offsets(_name("max_pool", dy, "_scatter"), dy, offsets)
    shape = tuple(input_shape)
    geometry.max_pool_scatter(dy.shape, offsets.shape, shape, kernel_size, stride, padding, dilation)
    return side(dy).max_pool_scatter(dy, offsets, shape, kernel_size, stride, padding, dilation)


def max_pool_gather(
    x: Array, offsets: Array, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Array:
    """The element of x that each offset points to: the gradient of `max_pool_scatter`."""
    check_arrays(_name("max_pool", x, "_gather"), x=x)
    _check_offsets(_name("max_pool", x, "_gather"), x, offsets)
    geometry.max_pool_offsets("_gather", offsets.shape, x.shape, kernel_size, stride, padding, dilation)
    return side(x).max_pool_gather(x, offsets, kernel_size, stride, padding, dilation)


def max_pool_indices(
    offsets: Array,
    input_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> Array:
    """The int64 positions (d * H + h) * W + w in the input plane that the offsets point to: PyTorch's indices."""
    _check_offsets(_name("max_pool", offsets, "_indices"), offsets, offsets)
    shape = tuple(input_shape)
    geometry.max_pool_offsets("_indices", offsets.shape, shape, kernel_size, stride, padding, dilation)
    return side(offsets).max_pool_indices(offsets, shape, kernel_size, stride, padding, dilation)


def avg_pool(
    x: Array,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """The mean of each window."""
    check_arrays(_name("avg_pool", x), x=x)
    geometry.avg_pool(x.shape, kernel_size, stride, padding, ceil_mode, divisor_override)
    return side(x).avg_pool(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool_input_grad(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Array:
    """The gradient of `avg_pool` with respect to x, of the shape `input_shape`."""
    check_arrays(_name("avg_pool", dy, "_input_grad"), dy=dy)
    shape = tuple(input_shape)
    geometry.avg_pool_grad(dy.shape, shape, kernel_size, stride, padding, ceil_mode, divisor_override)
    return side(dy).avg_pool_input_grad(
        dy, shape, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def lp_pool(x: Array, norm_type: float, kernel_size: Sizes, stride: Sizes, ceil_mode: bool = False) -> Array:
    """The power mean of each window times its size: (k / n Σ x^p)^(1/p) over the n of k elements inside the input.

    k / n is 1 but for windows that `ceil_mode` lets reach past the input. Signs stay: an odd p may give a NaN.
    """
    check_arrays(_name("lp_pool", x), x=x)
    geometry.lp_pool(x.shape, norm_type, kernel_size, stride, ceil_mode)
    return side(x).lp_pool(x, norm_type, kernel_size, stride, ceil_mode)


def lp_pool_input_grad(
    dy: Array, x: Array, y: Array, norm_type: float, kernel_size: Sizes, stride: Sizes, ceil_mode: bool
) -> Array:
    """The gradient of y = `lp_pool`(x) with respect to x. A window whose y is 0 passes none on."""
    check_arrays(_name("lp_pool", dy, "_input_grad"), dy=dy, x=x, y=y)
    geometry.lp_pool_grad(dy.shape, x.shape, y.shape, norm_type, kernel_size, stride, ceil_mode)
    return side(dy).lp_pool_input_grad(dy, x, y, norm_type, kernel_size, stride, ceil_mode)


def adaptive_max_pool(x: Array, output_size: Sizes) -> tuple[Array, Array]:
    """The maximum of each of `output_size` windows, and its int64 position in the input plane.

    Window o of an axis is [floor(o I / O), ceil((o + 1) I / O)); NaN and ties as in `max_pool`.
    """
    check_arrays(_name("adaptive_max_pool", x), x=x)
    geometry.adaptive_pool("adaptive_max_pool", x.shape, output_size)
    return side(x).adaptive_max_pool(x, output_size)


def adaptive_max_pool_scatter(dy: Array, indices: Array, input_shape: Sequence[int]) -> Array:
    """The gradient of `adaptive_max_pool`: dy added up at its positions, zero elsewhere."""
    operation = _name("adaptive_max_pool", dy, "_scatter")
    check_arrays(operation, dy=dy)
    _check_indices(operation, dy, indices)
    shape = tuple(input_shape)
    geometry.adaptive_pool_grad("adaptive_max_pool", dy.shape, shape, "_scatter")
    check_same(operation, indices.shape, dy.shape)
    return side(dy).adaptive_max_pool_scatter(dy, indices, shape)


def adaptive_max_pool_gather(x: Array, indices: Array) -> Array:
    """The element of each plane of x at each position: the gradient of `adaptive_max_pool_scatter`."""
    check_arrays(_name("adaptive_max_pool", x, "_gather"), x=x)
    _check_indices(_name("adaptive_max_pool", x, "_gather"), x, indices)
    geometry.positions(_name("adaptive_max_pool", x, "_gather"), indices.shape, x.shape)
    return side(x).adaptive_max_pool_gather(x, indices)


def adaptive_avg_pool(x: Array, output_size: Sizes) -> Array:
    """The mean of each of `output_size` windows; see `adaptive_max_pool` for the windows."""
    check_arrays(_name("adaptive_avg_pool", x), x=x)
    geometry.adaptive_pool("adaptive_avg_pool", x.shape, output_size)
    return side(x).adaptive_avg_pool(x, output_size)


def adaptive_avg_pool_input_grad(dy: Array, input_shape: Sequence[int]) -> Array:
    """The gradient of `adaptive_avg_pool` with respect to x, of the shape `input_shape`."""
    check_arrays(_name("adaptive_avg_pool", dy, "_input_grad"), dy=dy)
    shape = tuple(input_shape)
    geometry.adaptive_pool_grad("adaptive_avg_pool", dy.shape, shape, "_input_grad")
    return side(dy).adaptive_avg_pool_input_grad(dy, shape)


def max_unpool(x: Array, indices: Array, output_size: Sizes) -> Array:
    """Planes of zeros with each element of x at its int64 position; of several at one place the last stays.

    A position outside the plane is a ValueError on the CPU; on CUDA its element is left out.
    """
    check_arrays(_name("max_unpool", x), x=x)
    _check_indices(_name("max_unpool", x), x, indices)
    geometry.max_unpool(x.shape, indices.shape, output_size)
    return side(x).max_unpool(x, indices, output_size)


def max_unpool_input_grad(dy: Array, indices: Array) -> Array:
    """The gradient of `max_unpool` with respect to x: dy at each position, zero for what another one replaced."""
    check_arrays(_name("max_unpool", dy, "_input_grad"), dy=dy)
    _check_indices(_name("max_unpool", dy, "_input_grad"), dy, indices)
    geometry.positions(_name("max_unpool", dy, "_input_grad"), indices.shape, dy.shape)
    return side(dy).max_unpool_input_grad(dy, indices)


def _name(operation: str, array: Array, suffix: str = "") -> str:
    """The name with the number of axes that are pooled, as in `avg_pool2d`."""
    rank = getattr(array, "ndim", 0) - 2
    return f"{operation}{rank}d{suffix}" if 1 <= rank <= 3 else operation + suffix


def _check_offsets(operation: str, array: Array, offsets: Array) -> None:
    if not type(array) is type(offsets) is np.ndarray:
        same_kind(operation, array=array, offsets=offsets)
    if offsets.dtype.str[1:] not in ("u1", "i2", "i4"):
        raise TypeError(f"{operation}: offsets must be uint8, int16 or int32, got {offsets.dtype}")


def _check_indices(operation: str, array: Array, indices: Array) -> None:
    same_kind(operation, array=array, indices=indices)
    if indices.dtype.name != "int64":
        raise TypeError(f"{operation}: indices must be int64, got {indices.dtype}")
