"""Convolution as matrix products over unfolded pieces of the batch.

A piece of the batch is unfolded to columns (N, G, C / G * R * S, P * Q) small enough to stay in the cache, and one
matrix product per image and group does the rest.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..geometry import Padding, Pair, Shape
from .arithmetic import compute_dtype

_PIECE_BYTES = 4 << 20


def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    k, c, r, s = weight.shape
    p, q = _output_size(x.shape, weight.shape, stride, padding, dilation)
    dtype = compute_dtype(x.dtype)
    y = np.empty((x.shape[0], groups, k // groups, p * q), dtype)
    filters = weight.astype(dtype, copy=False).reshape(groups, k // groups, c * r * s)
    for start, stop in _pieces(x.shape[0], groups * c * r * s * p * q * dtype.itemsize):
        columns = _unfold(x[start:stop], (p, q), (r, s), stride, padding, dilation, groups, dtype)
        np.matmul(filters, columns, out=y[start:stop])
    if bias is not None:
        y += bias.astype(dtype, copy=False).reshape(groups, k // groups, 1)
    return y.reshape(x.shape[0], k, p, q).astype(x.dtype, copy=False)


def conv2d_input_grad(
    dy: np.ndarray,
    weight: np.ndarray,
    input_shape: Shape,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    n, k, p, q = dy.shape
    _, c, r, s = weight.shape
    h, w = input_shape[2:]
    (top, bottom), (left, right) = padding
    dtype = compute_dtype(dy.dtype)
    padded = np.zeros((n, groups * c, h + top + bottom, w + left + right), dtype)
    filters = weight.astype(dtype, copy=False).reshape(groups, k // groups, c * r * s).transpose(0, 2, 1)
    flat = dy.astype(dtype, copy=False).reshape(n, groups, k // groups, p * q)
    for start, stop in _pieces(n, groups * c * r * s * p * q * dtype.itemsize):
        columns = np.matmul(filters, flat[start:stop]).reshape(stop - start, groups * c, r, s, p, q)
        for i in range(r):
            rows = slice(i * dilation[0], i * dilation[0] + (p - 1) * stride[0] + 1, stride[0])
            for j in range(s):
                cols = slice(j * dilation[1], j * dilation[1] + (q - 1) * stride[1] + 1, stride[1])
                padded[start:stop, :, rows, cols] += columns[:, :, i, j]
    return np.ascontiguousarray(padded[:, :, top : top + h, left : left + w], dtype=dy.dtype)


def conv2d_weight_grad(
    dy: np.ndarray,
    x: np.ndarray,
    weight_shape: Shape,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    n, k, p, q = dy.shape
    _, c, r, s = weight_shape
    dtype = compute_dtype(dy.dtype)
    dw = np.zeros((groups, k // groups, c * r * s), dtype)
    flat = dy.astype(dtype, copy=False).reshape(n, groups, k // groups, p * q)
    for start, stop in _pieces(n, groups * c * r * s * p * q * dtype.itemsize):
        columns = _unfold(x[start:stop], (p, q), (r, s), stride, padding, dilation, groups, dtype)
        dw += np.matmul(flat[start:stop], columns.swapaxes(2, 3)).sum(axis=0)
    return dw.reshape(weight_shape).astype(dy.dtype, copy=False)


def _output_size(x_shape: Shape, weight_shape: Shape, stride: Pair, padding: Padding, dilation: Pair) -> Pair:
    height, width = (
        (size + before + after - gap * (taps - 1) - 1) // step + 1
        for size, taps, step, (before, after), gap in zip(
            x_shape[2:], weight_shape[2:], stride, padding, dilation, strict=True
        )
    )
    return height, width


def _pieces(count: int, bytes_each: int):
    step = max(1, _PIECE_BYTES // max(1, bytes_each))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def _unfold(x, size, taps, stride, padding, dilation, groups, dtype):
    """Columns (n, groups, C / groups * R * S, P * Q) of the zero-padded x."""
    n, channels, h, w = x.shape
    (top, bottom), (left, right) = padding
    padded = np.zeros((n, channels, h + top + bottom, w + left + right), dtype)
    padded[:, :, top : top + h, left : left + w] = x
    sn, sc, sh, sw = padded.strides
    windows = as_strided(
        padded,
        (n, channels, *taps, *size),
        (sn, sc, sh * dilation[0], sw * dilation[1], sh * stride[0], sw * stride[1]),
        writeable=False,
    )
    c = channels // groups
    return windows.reshape(n, groups, c * taps[0] * taps[1], size[0] * size[1])
