"""Pooling of planes (planes, *spatial) by whole windows, each a row of memory.

This is for windows inside the input that share no element and lie far apart, such as a whole plane, where
walking tap by tap would make short runs.
"""

from __future__ import annotations

import numpy as np

from .rows import sums as row_sums
from .taps import Window


def serves(window: Window) -> bool:
    """Whether the windows lie inside the input, apart and without holes."""
    return all(
        pad == 0 and gap == 1 and taps <= step and (count - 1) * step + taps <= size
        for size, count, taps, step, pad, gap in zip(*window, strict=True)
    )


def maximum(x: np.ndarray, window: Window, y: np.ndarray, offsets: np.ndarray) -> bool:
    """False if a NaN is in the way."""
    rows = _windows(x, window).reshape(y.size, -1)
    first = rows.argmax(axis=-1)
    offsets[...] = first.reshape(offsets.shape)
    y[...] = rows[np.arange(len(rows)), first].reshape(y.shape)
    return not np.isnan(y.max())


def scatter(dy: np.ndarray, offsets: np.ndarray, window: Window, dx: np.ndarray) -> None:
    dx.fill(0)
    planes, *outputs = np.ix_(*(np.arange(count) for count in dy.shape))
    taps = np.unravel_index(offsets, window.kernel_size)
    places = [out * step + tap for out, step, tap in zip(outputs, window.stride, taps, strict=True)]
    dx[planes, *places] = dy


def total(x: np.ndarray, window: Window, sums: np.ndarray) -> None:
    rows = _windows(x, window).reshape(sums.size, -1).astype(sums.dtype, copy=False)
    sums.reshape(-1)[...] = row_sums(rows)


def spread(share: np.ndarray, window: Window, dx: np.ndarray) -> None:
    windows = _windows(dx, window)
    if windows.size < dx.size:
        dx.fill(0)
    np.copyto(windows, share[(..., *[None] * len(window.size))], casting="unsafe")


def _windows(x: np.ndarray, window: Window) -> np.ndarray:
    """View (planes, *pooled, *kernel size)."""
    plane, *steps = x.strides
    apart = [step * stride for step, stride in zip(steps, window.stride, strict=True)]
    shape = (len(x), *window.pooled, *window.kernel_size)
    return np.lib.stride_tricks.as_strided(x, shape, (plane, *apart, *steps))
