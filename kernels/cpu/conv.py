"""Convolution: depthwise on long runs, images by matrix products, volumes by their images."""

from __future__ import annotations

import numpy as np

from .. import geometry
from ..geometry import Pads, Sizes
from . import depthwise, images, volumes
from .epilogue import finish


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
    activation: str | None = None,
    residual: np.ndarray | None = None,
) -> np.ndarray:
    shape = geometry.conv(x.shape, weight.shape, None, stride, padding, dilation, groups)
    if depthwise.serves(weight.shape, groups, stride):
        y = depthwise.forward(x, weight, bias, shape, stride, padding, dilation)
    else:
        way = images if len(stride) == 2 else volumes
        y = way.forward(x, weight, bias, shape, stride, padding, dilation, groups)
    return finish(y, activation, residual)


def conv_input_grad(
    dy: np.ndarray,
    weight: np.ndarray,
    input_shape: Sizes,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    if depthwise.serves(weight.shape, groups, stride):
        return depthwise.input_grad(dy, weight, input_shape, stride, padding, dilation)
    way = images if len(stride) == 2 else volumes
    return way.input_grad(dy, weight, input_shape, stride, padding, dilation, groups)


def conv_weight_grad(
    dy: np.ndarray,
    x: np.ndarray,
    weight_shape: Sizes,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    if depthwise.serves(weight_shape, groups, stride):
        dw = depthwise.weight_grad(dy, x, weight_shape, stride, padding, dilation)
        if np.isfinite(dw).all():
            return dw.astype(dy.dtype, copy=False)
    way = images if len(stride) == 2 else volumes
    return way.weight_grad(dy, x, weight_shape, stride, padding, dilation, groups)
