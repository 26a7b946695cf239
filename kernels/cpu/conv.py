"""Convolution: each by the way that `conv_choice` names, large ones a box of the result at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .. import geometry
from ..geometry import Pads, Sizes
from . import (
    boxes,
    conv_choice,
    depthwise,
    flipped,
    images,
    interleaved,
    joined,
    volumes,
    winograd_lines,
    winograd_tiles,
)
from .conv_choice import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Problem
from .epilogue import finish
from .unseen import leaves_gaps, without_gaps, without_taps

# What computes y, dx and dw; None where what is not finite is in its way.
_MODULES: dict[str, Any] = {
    "depthwise": depthwise,
    "winograd lines": winograd_lines,
    "winograd tiles": winograd_tiles,
    "joined": joined,
    "interleaved": interleaved,
    "columns": images,
}


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
    problem = Problem(FORWARD, x.shape, weight.shape, shape, stride, padding, dilation, groups, x.dtype)
    problem, taps = without_taps(problem)
    return finish(_forward(*without_gaps(problem, x), weight[:, :, *taps], bias), activation, residual)


def conv_input_grad(
    dy: np.ndarray,
    weight: np.ndarray,
    input_shape: Sizes,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    problem = Problem(INPUT_GRAD, input_shape, weight.shape, dy.shape, stride, padding, dilation, groups, dy.dtype)
    problem, taps = without_taps(problem)
    weight = weight[:, :, *taps]
    if not leaves_gaps(problem):
        return _input_grad(problem, dy, weight)
    dx = np.zeros(input_shape, dy.dtype)
    problem, seen = without_gaps(problem, dx)
    np.copyto(seen, _input_grad(problem, dy, weight))
    return dx


def conv_weight_grad(
    dy: np.ndarray,
    x: np.ndarray,
    weight_shape: Sizes,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    problem = Problem(WEIGHT_GRAD, x.shape, weight_shape, dy.shape, stride, padding, dilation, groups, dy.dtype)
    problem, taps = without_taps(problem)
    problem, x = without_gaps(problem, x)
    seen = _weight_grad(problem, dy, x)
    if seen.shape == weight_shape:
        return seen
    dw = np.zeros(weight_shape, dy.dtype)
    dw[:, :, *taps] = seen
    return dw


def _forward(problem: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    for way in conv_choice.ways(problem):
        parts = boxes.cut(problem, *conv_choice.box(problem, way))
        if len(parts) > 1:
            return boxes.forward(problem, x, parts, partial(_forward, weight=weight, bias=bias))
        if way == "volumes":
            return volumes.forward(problem, x, weight, bias, _forward)
        y = _MODULES[way].forward(problem, x, weight, bias)
        if y is not None:
            return y
    raise AssertionError("columns are a way for all")


def _input_grad(problem: Problem, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
    for way in conv_choice.ways(problem):
        parts = boxes.cut(problem, *conv_choice.box(problem, way))
        if len(parts) > 1:
            return boxes.input_grad(problem, dy, parts, partial(_input_grad, weight=weight))
        if way == "volumes":
            return volumes.input_grad(problem, dy, weight, _input_grad)
        if way == "flipped":
            dx = flipped.input_grad(problem, dy, weight, _forward)
        else:
            dx = _MODULES[way].input_grad(problem, dy, weight)
        if dx is not None:
            return dx
    raise AssertionError("columns are a way for all")


def _weight_grad(problem: Problem, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    for way in conv_choice.ways(problem):
        parts = boxes.cut(problem, *conv_choice.box(problem, way))
        if len(parts) > 1:
            return boxes.weight_grad(problem, dy, x, parts, _weight_grad)
        if way == "volumes":
            return volumes.weight_grad(problem, dy, x, _weight_grad)
        dw = _MODULES[way].weight_grad(problem, dy, x)
        if dw is not None:
            return dw
    raise AssertionError("columns are a way for all")
