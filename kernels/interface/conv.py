"""Convolution of one, two or three axes; their number is that of the strides."""

from __future__ import annotations

from collections.abc import Sequence

from .. import geometry
from ..geometry import Pads, Sizes
from .checks import Array, check_arrays, side


def conv(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    """Convolve (N, C, *sizes) with (K, C / groups, *taps), and add a bias (K,) or None, to (N, K, *outputs).

    `padding` is (before, after) for each axis, such as ((top, bottom), (left, right)). The result is
    activation(convolution + bias + residual): activation None, "relu" or "silu"; residual of its shape, or None.
    """
    operation = geometry.conv_name(stride)
    check_arrays(operation, x=x, weight=weight, bias=bias, residual=residual)
    bias_shape = None if bias is None else bias.shape
    shape = geometry.conv(x.shape, weight.shape, bias_shape, stride, padding, dilation, groups)
    geometry.conv_epilogue(operation, shape, activation, None if residual is None else residual.shape)
    if len(stride) > 1:
        return side(x).conv(x, weight, bias, stride, padding, dilation, groups, activation, residual)
    settings = _as_images(stride, padding, dilation)
    residual = None if residual is None else residual[:, :, None]
    y = side(x).conv(x[:, :, None], weight[:, :, None], bias, *settings, groups, activation, residual)
    return y[:, :, 0]


def conv_input_grad(
    dy: Array,
    weight: Array,
    input_shape: Sequence[int],
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> Array:
    """The gradient of `conv` with respect to x, of the shape `input_shape`."""
    check_arrays(geometry.conv_name(stride, "_input_grad"), dy=dy, weight=weight)
    shape = tuple(input_shape)
    geometry.conv_grad("_input_grad", dy.shape, shape, weight.shape, stride, padding, dilation, groups)
    if len(stride) > 1:
        return side(dy).conv_input_grad(dy, weight, shape, stride, padding, dilation, groups)
    settings = _as_images(stride, padding, dilation)
    shape = (*shape[:2], 1, shape[2])
    return side(dy).conv_input_grad(dy[:, :, None], weight[:, :, None], shape, *settings, groups)[:, :, 0]


def conv_weight_grad(
    dy: Array,
    x: Array,
    weight_shape: Sequence[int],
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> Array:
    """The gradient of `conv` with respect to weight, of the shape `weight_shape`."""
    check_arrays(geometry.conv_name(stride, "_weight_grad"), dy=dy, x=x)
    shape = tuple(weight_shape)
    geometry.conv_grad("_weight_grad", dy.shape, x.shape, shape, stride, padding, dilation, groups)
    if len(stride) > 1:
        return side(dy).conv_weight_grad(dy, x, shape, stride, padding, dilation, groups)
    settings = _as_images(stride, padding, dilation)
    shape = (*shape[:2], 1, shape[2])
    return side(dy).conv_weight_grad(dy[:, :, None], x[:, :, None], shape, *settings, groups)[:, :, 0]


def conv_bias_grad(dy: Array) -> Array:
    """The gradient of `conv` with respect to bias: the sums (K,) of dy (N, K, *outputs) over all but its channels."""
    check_arrays("conv_bias_grad", dy=dy)
    if dy.ndim < 2:
        raise ValueError(f"conv_bias_grad: the gradient must have the shape (N, K, *outputs), got {dy.shape}")
    return side(dy).conv_bias_grad(dy)


def _as_images(stride: Sizes, padding: Pads, dilation: Sizes) -> tuple[Sizes, Pads, Sizes]:
    """The settings of one axis for images of height 1."""
    return (1, *stride), ((0, 0), *padding), (1, *dilation)
