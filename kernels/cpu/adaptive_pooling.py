"""Adaptive pooling, whose windows differ by an element or two: one axis after the other, in pieces, on threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from ..geometry import pooling as geometry
from ..geometry.pooling import Sizes
from . import parallel
from .arithmetic import compute_dtype
from .max_pooling import gather

_PIECE_BYTES = 1 << 20


class _Axis(NamedTuple):
    """The windows [start, stop) of an axis."""

    size: int
    start: np.ndarray
    stop: np.ndarray

    @property
    def longest(self) -> int:
        return int((self.stop - self.start).max())

    def tap(self, number: int) -> np.ndarray:
        """For each window the position of one of its elements; the last one again where there are fewer."""
        return np.minimum(self.start + number, self.stop - 1)

    def means(self, dtype: np.dtype) -> np.ndarray:
        """The matrix (size, windows) of which each column takes a window's mean."""
        places = np.arange(self.size)[:, None]
        inside = (places >= self.start) & (places < self.stop)
        return (inside / (self.stop - self.start)).astype(dtype)


def adaptive_max_pool(x: np.ndarray, output_size: Sizes) -> tuple[np.ndarray, np.ndarray]:
    shape = geometry.adaptive_pool("adaptive_max_pool", x.shape, output_size)
    axes = _axes(x.shape, output_size)
    y, indices = np.empty(shape, x.dtype), np.empty(shape, np.int64)

    def piece(x: np.ndarray, y: np.ndarray, indices: np.ndarray) -> None:
        best, places = x, None
        # The last axis first: of equal maxima the first row, and in it the first column, is kept.
        for axis in range(len(axes), 0, -1):
            best, places = _maxima(best, places, axes, axis)
        if np.isnan(best.max()):
            _maxima_of_nan(x, axes, y, indices)
        else:
            y[...], indices[...] = best, places

    if y.size:
        _over_planes(piece, x, y, indices)
    return y, indices


def adaptive_max_pool_scatter(dy: np.ndarray, indices: np.ndarray, input_shape: Sizes) -> np.ndarray:
    dx = np.empty(input_shape, dy.dtype)
    plane = prod(input_shape[2:])

    def piece(dy: np.ndarray, indices: np.ndarray, dx: np.ndarray) -> None:
        flat = (indices.reshape(len(dy), prod(dy.shape[1:])) + np.arange(len(dy))[:, None] * plane).reshape(-1)
        sums = np.bincount(flat, dy.reshape(-1).astype(np.float64, copy=False), dx.size)
        np.copyto(dx, sums.reshape(dx.shape), casting="unsafe")

    _over_planes(piece, dx, dy, indices, order=(1, 2, 0))
    return dx


