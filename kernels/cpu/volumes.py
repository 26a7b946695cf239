"""Convolution of volumes (N, C, D, H, W) as a sum over the taps of the depth, each a convolution of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..geometry import Pads, Sizes
from . import images
from .arithmetic import compute_dtype


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: Sizes,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    n, k, _, p, q = shape
    settings = _of_images(stride, padding, dilation, groups)
    seen, weight = _by_depth(x), weight.astype(compute_dtype(x.dtype), copy=False)
    sums = np.zeros((n, shape[2], k, p, q), weight.dtype)
    if bias is not None:
        sums += bias[:, None, None]
    for tap, out, depths in _taps(x.shape[2], shape[2], weight.shape[2], stride[0], padding[0][0], dilation[0]):
        given, target = seen[:, depths], sums[:, out]
        flat = _flat(given)
        y = images.forward(flat, weight[:, :, tap], None, (len(flat), k, p, q), *settings)
        target += y.reshape(target.shape)
    return _by_channel(sums, x.dtype)


def input_grad(
    dy: np.ndarray,
    weight: np.ndarray,
    input_shape: Sizes,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    n, c, depth, height, width = input_shape
    settings = _of_images(stride, padding, dilation, groups)
    grads, weight = _by_depth(dy), weight.astype(compute_dtype(dy.dtype), copy=False)
    sums = np.zeros((n, depth, c, height, width), weight.dtype)
    for tap, out, depths in _taps(depth, dy.shape[2], weight.shape[2], stride[0], padding[0][0], dilation[0]):
        given, target = grads[:, out], sums[:, depths]
        flat = _flat(given)
        dx = images.input_grad(flat, weight[:, :, tap], (len(flat), c, height, width), *settings)
        target += dx.reshape(target.shape)
    return _by_channel(sums, dy.dtype)


def weight_grad(
    dy: np.ndarray,
    x: np.ndarray,
    weight_shape: Sizes,
    stride: Sizes,
    padding: Pads,
    dilation: Sizes,
    groups: int,
) -> np.ndarray:
    grads, seen = _by_depth(dy), _by_depth(x)
    dw = np.zeros(weight_shape, dy.dtype)
    k, c, _, r, s = weight_shape
    settings = _of_images(stride, padding, dilation, groups)
    for tap, out, depths in _taps(x.shape[2], dy.shape[2], weight_shape[2], stride[0], padding[0][0], dilation[0]):
        by, given = grads[:, out], seen[:, depths]
        dw[:, :, tap] = images.weight_grad(_flat(by), _flat(given), (k, c, r, s), *settings)
    return dw


def _of_images(stride: Sizes, padding: Pads, dilation: Sizes, groups: int) -> tuple[Any, ...]:
    return stride[1:], padding[1:], dilation[1:], groups


def _by_depth(volumes: np.ndarray) -> np.ndarray:
    """Volumes (N, C, D, H, W) as images (N, D, C, H, W) of the type that is computed in."""
    return np.ascontiguousarray(volumes.swapaxes(1, 2), compute_dtype(volumes.dtype))


def _flat(images: np.ndarray) -> np.ndarray:
    """Images (N, D, C, H, W) as (N * D, C, H, W)."""
    return images.reshape(images.shape[0] * images.shape[1], *images.shape[2:])


def _by_channel(images: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Images (N, D, C, H, W) as volumes (N, C, D, H, W)."""
    return np.ascontiguousarray(images.swapaxes(1, 2), dtype)


def _taps(
    depth: int, count: int, taps: int, stride: int, before: int, dilation: int
) -> Iterator[tuple[int, slice, slice]]:
    """For each tap that sees any of the input: which outputs see it, and where."""
    for tap in range(taps):
        first = tap * dilation - before
        low = max(0, -(first // stride))
        high = min(count, (depth - 1 - first) // stride + 1)
        if low < high:
            start = first + low * stride
            yield tap, slice(low, high), slice(start, start + (high - low - 1) * stride + 1, stride)
