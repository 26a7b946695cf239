"""Pooling of planes (planes, *spatial) tap by tap on strided views.

This is exact for NaN and for windows of nothing but -inf, and does not mind large strides; `windows` is
faster on everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """The settings of a pooling of `size` to `pooled`, one number for each axis."""

    size: tuple[int, ...]
    pooled: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


class Span(NamedTuple):
    """A tap of one axis: the outputs for which it is inside the input, and what it sees from them."""

    tap: int
    out: slice
    source: slice


def maximum(x: np.ndarray, window: Window, y: np.ndarray, offsets: np.ndarray) -> None:
    y.fill(-np.inf)
    unseen = np.ones(y.shape, bool)
    for tap, out, source in _taps(window):
        value, best = x[source], y[out]
        better = (value > best) | np.isnan(value) | unseen[out]
        np.copyto(best, value, where=better)
        np.copyto(offsets[out], tap, where=better)
        unseen[out] = False


def scatter(dy: np.ndarray, offsets: np.ndarray, window: Window, dx: np.ndarray) -> None:
    dx.fill(0)
    for tap, out, source in _taps(window):
        dx[source] += np.where(offsets[out] == tap, dy[out], 0)


def total(x: np.ndarray, window: Window, y: np.ndarray) -> None:
    y.fill(0)
    for _, out, source in _taps(window):
        y[out] += x[source]


def spread(dy: np.ndarray, window: Window, dx: np.ndarray) -> None:
    dx.fill(0)
    for _, out, source in _taps(window):
        dx[source] += dy[out]


def spans(window: Window, axis: int) -> list[Span]:
    """The taps of one axis."""
    size, count, taps, step, pad, gap = (setting[axis] for setting in window)
    return [Span(tap, *_span(size, count, tap * gap - pad, step)) for tap in range(taps)]


def _taps(window: Window) -> Iterator[tuple[int, tuple, tuple]]:
    """For each tap: its offset, the outputs for which it is inside the input, and what it sees from them."""
    axes = [spans(window, axis) for axis in range(len(window.size))]
    for number, taps in enumerate(product(*axes)):
        yield number, (..., *(span.out for span in taps)), (..., *(span.source for span in taps))


def _span(size: int, count: int, first: int, step: int) -> tuple[slice, slice]:
    """The outputs o for which first + o * step lies in [0, size), and those positions."""
    low = max(0, -(first // step))
    high = max(low, min(count, (size - 1 - first) // step + 1))
    start = first + low * step
    return slice(low, high), slice(start, start + (high - low) * step, step)
