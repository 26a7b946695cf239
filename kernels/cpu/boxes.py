"""A convolution a box of its result at a time: boxes of outputs, or of inputs for the input gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np

from ..geometry import Sizes
from . import results
from .conv_choice import Problem
from .parallel import evenly, split

Slices = tuple[slice, ...]


def cut(problem: Problem, images: int, sizes: Sizes) -> list[Slices]:
    """What is made, in boxes (images, *axes) of at most these sizes."""
    n, _, *counts = problem.made
    axes = zip((n, *counts), (images, *sizes), strict=True)
    return list(product(*(split(count, evenly(count, most)) for count, most in axes)))


def forward(
    problem: Problem,
    x: np.ndarray,
    boxes: list[Slices],
    run: Callable[[Problem, np.ndarray], np.ndarray],
) -> np.ndarray:
    """y, from what `run` makes of each part of the problem and of x."""
    y = results.empty(problem.y_shape, x.dtype)
    for images, *axes in boxes:
        part, seen = _of_outputs(problem, images, axes)
        y[(images, slice(None), *axes)] = run(part, x[seen])
    return y


def input_grad(
    problem: Problem,
    dy: np.ndarray,
    boxes: list[Slices],
    run: Callable[[Problem, np.ndarray], np.ndarray],
) -> np.ndarray:
    dx = results.empty(problem.x_shape, dy.dtype)
    for images, *axes in boxes:
        part, reached = _of_inputs(problem, images, axes)
        dx[(images, slice(None), *axes)] = run(part, dy[reached]) if 0 not in part.y_shape[2:] else 0
    return dx


def weight_grad(
    problem: Problem,
    dy: np.ndarray,
    x: np.ndarray,
    boxes: list[Slices],
    run: Callable[[Problem, np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """dw; the sums of the boxes are added in their order, and rounded once."""
    problem = problem.of(dtype=problem.computed)
    dw = np.zeros(problem.weight_shape, problem.computed)
    for images, *axes in boxes:
        part, seen = _of_outputs(problem, images, axes)
        grads = dy[(images, slice(None), *axes)].astype(problem.computed, copy=False)
        dw += run(part, grads, x[seen].astype(problem.computed, copy=False))
    return dw.astype(dy.dtype, copy=False)


def _of_outputs(problem: Problem, images: slice, axes: list[slice]) -> tuple[Problem, Slices]:
    """The problem of a box of outputs, and where the inputs lie that they see."""
    seen, padding = [], []
    for out, size, taps, step, (before, _), gap in _settings(problem, axes, problem.x_shape):
        low, high = out.start * step - before, (out.stop - 1) * step + gap * (taps - 1) + 1 - before
        start, stop = min(max(low, 0), size), max(min(high, size), 0)
        # Outputs that see nothing but padding have it all before an empty axis.
        padding.append((start - low, high - stop) if start < stop else (high - low, 0))
        seen.append(slice(start, max(start, stop)))
    return _part(problem, images, seen, axes, padding), (images, slice(None), *seen)


def _of_inputs(problem: Problem, images: slice, axes: list[slice]) -> tuple[Problem, Slices]:
    """The problem of a box of inputs, and where the outputs lie that see them."""
    reached, padding = [], []
    for box, count, taps, step, (pad, _), gap in _settings(problem, axes, problem.y_shape):
        extent, first = gap * (taps - 1) + 1, box.start + pad
        start = max(0, min(-((extent - 1 - first) // step), first // step))
        stop = max(start, min(count, (box.stop - 1 + pad) // step + 1))
        before = first - start * step
        after = (stop - start - 1) * step + extent - before - (box.stop - box.start)
        padding.append((before, max(0, after)))
        reached.append(slice(start, stop))
    return _part(problem, images, axes, reached, padding), (images, slice(None), *reached)


def _settings(problem: Problem, axes: list[slice], shape: Sizes) -> Iterator[tuple]:
    return zip(axes, shape[2:], problem.taps, problem.stride, problem.padding, problem.dilation, strict=True)


def _part(problem: Problem, images: slice, inputs: list[slice], outputs: list[slice], padding: list) -> Problem:
    n = images.stop - images.start
    return problem.of(
        x_shape=(n, problem.x_shape[1], *(part.stop - part.start for part in inputs)),
        y_shape=(n, problem.y_shape[1], *(part.stop - part.start for part in outputs)),
        padding=tuple(padding),
    )
