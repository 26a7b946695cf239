"""Convolution."""

from __future__ import annotations

from collections.abc import Sequence

from .. import geometry
from ..geometry import Padding, Pair
from .checks import Array, check_arrays, side


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """Convolve (N, C, H, W) with (K, C / groups, R, S) to (N, K, P, Q).

    `padding` is ((top, bottom), (left, right)).
    """
    check_arrays("conv2d", x=x, weight=weight, bias=bias)
    bias_shape = None if bias is None else bias.shape
    geometry.conv2d(x.shape, weight.shape, bias_shape, stride, padding, dilation, groups)
    return side(x).conv2d(x, weight, bias, stride, padding, dilation, groups)


def conv2d_input_grad(
    dy: Array,
    weight: Array,
    input_shape: Sequence[int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """The gradient of `conv2d` with respect to x, of the shape `input_shape`."""
    check_arrays("conv2d_input_grad", dy=dy, weight=weight)
    shape = tuple(input_shape)
    geometry.conv2d_grad("conv2d_input_grad", dy.shape, shape, weight.shape, stride, padding, dilation, groups)
    return side(dy).conv2d_input_grad(dy, weight, shape, stride, padding, dilation, groups)


def conv2d_weight_grad(
    dy: Array,
    x: Array,
    weight_shape: Sequence[int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """The gradient of `conv2d` with respect to weight, of the shape `weight_shape`."""
    check_arrays("conv2d_weight_grad", dy=dy, x=x)
    shape = tuple(weight_shape)
    geometry.conv2d_grad("conv2d_weight_grad", dy.shape, x.shape, shape, stride, padding, dilation, groups)
    return side(dy).conv2d_weight_grad(dy, x, shape, stride, padding, dilation, groups)
