"""Pooling of planes (planes, H, W) tap by tap on strided views.

This is exact for NaN and for windows of nothing but -inf, and does not mind large strides; `windows` is
faster on everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..geometry import Pair


class Window(NamedTuple):
    """The settings of a pooling of (H, W) = size to (P, Q) = pooled."""

    size: Pair
    pooled: Pair
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


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


def gather(x: np.ndarray, offsets: np.ndarray, window: Window, y: np.ndarray) -> None:
    for tap, out, source in _taps(window):
        np.copyto(y[out], x[source], where=offsets[out] == tap)


def total(x: np.ndarray, window: Window, y: np.ndarray) -> None:
    y.fill(0)
    for _, out, source in _taps(window):
        y[out] += x[source]


def spread(dy: np.ndarray, window: Window, dx: np.ndarray) -> None:
    dx.fill(0)
    for _, out, source in _taps(window):
        dx[source] += dy[out]


def _taps(window: Window) -> Iterator[tuple[int, tuple, tuple]]:
    """For each tap: its offset, the outputs for which it is inside the input, and what it sees from them."""
    spans = [
        [_span(size, count, tap * gap - pad, step) for tap in range(taps)]
        for size, count, taps, step, pad, gap in zip(*window, strict=True)
    ]
    for i, (out_rows, rows) in enumerate(spans[0]):
        for j, (out_columns, columns) in enumerate(spans[1]):
            yield i * len(spans[1]) + j, (..., out_rows, out_columns), (..., rows, columns)


def _span(size: int, count: int, first: int, step: int) -> tuple[slice, slice]:
    """The outputs o for which first + o * step lies in [0, size), and those positions."""
    low = max(0, -(first // step))
    high = max(low, min(count, (size - 1 - first) // step + 1))
    start = first + low * step
    return slice(low, high), slice(start, start + (high - low) * step, step)
