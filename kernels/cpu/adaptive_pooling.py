"""Adaptive pooling, whose windows differ by an element or two: one axis after the other, in pieces, on threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..geometry import pooling as geometry
from ..geometry.pooling import Sizes
from . import parallel
from .arithmetic import compute_dtype
from .max_pooling import gather

_PIECE_BYTES = 1 << 18
_MOST_WINDOWS = 64  # multiplications for an element: more would take longer than to add up


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

    def means(self) -> np.ndarray:
        """The matrix (size, windows) of which each column takes a window's mean."""
        places = np.arange(self.size)[:, None]
        inside = (places >= self.start) & (places < self.stop)
        return inside / (self.stop - self.start)


def adaptive_max_pool(x: np.ndarray, output_size: Sizes) -> tuple[np.ndarray, np.ndarray]:
    shape = geometry.adaptive_pool("adaptive_max_pool", x.shape, output_size)
    axes = _axes(x.shape, output_size)
    y, indices = np.empty(shape, x.dtype), np.empty(shape, np.int64)

    def piece(x: np.ndarray, y: np.ndarray, indices: np.ndarray) -> None:
        # With the planes last every tap is a run of memory.
        best, taps = np.ascontiguousarray(np.moveaxis(x, 0, -1)), 1
        offsets: Any = None
        # The last axis first: of equal maxima the first row, and in it the first column, is kept.
        for number in range(len(axes) - 1, -1, -1):
            best, offsets = _maxima(best, offsets, axes[number], number, taps, dtype)
            taps *= axes[number].longest
        if np.isnan(best.max()):
            _maxima_of_nan(x, axes, y, indices)
            return
        y[...] = np.moveaxis(best, -1, 0)
        np.add(places.take(np.moveaxis(offsets, -1, 0)), starts, out=indices)

    if y.size:
        longest = [axis.longest for axis in axes]
        dtype = np.min_scalar_type(prod(longest) - 1)
        places, starts = _numbers([np.arange(n) for n in longest], axes), _numbers([a.start for a in axes], axes)
        places = places.reshape(-1)
        _over_planes(piece, x, y, indices)
    return y, indices


def adaptive_max_pool_scatter(dy: np.ndarray, indices: np.ndarray, input_shape: Sizes) -> np.ndarray:
    dx = np.empty(input_shape, dy.dtype)
    plane = prod(input_shape[2:])

    def piece(dx: np.ndarray, dy: np.ndarray, indices: np.ndarray) -> None:
        flat = indices.reshape(len(dy), prod(dy.shape[1:])) + np.arange(len(dy))[:, None] * plane
        sums = np.zeros(dx.size, compute_dtype(dx.dtype))
        np.add.at(sums, flat.reshape(-1), dy.reshape(-1).astype(sums.dtype, copy=False))
        np.copyto(dx, sums.reshape(dx.shape), casting="unsafe")

    _over_planes(piece, dx, dy, indices)
    return dx


