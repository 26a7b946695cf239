"""Convolution of volumes (N, C, D, H, W) as a sum over the taps of the depth, each a convolution of images.

Each function is given that of images, which chooses their way anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .conv_choice import Problem

OfImages = Callable[..., np.ndarray]


def forward(
    problem: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, of_images: OfImages
) -> np.ndarray:
    n, k, depth, p, q = problem.y_shape
    seen, weight = _by_depth(x, problem.computed), weight.astype(problem.computed, copy=False)
    sums = np.zeros((n, depth, k, p, q), problem.computed)
    if bias is not None:
        sums += bias[:, None, None]
    for tap, out, depths in _taps(problem):
        given, target = _flat(seen[:, depths]), sums[:, out]
        target += of_images(_of_images(problem, len(given)), given, weight[:, :, tap], None).reshape(target.shape)
    return _by_channel(sums, x.dtype)


def input_grad(problem: Problem, dy: np.ndarray, weight: np.ndarray, of_images: OfImages) -> np.ndarray:
    n, c, depth, height, width = problem.x_shape
    grads, weight = _by_depth(dy, problem.computed), weight.astype(problem.computed, copy=False)
    sums = np.zeros((n, depth, c, height, width), problem.computed)
    for tap, out, depths in _taps(problem):
        given, target = _flat(grads[:, out]), sums[:, depths]
        target += of_images(_of_images(problem, len(given)), given, weight[:, :, tap]).reshape(target.shape)
    return _by_channel(sums, dy.dtype)


def weight_grad(problem: Problem, dy: np.ndarray, x: np.ndarray, of_images: OfImages) -> np.ndarray:
    grads, seen = _by_depth(dy, problem.computed), _by_depth(x, problem.computed)
    dw = np.zeros(problem.weight_shape, dy.dtype)
    for tap, out, depths in _taps(problem):
        by, given = _flat(grads[:, out]), _flat(seen[:, depths])
        dw[:, :, tap] = of_images(_of_images(problem, len(by)), by, given)
    return dw


def _of_images(problem: Problem, count: int) -> Problem:
    """The problem of one tap of the depth, for so many images."""
    (_, c, _, *sizes), (_, k, _, *outputs) = problem.x_shape, problem.y_shape
    (_, inside, _, *taps) = problem.weight_shape
    return problem.of(
        x_shape=(count, c, *sizes),
        weight_shape=(k, inside, *taps),
        y_shape=(count, k, *outputs),
        stride=problem.stride[1:],
        padding=problem.padding[1:],
        dilation=problem.dilation[1:],
        dtype=problem.computed,
    )


def _by_depth(volumes: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Volumes (N, C, D, H, W) as images (N, D, C, H, W)."""
    return volumes.swapaxes(1, 2).astype(dtype, order="C")


def _flat(images: np.ndarray) -> np.ndarray:
    """Images (N, D, C, H, W) as (N * D, C, H, W)."""
    return images.reshape(images.shape[0] * images.shape[1], *images.shape[2:])


def _by_channel(images: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Images (N, D, C, H, W) as volumes (N, C, D, H, W)."""
    return images.swapaxes(1, 2).astype(dtype, order="C")


def _taps(problem: Problem) -> Iterator[tuple[int, slice, slice]]:
    """For each tap that sees any of the input: which outputs see it, and where."""
    depth, count, taps = problem.x_shape[2], problem.y_shape[2], problem.weight_shape[2]
    stride, (before, _), dilation = problem.stride[0], problem.padding[0], problem.dilation[0]
    for tap in range(taps):
        first = tap * dilation - before
        low = max(0, -(first // stride))
        high = min(count, (depth - 1 - first) // stride + 1)
        if low < high:
            start = first + low * stride
            yield tap, slice(low, high), slice(start, start + (high - low - 1) * stride + 1, stride)
