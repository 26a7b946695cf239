"""Pooling by loops over the taps of the window, on strided views."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .. import geometry
from ..geometry import Pair, Shape
from .arithmetic import compute_dtype


def max_pool2d(
    x: np.ndarray,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    shape = geometry.max_pool2d(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    y = np.full(shape, -np.inf, x.dtype)
    offsets = np.empty(shape, _offset_dtype(kernel_size))
    unseen = np.ones(shape, bool)
    for tap, out, source in _taps(x.shape, shape, kernel_size, stride, padding, dilation):
        value = x[source]
        best = y[out]
        better = (value > best) | np.isnan(value) | unseen[out]
        np.copyto(best, value, where=better)
        offsets[out][better] = tap
        unseen[out] = False
    return y, offsets


def max_pool2d_scatter(
    dy: np.ndarray,
    offsets: np.ndarray,
    input_shape: Shape,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> np.ndarray:
    dx = np.zeros(input_shape, compute_dtype(dy.dtype))
    for tap, out, source in _taps(input_shape, dy.shape, kernel_size, stride, padding, dilation):
        dx[source] += np.where(offsets[out] == tap, dy[out], 0)
    return dx.astype(dy.dtype, copy=False)


def max_pool2d_gather(
    x: np.ndarray, offsets: np.ndarray, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> np.ndarray:
    y = np.zeros(offsets.shape, x.dtype)
    for tap, out, source in _taps(x.shape, offsets.shape, kernel_size, stride, padding, dilation):
        np.copyto(y[out], x[source], where=offsets[out] == tap)
    return y


def max_pool2d_indices(
    offsets: np.ndarray, input_shape: Shape, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> np.ndarray:
    i, j = np.divmod(offsets.astype(np.int64), kernel_size[1])
    rows = np.arange(offsets.shape[2])[:, None] * stride[0] - padding[0] + i * dilation[0]
    columns = np.arange(offsets.shape[3]) * stride[1] - padding[1] + j * dilation[1]
    return rows * input_shape[3] + columns


def avg_pool2d(
    x: np.ndarray,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    shape = geometry.avg_pool2d(x.shape, kernel_size, stride, padding, ceil_mode, divisor_override)
    y = np.zeros(shape, compute_dtype(x.dtype))
    for _, out, source in _taps(x.shape, shape, kernel_size, stride, padding, (1, 1)):
        y[out] += x[source]
    y /= _divisors(x.shape, shape, kernel_size, stride, padding, count_include_pad, divisor_override).astype(y.dtype)
    return y.astype(x.dtype, copy=False)


def avg_pool2d_input_grad(
    dy: np.ndarray,
    input_shape: Shape,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> np.ndarray:
    dtype = compute_dtype(dy.dtype)
    divisors = _divisors(input_shape, dy.shape, kernel_size, stride, padding, count_include_pad, divisor_override)
    share = dy.astype(dtype, copy=False) / divisors.astype(dtype)
    dx = np.zeros(input_shape, dtype)
    for _, out, source in _taps(input_shape, dy.shape, kernel_size, stride, padding, (1, 1)):
        dx[source] += share[out]
    return dx.astype(dy.dtype, copy=False)


def _offset_dtype(kernel_size: Pair) -> np.dtype:
    window = kernel_size[0] * kernel_size[1]
    return np.dtype(np.uint8 if window <= 256 else np.int16 if window <= 32768 else np.int32)


def _span(size: int, count: int, first: int, step: int) -> tuple[slice, slice]:
    """The outputs o for which first + o * step lies in [0, size), and those positions."""
    low = max(0, -(first // step))
    high = min(count, (size - 1 - first) // step + 1)
    high = max(low, high)
    start = first + low * step
    return slice(low, high), slice(start, start + (high - low - 1) * step + 1 if high > low else start, step)


def _taps(
    x_shape: Shape, y_shape: Shape, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Iterator[tuple[int, tuple, tuple]]:
    """For each tap of the window: its offset, the outputs for which it is inside the input, and those inputs."""
    for i in range(kernel_size[0]):
        out_rows, rows = _span(x_shape[2], y_shape[2], i * dilation[0] - padding[0], stride[0])
        for j in range(kernel_size[1]):
            out_columns, columns = _span(x_shape[3], y_shape[3], j * dilation[1] - padding[1], stride[1])
            yield i * kernel_size[1] + j, (..., out_rows, out_columns), (..., rows, columns)


def _divisors(
    x_shape: Shape,
    y_shape: Shape,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    count_include_pad: bool,
    divisor_override: int | None,
) -> np.ndarray:
    """What each window (P, Q) is divided by; parts of it beyond the padding never count."""
    if divisor_override is not None:
        return np.full(y_shape[2:], divisor_override)
    counts = []
    for size, count, taps, step, pad in zip(x_shape[2:], y_shape[2:], kernel_size, stride, padding, strict=True):
        start = np.arange(count) * step - pad
        stop = np.minimum(start + taps, size + pad)
        if not count_include_pad:
            start, stop = np.maximum(start, 0), np.minimum(stop, size)
        counts.append(stop - start)
    return np.multiply.outer(*counts)
