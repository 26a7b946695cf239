"""Pooling of planes (planes, H, W) by whole windows, each a row of memory.

This is for windows inside the input that share no element and lie far apart, such as a whole plane, where
walking tap by tap would make short runs.
"""

from __future__ import annotations

import numpy as np

from .taps import Window


def serves(window: Window) -> bool:
    """Whether the windows lie inside the input, apart and without holes."""
    return all(
        pad == 0 and gap == 1 and taps <= step and (count - 1) * step + taps <= size
        for size, count, taps, step, pad, gap in zip(*window, strict=True)
    )


def maximum(x: np.ndarray, window: Window, y: np.ndarray, offsets: np.ndarray) -> bool:
    """False if a NaN is in the way."""
    rows = _windows(x, window).reshape(*y.shape, -1)
    first = rows.argmax(axis=-1)
    offsets[...] = first
    y[...] = np.take_along_axis(rows, first[..., None], -1)[..., 0]
    return not np.isnan(y.max())


def scatter(dy: np.ndarray, offsets: np.ndarray, window: Window, dx: np.ndarray) -> None:
    dx.fill(0)
    planes, rows, columns = np.ix_(*(np.arange(count) for count in dy.shape))
    i, j = np.divmod(offsets, window.kernel_size[1], dtype=np.intp)
    dx[planes, rows * window.stride[0] + i, columns * window.stride[1] + j] = dy


def total(x: np.ndarray, window: Window, sums: np.ndarray) -> None:
    rows = _windows(x, window).reshape(*sums.shape, -1).astype(sums.dtype, copy=False)
    np.vecdot(rows, np.ones(rows.shape[-1], sums.dtype), out=sums)


def spread(share: np.ndarray, window: Window, dx: np.ndarray) -> None:
    dx.fill(0)
    np.copyto(_windows(dx, window), share[..., None, None], casting="unsafe")


def _windows(x: np.ndarray, window: Window) -> np.ndarray:
    """View (planes, P, Q, kernel height, kernel width)."""
    plane, row, column = x.strides
    shape = (len(x), *window.pooled, *window.kernel_size)
    steps = (plane, row * window.stride[0], column * window.stride[1], row, column)
    return np.lib.stride_tricks.as_strided(x, shape, steps)
