"""Max pooling of volumes on threads.

Small windows that neither overlap nor leave gaps are taken as they lie (`side_by_side`). Of the others there are three
ways: by long runs (`windows`) for all but large strides; there by whole windows (`gathered`) if they lie apart; and
else, and where a NaN decides, by `taps`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

import numpy as np

from ..geometry import pooling as geometry
from ..geometry.pooling import Sizes
from . import gathered, parallel, results, side_by_side, taps
from .pooled_volumes import Volumes
from .taps import Window

_BITS: dict[int, type[np.integer]] = {4: np.int32, 8: np.int64}
_PIECE = 1 << 17  # elements


def max_pool(
    x: np.ndarray, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    shape = geometry.max_pool(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    y = results.empty(shape, x.dtype)
    offsets = np.empty(shape, _offset_dtype(kernel_size))
    window = Window(x.shape[2:], shape[2:], kernel_size, stride, padding, dilation)
    if side_by_side.serves(window):
        side_by_side.maximum(x, window, y, offsets)
        return y, offsets
    volumes = Volumes(x.shape, shape, kernel_size, stride, padding, dilation, x.dtype)

    def piece(rows: np.ndarray | None, x: np.ndarray, y: np.ndarray, offsets: np.ndarray) -> None:
        if rows is not None:
            runs = volumes.runs
            best, first = _maxima(volumes, runs.split(volumes.slices(x), rows), offsets.dtype)
            np.copyto(volumes.slices(y), runs.outputs(best), casting="unsafe")
            np.copyto(volumes.slices(offsets), runs.outputs(first))
            highest = y.max()
            # Runs tell neither which NaN was the last nor -inf from what is around the input.
            if not (np.isnan(highest) or (volumes.reach_out and y.min() == -np.inf)):
                return
        elif volumes.apart and gathered.maximum(x, volumes.window, y, offsets):
            return
        taps.maximum(x, volumes.window, y, offsets)

    volumes(piece, -np.inf, x, y, offsets)
    return y, offsets


def max_pool_scatter(
    dy: np.ndarray,
    offsets: np.ndarray,
    input_shape: Sizes,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> np.ndarray:
    dx = results.empty(input_shape, dy.dtype)
    window = Window(input_shape[2:], dy.shape[2:], kernel_size, stride, padding, dilation)
    if side_by_side.serves(window):
        side_by_side.scatter(dy, offsets, window, dx)
        return dx
    volumes = Volumes(input_shape, dy.shape, kernel_size, stride, padding, dilation, dy.dtype)

    def piece(rows: np.ndarray | None, dy: np.ndarray, offsets: np.ndarray, dx: np.ndarray) -> None:
        if rows is not None:
            volumes.runs.merge(_scattered(volumes, dy, offsets), volumes.slices(dx), rows)
        elif volumes.apart:
            gathered.scatter(dy, offsets, volumes.window, dx)
        else:
            volumes.in_compute_dtype(dx, lambda dx: taps.scatter(dy, offsets, volumes.window, dx))

    volumes(piece, 0, dy, offsets, dx)
    return dx


def max_pool_gather(
    x: np.ndarray, offsets: np.ndarray, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> np.ndarray:
    places = _Places(x.shape, offsets.shape, kernel_size, stride, padding, dilation)
    return _over_planes(x, offsets, lambda offsets: places.of(offsets))


def max_pool_indices(
    offsets: np.ndarray, input_shape: Sizes, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> np.ndarray:
    places = _Places(input_shape, offsets.shape, kernel_size, stride, padding, dilation)
    planes = offsets.shape[0] * offsets.shape[1]
    flat = offsets.reshape(planes, prod(offsets.shape[2:]))
    indices = np.empty(flat.shape, np.int64)

    def work(parts: Iterator[slice]) -> None:
        for part in parts:
            places.of(flat[part], out=indices[part])

    parallel.share(work, parallel.split(planes, max(1, _PIECE // max(1, flat.shape[1]))))
    return indices.reshape(offsets.shape)


def gather(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The element of each plane (N, C) of x at each position of the plane's indices."""
    return _over_planes(x, indices, lambda indices: indices)


