"""Convolution: each by the way that `conv_choice` names, large ones a box of the result at a time."""

from __future__ import annotations

from functools import lru_cache, partial
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
    planes,
    results,
    rows_at_once,
    volumes,
    winograd_lines,
    winograd_tiles,
)
from .conv_choice import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Problem
from .epilogue import finish
from .unseen import leaves_gaps, without_gaps, without_taps

# What computes y, dx and dw; None where what is not finite is in its way.
_MODULES: dict[str, Any] = {
    "planes": planes,
    "depthwise": depthwise,
    "winograd lines": winograd_lines,
    "winograd tiles": winograd_tiles,
    "joined": joined,
    "interleaved": interleaved,
    "rows at once": rows_at_once,
    "columns": images,
}
# IEEE results need no warnings.
_QUIETLY = np.errstate(all="ignore")


@_QUIETLY
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
    problem, taps = _problem(FORWARD, x.shape, weight.shape, None, stride, padding, dilation, groups, x.dtype)
    return finish(_forward(*without_gaps(problem, x), weight[:, :, *taps], bias), activation, residual)


@_QUIETLY
def conv_input_grad(
    dy: np.ndarray,
    weight: np.ndarray,
    input_shape: Sizes,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    problem, taps = _problem(
        INPUT_GRAD, input_shape, weight.shape, dy.shape, stride, padding, dilation, groups, dy.dtype
    )
    weight = weight[:, :, *taps]
    if not leaves_gaps(problem):
        return _input_grad(problem, dy, weight)
    dx = results.zeros(input_shape, dy.dtype)
    problem, seen = without_gaps(problem, dx)
    np.copyto(seen, _input_grad(problem, dy, weight))
    return dx


@_QUIETLY
def conv_weight_grad(
    dy: np.ndarray,
    x: np.ndarray,
    weight_shape: Sizes,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    problem, taps = _problem(WEIGHT_GRAD, x.shape, weight_shape, dy.shape, stride, padding, dilation, groups, dy.dtype)
    problem, x = without_gaps(problem, x)
    seen = _weight_grad(problem, dy, x)
    if seen.shape == weight_shape:
        return seen
    dw = results.zeros(weight_shape, dy.dtype)
    dw[:, :, *taps] = seen
    return dw


@lru_cache(maxsize=1024)
def _problem(
    operation: str,
    x_shape: Sizes,
    weight_shape: Sizes,
    y_shape: Sizes | None,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
    dtype: np.dtype,
) -> tuple[Problem, tuple[slice, ...]]:
    """The problem without the taps that see nothing, and which taps are left."""
    if y_shape is None:
        y_shape = geometry.conv(x_shape, weight_shape, None, stride, padding, dilation, groups)
    axes = zip(stride, x_shape[2:], padding, dilation, weight_shape[2:], strict=True)
    # A step out of the image is as good as any longer one, whose phases would take more memory.
    stride = tuple(min(step, size + sum(pads) - gap * (taps - 1)) for step, size, pads, gap, taps in axes)
    return without_taps(Problem(operation, x_shape, weight_shape, y_shape, stride, padding, dilation, groups, dtype))


@lru_cache(maxsize=1024)
def _ways(problem: Problem) -> tuple[tuple[str, list[boxes.Slices]], ...]:
    """The ways, the best first, each with the boxes that it makes at once."""
    return tuple((way, boxes.cut(problem, *conv_choice.box(problem, way))) for way in conv_choice.ways(problem))


def _forward(problem: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    for way, parts in _ways(problem):
        if len(parts) > 1:
            return boxes.forward(problem, x, parts, partial(_forward, weight=weight, bias=bias))
        if way == "volumes":
            return volumes.forward(problem, x, weight, bias, _forward)
        y = _MODULES[way].forward(problem, x, weight, bias)
        if y is not None:
            return y
    raise AssertionError("columns are a way for all")


def _input_grad(problem: Problem, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
    for way, parts in _ways(problem):
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
    for way, parts in _ways(problem):
        if len(parts) > 1:
            return boxes.weight_grad(problem, dy, x, parts, _weight_grad)
        if way == "volumes":
            return volumes.weight_grad(problem, dy, x, _weight_grad)
        dw = _MODULES[way].weight_grad(problem, dy, x)
        if dw is not None:
            return dw
    raise AssertionError("columns are a way for all")
