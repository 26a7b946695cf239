"""Convolution of small images, many of them in one matrix product that the threads of BLAS share.

The images of a block are laid out in lines with the batch last, channels by height by width by images: what a tap sees
from a row of the output is one run of memory, as long as the row times the images. A stride takes a line apart into
phases, one of which a tap sees. The columns are (groups, depth, P * Q * images), a row for each channel of a group and
each tap. All but the products runs on the calling thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

import numpy as np

from . import conv_choice, parallel, results
from .conv_choice import Problem
from .scratch import Scratch, scratch

# Images that lie this far apart, or a multiple of it, meet in the same few lines of the first cache: so many of those
# are copied at once from one layout to the other.
_ALIASED_BYTES = 4096
_COPIED = 8
# And back: so much of the lines stays in the first cache while the images are written one by one.
_COLLECTED_BYTES = 1 << 16


def forward(problem: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    y = results.empty(problem.y_shape, x.dtype)
    filters = _filters(problem, weight)
    if bias is not None:
        bias = bias.astype(problem.computed, copy=False).reshape(problem.groups, problem.outputs, 1)

    def work(blocks: Iterator[slice]) -> None:
        with scratch() as memory:
            for block in blocks:
                memory.clear()
                columns = _columns(problem, x[block], memory)
                outputs = memory.empty((*filters.shape[:2], columns.shape[2]), columns.dtype)
                np.matmul(filters, columns, out=outputs)
                if bias is not None:
                    outputs += bias
                _, filter_count, height, width = y.shape
                collect(outputs.reshape(filter_count, height, 1, width, -1), y[block])

    parallel.share(work, _blocks(problem), 1)
    return y


def input_grad(problem: Problem, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
    dx = results.empty(problem.x_shape, dy.dtype)
    filters = _filters(problem, weight).swapaxes(1, 2)

    def work(blocks: Iterator[slice]) -> None:
        with scratch() as memory:
            for block in blocks:
                memory.clear()
                grads = _grads(problem, dy[block], memory)
                columns = memory.empty((*filters.shape[:2], grads.shape[2]), grads.dtype)
                np.matmul(filters, grads, out=columns)
                collect(_folded(problem, columns, memory), dx[block])

    parallel.share(work, _blocks(problem), 1)
    return dx


def weight_grad(problem: Problem, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    dw = results.empty(problem.weight_shape, problem.computed)
    sums = filled = dw.reshape(problem.groups, problem.outputs, problem.depth)
    if problem.outputs <= conv_choice.MOST_TURNED:
        sums = np.empty((problem.groups, problem.depth, problem.outputs), problem.computed).swapaxes(1, 2)

    def work(blocks: Iterator[slice]) -> None:
        with scratch() as memory:
            for block in blocks:
                memory.clear()
                grads = _grads(problem, dy[block], memory)
                columns = _columns(problem, x[block], memory).swapaxes(1, 2)
                if block.start == 0:
                    np.matmul(grads, columns, out=sums)
                else:
                    _add_product(grads, columns, sums, memory)

    parallel.share(work, _blocks(problem), 1)
    if sums is not filled:
        np.copyto(filled, sums)
    return dw.astype(dy.dtype, copy=False)


def _blocks(problem: Problem) -> list[slice]:
    images = problem.x_shape[0]
    most = conv_choice.JOINED_BLOCK_BYTES // problem.columns_bytes
    return parallel.split(images, parallel.evenly(images, most))


def _filters(problem: Problem, weight: np.ndarray) -> np.ndarray:
    return weight.astype(problem.computed, copy=False).reshape(problem.groups, problem.outputs, problem.depth)


def _is_plain(problem: Problem) -> bool:
    """Whether images are their own columns."""
    whole = problem.x_shape[2:] == problem.y_shape[2:] and not any(map(any, problem.padding))
    return prod(problem.taps) == 1 and problem.stride == (1, 1) and whole


def _columns(problem: Problem, x: np.ndarray, memory: Scratch) -> np.ndarray:
    (top, bottom), (left, right) = problem.padding
    (down, across), gap = problem.stride, problem.dilation
    rows, places = problem.y_shape[2:]
    n, channels, height, width = x.shape
    shape = (channels, top + height + bottom, across, -(-(left + width + right) // across), n)
    lines = memory.empty(shape, problem.computed)
    if any(map(any, problem.padding)):
        lines.fill(0)
    lay(x, lines[:, top : top + height], left)
    if _is_plain(problem):
        return lines.reshape(problem.groups, problem.depth, -1)
    columns = memory.empty((channels, *problem.taps, rows, places, n), problem.computed)
    sc, sh, sp, sw, sn = lines.strides
    for tap in range(problem.taps[1]):
        place, phase = divmod(tap * gap[1], across)
        target = columns[:, :, tap]
        # A tenth of the time of as_strided.
        steps = (sc, gap[0] * sh, down * sh, sw, sn)
        np.copyto(target, np.ndarray(target.shape, lines.dtype, lines, phase * sp + place * sw, steps))
    return columns.reshape(problem.groups, problem.depth, -1)


def _grads(problem: Problem, dy: np.ndarray, memory: Scratch) -> np.ndarray:
    """dy (groups, K / groups, P * Q * images)."""
    grads = memory.empty((*dy.shape[1:], len(dy)), problem.computed)
    lay(dy, grads[:, :, None])
    return grads.reshape(problem.groups, problem.outputs, -1)


def _folded(problem: Problem, columns: np.ndarray, memory: Scratch) -> np.ndarray:
    """The sums of columns where they came from, in lines (C, H, phases, places, images)."""
    _, channels, height, width = problem.x_shape
    across = problem.stride[1]
    if _is_plain(problem):
        return columns.reshape(channels, height, 1, width, -1)
    columns = columns.reshape(channels, *problem.taps, *problem.y_shape[2:], -1)
    folded = memory.empty((channels, height, across, -(-width // across), columns.shape[-1]), columns.dtype)
    folded.fill(0)
    for (i, rows, down), (j, places, seen) in product(_seen(problem, 0), _seen(problem, 1)):
        place, phase = divmod(seen.start, across)
        target = folded[:, down, phase, place : place + places.stop - places.start]
        np.add(target, columns[:, i, j, rows, places], out=target)
    return folded


def lay(images: np.ndarray, lines: np.ndarray, before: int = 0) -> None:
    """Copy images (n, C, H, W) to lines (C, H, phases, places, n), behind so many elements of each line."""
    at_once = len(images) if images.strides[0] % _ALIASED_BYTES else _COPIED
    for phase in range(lines.shape[2]):
        some = images[..., (phase - before) % lines.shape[2] :: lines.shape[2]]
        place = -((phase - before) // lines.shape[2])
        target = lines[:, :, phase, place : place + some.shape[3]]
        for part in parallel.split(len(images), max(1, at_once)):
            np.copyto(target[..., part], some[part].transpose(1, 2, 3, 0), casting="unsafe")


def collect(lines: np.ndarray, images: np.ndarray) -> None:
    """Copy lines (C, H, phases, places, n) to images (n, C, H, W)."""
    channels = max(1, _COLLECTED_BYTES // max(1, lines[:1].nbytes))
    for phase in range(lines.shape[2]):
        target = images[..., phase :: lines.shape[2]]
        for part in parallel.split(len(lines), channels):
            some = lines[part, :, phase, : target.shape[3]]
            np.copyto(target[:, part], some.transpose(3, 0, 1, 2), casting="unsafe")


def _seen(problem: Problem, axis: int) -> Iterator[tuple[int, slice, slice]]:
    """The taps of an axis that see any of the input, each with the outputs that see it and what they see."""
    size, outputs = problem.x_shape[2 + axis], problem.y_shape[2 + axis]
    step = problem.stride[axis]
    for tap in range(problem.taps[axis]):
        first = tap * problem.dilation[axis] - problem.padding[axis][0]
        start, stop = max(0, -(first // step)), min(outputs, (size - 1 - first) // step + 1)
        if start < stop:
            yield tap, slice(start, stop), slice(first + start * step, first + (stop - 1) * step + 1, step)


def _add_product(grads: np.ndarray, columns: np.ndarray, dw: np.ndarray, memory: Scratch) -> None:
    """dw += grads @ columns, some filters at a time."""
    filter_bytes = max(1, dw.itemsize * len(dw) * dw.shape[2])
    most = max(1, conv_choice.JOINED_SUM_BYTES // filter_bytes)
    buffer = memory.empty((len(dw), min(most, dw.shape[1]), dw.shape[2]), dw.dtype)
    for some in parallel.split(dw.shape[1], parallel.evenly(dw.shape[1], most)):
        target = dw[:, some]
        part = buffer[:, : target.shape[1]]
        np.matmul(grads[:, some], columns, out=part)
        np.add(target, part, out=target)