def adaptive_max_pool_gather(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return gather(x, indices)


def adaptive_avg_pool(x: np.ndarray, output_size: Sizes) -> np.ndarray:
    shape = geometry.adaptive_pool("adaptive_avg_pool", x.shape, output_size)
    axes = _axes(x.shape, output_size)
    y = np.empty(shape, x.dtype)
    matrix = axes[-1].means(compute_dtype(x.dtype))

    def piece(x: np.ndarray, y: np.ndarray) -> None:
        x = x.astype(matrix.dtype, copy=False)
        for axis in range(1, len(axes)):
            x = _means(x, axes[axis - 1], axis)
        means = x @ matrix
        # A product of zero and an infinity elsewhere in the row is not this window's.
        np.copyto(y, means if np.isfinite(means).all() else _means(x, axes[-1], len(axes)), casting="unsafe")

    if y.size:
        _over_planes(piece, x, y)
    return y


def adaptive_avg_pool_input_grad(dy: np.ndarray, input_shape: Sizes) -> np.ndarray:
    axes = _axes(input_shape, dy.shape[2:])
    dx = np.zeros(input_shape, dy.dtype)
    matrix = axes[-1].means(compute_dtype(dy.dtype)).T

    def piece(dx: np.ndarray, dy: np.ndarray) -> None:
        dy = dy.astype(matrix.dtype, copy=False)
        wide = dy @ matrix
        if not np.isfinite(wide).all():
            wide = _spread(dy, axes[-1], len(axes))
        for axis in range(len(axes) - 1, 0, -1):
            wide = _spread(wide, axes[axis - 1], axis)
        np.copyto(dx, wide, casting="unsafe")

    if dy.size:
        _over_planes(piece, dx, dy)
    return dx


def _axes(x_shape: Sequence[int], output_size: Sequence[int]) -> list[_Axis]:
    axes = []
    for size, count in zip(x_shape[2:], output_size, strict=True):
        outputs = np.arange(count + 1) * size
        axes.append(_Axis(size, outputs[:-1] // max(1, count), -(-outputs[1:] // max(1, count))))
    return axes


def _over_planes(piece: object, *arrays: np.ndarray, order: Sequence[int] | None = None) -> None:
    """Call `piece` with some planes of each array, on all threads; the first array tells how many are a piece."""
    planes = arrays[0].shape[0] * arrays[0].shape[1]
    flat = [array.reshape(planes, *array.shape[2:]) for array in arrays]
    bytes_of_plane = max(1, prod(arrays[0].shape[2:]) * arrays[0].itemsize)
    given = [flat[i] for i in order or range(len(flat))]

    def work(parts: Iterator[slice]) -> None:
        for part in parts:
            piece(*(array[part] for array in given))  # type: ignore[operator]

    parallel.share(work, parallel.split(planes, max(1, _PIECE_BYTES // bytes_of_plane)))


def _maxima(x: np.ndarray, places: np.ndarray | None, axes: list[_Axis], number: int) -> tuple[np.ndarray, np.ndarray]:
    """The maxima along one axis, and their positions in the plane."""
    axis = axes[number - 1]
    pitch = prod(other.size for other in axes[number:])
    shape = [1] * x.ndim
    shape[number] = -1
    best = x.take(axis.start, axis=number)
    found = _place(places, axis.start, number, pitch, shape, best.shape)
    for tap in range(1, axis.longest):
        at = axis.tap(tap)
        value = x.take(at, axis=number)
        better = value > best
        np.maximum(best, value, out=best)
        np.copyto(found, _place(places, at, number, pitch, shape, best.shape), where=better)
    return best, found


def _place(
    places: np.ndarray | None, at: np.ndarray, number: int, pitch: int, shape: list[int], full: Sizes
) -> np.ndarray:
    here = (at * pitch).reshape(shape)
    if places is None:
        return np.broadcast_to(here, full).copy()
    return places.take(at, axis=number) + here


def _maxima_of_nan(x: np.ndarray, axes: list[_Axis], y: np.ndarray, indices: np.ndarray) -> None:
    """The maxima window by window, of which the last NaN wins."""
    numbers = np.arange(prod(x.shape[1:])).reshape(x.shape[1:])
    for out in np.ndindex(*y.shape[1:]):
        window = tuple(slice(axis.start[o], axis.stop[o]) for axis, o in zip(axes, out, strict=True))
        values = x[(slice(None), *window)].reshape(len(x), -1)
        unknown = np.isnan(values)
        last = values.shape[1] - 1 - unknown[:, ::-1].argmax(axis=1)
        chosen = np.where(unknown.any(axis=1), last, values.argmax(axis=1))
        y[(slice(None), *out)] = values[np.arange(len(x)), chosen]
        indices[(slice(None), *out)] = numbers[window].reshape(-1)[chosen]


def _means(x: np.ndarray, axis: _Axis, number: int) -> np.ndarray:
    """The means of the windows of one axis."""
    before = (slice(None),) * number
    y = np.empty((*x.shape[:number], len(axis.start), *x.shape[number + 1 :]), x.dtype)
    for out, (start, stop) in enumerate(zip(axis.start, axis.stop, strict=True)):
        np.add.reduce(x[(*before, slice(start, stop))], axis=number, out=y[(*before, out)])
        y[(*before, out)] /= stop - start
    return y


def _spread(dy: np.ndarray, axis: _Axis, number: int) -> np.ndarray:
    """The means' gradient along one axis."""
    before = (slice(None),) * number
    dx = np.zeros((*dy.shape[:number], axis.size, *dy.shape[number + 1 :]), dy.dtype)
    for out, (start, stop) in enumerate(zip(axis.start, axis.stop, strict=True)):
        dx[(*before, slice(start, stop))] += np.expand_dims(dy[(*before, out)] / (stop - start), number)
    return dx