def _over_planes(x: np.ndarray, offsets: np.ndarray, positions: object) -> np.ndarray:
    planes = x.shape[0] * x.shape[1]
    elements = x.reshape(planes, prod(x.shape[2:]))
    flat = offsets.reshape(planes, prod(offsets.shape[2:]))
    y = np.empty(flat.shape, x.dtype)

    def work(parts: Iterator[slice]) -> None:
        for part in parts:
            y[part] = np.take_along_axis(elements[part], positions(flat[part]), 1)  # type: ignore[operator]

    parallel.share(work, parallel.split(planes, max(1, _PIECE // max(1, flat.shape[1]))))
    return y.reshape(offsets.shape)


class _Places:
    """Where in its plane an offset points to."""

    def __init__(
        self, x_shape: Sizes, y_shape: Sizes, kernel_size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
    ) -> None:
        size, pooled = x_shape[2:], y_shape[2:]
        # The elements between neighbours of each axis.
        pitches = [prod(size[axis + 1 :]) for axis in range(len(size))]
        steps = zip(kernel_size, dilation, pitches, strict=True)
        self.taps = _sums(np.arange(taps) * gap * n for taps, gap, n in steps)
        starts = zip(pooled, stride, padding, pitches, strict=True)
        self.starts = _sums((np.arange(count) * step - pad) * n for count, step, pad, n in starts)

    def of(self, offsets: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        indices = self.taps.take(offsets, out=out)
        indices += self.starts
        return indices


def _sums(terms: object) -> np.ndarray:
    """All sums of one term of each, the last fastest."""
    total = np.zeros(1, np.int64)
    for term in terms:  # type: ignore[attr-defined]
        total = np.add.outer(total, term).reshape(-1)
    return total


def _maxima(volumes: Volumes, phases: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The maximum of each window and its offset, at the pitch of a phase."""
    runs = volumes.runs
    best, offsets = _along(volumes, phases, 1, None, 1, dtype)
    best, offsets = _along(
        volumes, best.reshape(runs.stride[0], -1), 0, offsets.reshape(runs.stride[0], -1), runs.qp, dtype
    )
    return _down(volumes, best, offsets) if volumes.deep else (best, offsets)


def _along(
    volumes: Volumes, phases: np.ndarray, axis: int, inner: np.ndarray | None, pitch: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Maxima along one axis with their offsets: the tap, or tap * kernel width + the inner offset."""
    runs = volumes.runs
    flat = phases.reshape(runs.stride[axis], -1)
    best = flat[0].copy()
    offsets = np.zeros(best.shape, dtype) if inner is None else inner[0].copy()
    better = np.empty(best.shape, bool)
    marks = better.view(np.uint8)
    for tap, phase, shift in runs.taps(axis):
        if tap == 0:
            continue
        length = best.size - shift * pitch
        value, top = flat[phase, shift * pitch :], best[:length]
        np.greater(value, top, out=better[:length])
        np.maximum(value, top, out=top)
        # The offset of a later tap is always the larger one.
        if inner is None:
            found = np.multiply(marks[:length], tap, dtype=dtype)
        else:
            found = np.add(inner[phase, shift * pitch :], tap * runs.kernel_size[1], dtype=dtype)
            found *= marks[:length]
        np.maximum(offsets[:length], found, out=offsets[:length])
    return best, offsets


def _down(volumes: Volumes, best: np.ndarray, inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The maxima of slices taken together along the depth."""
    depth, out_depth = volumes.window.size[0], volumes.window.pooled[0]
    slices, inner = volumes.stack(best, depth), volumes.stack(inner, depth)
    y = np.full((len(slices), out_depth, slices.shape[2]), -np.inf, best.dtype)
    offsets = np.zeros(y.shape, inner.dtype)
    taps_of_slice = prod(volumes.runs.kernel_size)
    for tap, out, source in volumes.spans:
        value, top = slices[:, source], y[:, out]
        better = value > top
        np.maximum(value, top, out=top)
        found = np.add(inner[:, source], tap * taps_of_slice, dtype=inner.dtype)
        found *= better.view(np.uint8)
        np.maximum(offsets[:, out], found, out=offsets[:, out])
    return y, offsets


def _scattered(volumes: Volumes, dy: np.ndarray, offsets: np.ndarray) -> list[np.ndarray | None]:
    """Column phases of the sum of dy where its offset points."""
    runs = volumes.runs
    depth, out_depth = volumes.window.size[0], volumes.window.pooled[0]
    values = volumes.stack(runs.spread(volumes.slices(dy), runs.dtype), out_depth)
    bits = values.view(_BITS[runs.dtype.itemsize])
    where = volumes.stack(runs.spread(volumes.slices(offsets), offsets.dtype), out_depth)
    hit = np.empty(where.shape, bool)
    part = np.empty(bits.shape, bits.dtype)
    slices = depth if volumes.deep else 1
    phases: list[np.ndarray | None] = [None] * runs.stride[1]
    axes = product(volumes.places(), runs.taps(0), runs.taps(1))
    for number, (span, (_, row, down), (_, column, right)) in enumerate(axes):
        sums = phases[column]
        if sums is None:
            sums = phases[column] = np.zeros((runs.stride[0], len(values), slices, values.shape[2]), runs.dtype)
        found, term = hit[:, span.out], part[:, span.out]
        np.equal(where[:, span.out], number, out=found)
        # Bits times 0 or 1: what is not hit is 0, were it NaN.
        np.multiply(bits[:, span.out], found, out=term)
        shift = down * runs.qp + right
        target = sums[row][:, span.source, shift:]
        np.add(target, term.view(runs.dtype)[..., : target.shape[2]], out=target)
    return phases


def _offset_dtype(kernel_size: Sizes) -> np.dtype:
    window = prod(kernel_size)
    return np.dtype(np.uint8 if window <= 256 else np.int16 if window <= 32768 else np.int32)
