"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence

from .. import geometry
from ..geometry import Pair
from .checks import Array, check_arrays, same_kind, side


def max_pool2d(
    x: Array,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """The maximum of each window, and its offset i * kernel_width + j inside the window.

    Offsets are uint8 for windows of at most 256 elements, else int16 up to 32,768, else int32. A NaN wins
    over everything (the last one of a window); among equal maxima the first in window order wins.
    """
    check_arrays("max_pool2d", x=x)
    geometry.max_pool2d(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return side(x).max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d_scatter(
    dy: Array,
    offsets: Array,
    input_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Array:
    """The gradient of `max_pool2d`: dy added up where its offsets point, zero elsewhere."""
    check_arrays("max_pool2d_scatter", dy=dy)
    _check_offsets("max_pool2d_scatter", dy, offsets)
    shape = tuple(input_shape)
    geometry.max_pool2d_scatter(dy.shape, offsets.shape, shape, kernel_size, stride, padding, dilation)
    return side(dy).max_pool2d_scatter(dy, offsets, shape, kernel_size, stride, padding, dilation)


def max_pool2d_gather(
    x: Array, offsets: Array, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Array:
    """The element of x that each offset points to: the gradient of `max_pool2d_scatter`."""
    check_arrays("max_pool2d_gather", x=x)
    _check_offsets("max_pool2d_gather", x, offsets)
    geometry.max_pool2d_offsets("max_pool2d_gather", offsets.shape, x.shape, kernel_size, stride, padding, dilation)
    return side(x).max_pool2d_gather(x, offsets, kernel_size, stride, padding, dilation)


def max_pool2d_indices(
    offsets: Array, input_shape: Sequence[int], kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Array:
    """The int64 positions h * W + w in the input plane that the offsets point to: PyTorch's indices."""
    _check_offsets("max_pool2d_indices", offsets, offsets)
    shape = tuple(input_shape)
    geometry.max_pool2d_offsets("max_pool2d_indices", offsets.shape, shape, kernel_size, stride, padding, dilation)
    return side(offsets).max_pool2d_indices(offsets, shape, kernel_size, stride, padding, dilation)


def avg_pool2d(
    x: Array,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """The mean of each window of (N, C, H, W)."""
    check_arrays("avg_pool2d", x=x)
    geometry.avg_pool2d(x.shape, kernel_size, stride, padding, ceil_mode, divisor_override)
    return side(x).avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool2d_input_grad(
    dy: Array,
    input_shape: Sequence[int],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Array:
    """The gradient of `avg_pool2d` with respect to x, of the shape `input_shape`."""
    check_arrays("avg_pool2d_input_grad", dy=dy)
    shape = tuple(input_shape)
    geometry.avg_pool2d_grad(dy.shape, shape, kernel_size, stride, padding, ceil_mode, divisor_override)
    return side(dy).avg_pool2d_input_grad(
        dy, shape, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def _check_offsets(operation: str, array: Array, offsets: Array) -> None:
    same_kind(operation, array=array, offsets=offsets)
    if offsets.dtype.name not in ("uint8", "int16", "int32"):
        raise TypeError(f"{operation}: offsets must be uint8, int16 or int32, got {offsets.dtype}")