def adaptive_max_pool_gather(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return gather(x, indices)


def adaptive_avg_pool(x: np.ndarray, output_size: Sizes) -> np.ndarray:
    shape = geometry.adaptive_pool("adaptive_avg_pool", x.shape, output_size)
    axes = _axes(x.shape, output_size)
    y = np.empty(shape, x.dtype)
    if not y.size:
        return y
    matrix = _matrix(axes, compute_dtype(x.dtype))

    def piece(x: np.ndarray, y: np.ndarray) -> None:
        x = x.astype(compute_dtype(x.dtype), copy=False)
        if matrix is not None:
            means = x.reshape(len(x), -1) @ matrix
            # A product of zero and an infinity elsewhere in the plane is not this window's.
            if np.isfinite(means).all():
                np.copyto(y, means.reshape(y.shape), casting="unsafe")
                return
        for number, axis in enumerate(axes, 1):
            x = _means(x, axis, number)
        np.copyto(y, x, casting="unsafe")

    _over_planes(piece, x, y, products=_products(matrix))
    return y


def adaptive_avg_pool_input_grad(dy: np.ndarray, input_shape: Sizes) -> np.ndarray:
    dx = np.zeros(input_shape, dy.dtype)
    if not dy.size:
        return dx
    axes = _axes(input_shape, dy.shape[2:])
    matrix = _matrix(axes, compute_dtype(dy.dtype))

    def piece(dx: np.ndarray, dy: np.ndarray) -> None:
        dy = dy.astype(compute_dtype(dy.dtype), copy=False)
        if matrix is not None:
            wide = dy.reshape(len(dy), -1) @ matrix.T
            if np.isfinite(wide).all():
                np.copyto(dx, wide.reshape(dx.shape), casting="unsafe")
                return
        for number in range(len(axes), 0, -1):
            dy = _spread(dy, axes[number - 1], number)
        np.copyto(dx, dy, casting="unsafe")

    _over_planes(piece, dx, dy, products=_products(matrix))
    return dx


def _axes(x_shape: Sequence[int], output_size: Sequence[int]) -> list[_Axis]:
    axes = []
    for size, count in zip(x_shape[2:], output_size, strict=True):
        outputs = np.arange(count + 1) * size
        axes.append(_Axis(size, outputs[:-1] // max(1, count), -(-outputs[1:] // max(1, count))))
    return axes


def _over_planes(piece: Callable[..., None], *arrays: np.ndarray, products: int = 0) -> None:
    """Call `piece` with some planes of each array, on all threads; the first array tells how many are a piece.

    `products`: multiplications for a plane, of which a piece has no more than BLAS makes on one thread.
    """
    planes = arrays[0].shape[0] * arrays[0].shape[1]
    flat = [array.reshape(planes, *array.shape[2:]) for array in arrays]
    step = _PIECE_BYTES // max(1, prod(arrays[0].shape[2:]) * arrays[0].itemsize)
    if products:
        step = min(step, parallel.SMALL_PRODUCT // products)

    def work(parts: Iterator[slice]) -> None:
        for part in parts:
            piece(*(array[part] for array in flat))

    parallel.share(work, parallel.split(planes, max(1, step)))


def _matrix(axes: list[_Axis], dtype: np.dtype) -> np.ndarray | None:
    """The matrix (elements, windows) of means, where it is small enough to multiply by."""
    elements, windows = prod(axis.size for axis in axes), prod(len(axis.start) for axis in axes)
    if windows > _MOST_WINDOWS or elements * windows > parallel.SMALL_PRODUCT:
        return None
    matrix = np.ones((1, 1))
    for axis in axes:
        matrix = np.kron(matrix, axis.means())
    return matrix.astype(dtype)


def _products(matrix: np.ndarray | None) -> int:
    return 0 if matrix is None else matrix.size


def _numbers(places: list[np.ndarray], axes: list[_Axis]) -> np.ndarray:
    """The positions in a plane of all combinations of places along its axes."""
    total = np.zeros((), np.int64)
    for at, axis in zip(places, axes, strict=True):
        total = np.add.outer(total * axis.size, at)
    return total


def _maxima(
    x: np.ndarray, inner: np.ndarray | None, axis: _Axis, number: int, taps: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """The maxima along one axis with their offsets: tap * taps of the axes behind + the inner offset."""
    best = x.take(axis.start, axis=number)
    offsets = np.zeros(best.shape, dtype) if inner is None else inner.take(axis.start, axis=number)
    better = np.empty(best.shape, bool)
    marks = better.view(np.uint8)
    for tap in range(1, axis.longest):
        at = axis.tap(tap)
        value = x.take(at, axis=number)
        np.greater(value, best, out=better)
        np.maximum(value, best, out=best)
        # The offset of a later tap is always the larger one.
        if inner is None:
            found = np.multiply(marks, tap, dtype=dtype)
        else:
            found = np.add(inner.take(at, axis=number), tap * taps, dtype=dtype)
            found *= marks
        np.maximum(offsets, found, out=offsets)
    return best, offsets


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
    before: tuple[Any, ...] = (slice(None),) * number
    y = np.empty((*x.shape[:number], len(axis.start), *x.shape[number + 1 :]), x.dtype)
    for out, (start, stop) in enumerate(zip(axis.start, axis.stop, strict=True)):
        np.add.reduce(x[(*before, slice(start, stop))], axis=number, out=y[(*before, out)])
        y[(*before, out)] /= stop - start
    return y


def _spread(dy: np.ndarray, axis: _Axis, number: int) -> np.ndarray:
    """The means' gradient along one axis."""
    before: tuple[Any, ...] = (slice(None),) * number
    dx = np.zeros((*dy.shape[:number], axis.size, *dy.shape[number + 1 :]), dy.dtype)
    for out, (start, stop) in enumerate(zip(axis.start, axis.stop, strict=True)):
        dx[(*before, slice(start, stop))] += np.expand_dims(dy[(*before, out)] / (stop - start), number)
    return dx
