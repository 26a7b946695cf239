"""Convolution with one input channel a group, on the long runs of `windows`, plane by plane."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..geometry import Padding, Pair, Shape
from . import parallel
from .arithmetic import compute_dtype
from .taps import Window
from .windows import Windows

_MOST_FILTERS = 4
_MOST_PHASES = 16
_COLUMN_BYTES = 2 << 20


def serves(weight_shape: Shape, groups: int, stride: Pair) -> bool:
    """Whether this is the way to compute a convolution."""
    few = weight_shape[0] <= _MOST_FILTERS * groups and stride[0] * stride[1] <= _MOST_PHASES
    return groups > 1 and weight_shape[1] == 1 and few


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: Shape,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
) -> np.ndarray:
    n, channels = x.shape[:2]
    run = _Runs(x.shape, shape, weight.shape, stride, padding, dilation, compute_dtype(x.dtype))
    y = np.empty((n * channels, run.filters, *shape[2:]), x.dtype)
    planes = x.reshape(n * channels, *x.shape[2:])
    offsets = None if bias is None else bias.astype(run.windows.dtype).reshape(channels, run.filters)

    def work(parts: Iterator[slice]) -> None:
        rows = run.rows(n * channels)
        for part in parts:
            phases = run.windows.split(planes[part], rows).reshape(*run.phases, len(planes[part]), -1)
            factors = run.of_planes(weight, part, channels)
            columns = np.empty((len(planes[part]), factors.shape[2], run.length), run.windows.dtype)
            for tap, column, row, shift in run.taps():
                columns[:, tap] = phases[column, row, :, shift : shift + run.length]
            # The run ends with the last output, short of the end of its row.
            sums = np.empty((*factors.shape[:2], shape[2] * run.windows.qp), run.windows.dtype)
            np.matmul(factors, columns, out=sums[..., : run.length])
            products = sums.reshape(*factors.shape[:2], shape[2], run.windows.qp)[..., : shape[3]]
            if offsets is None:
                np.copyto(y[part], products, casting="unsafe")
            else:
                np.add(products, _of_planes(offsets, part)[..., None, None], out=y[part], casting="unsafe")

    parallel.share(work, parallel.split(n * channels, run.planes))
    return y.reshape(shape)


def input_grad(
    dy: np.ndarray, weight: np.ndarray, input_shape: Shape, stride: Pair, padding: Padding, dilation: Pair
) -> np.ndarray:
    n, channels = input_shape[:2]
    run = _Runs(input_shape, dy.shape, weight.shape, stride, padding, dilation, compute_dtype(dy.dtype))
    dx = np.empty((n * channels, *input_shape[2:]), dy.dtype)
    grads = dy.reshape(n * channels, run.filters, *dy.shape[2:])

    def work(parts: Iterator[slice]) -> None:
        rows = run.rows(n * channels)
        for part in parts:
            count = len(dx[part])
            factors = run.of_planes(weight, part, channels)
            phases = np.zeros((*run.phases, count, run.windows.hq * run.windows.qp), run.windows.dtype)
            term = np.empty((count, run.length), run.windows.dtype)
            for number in range(run.filters):
                given = run.windows.spread(grads[part, number], run.windows.dtype)
                given = given.reshape(count, -1)[:, : run.length]
                for tap, column, row, shift in run.taps():
                    target = phases[column, row, :, shift : shift + run.length]
                    np.multiply(given, factors[:, number, tap, None], out=term)
                    np.add(target, term, out=target)
            run.windows.merge(list(phases.reshape(len(phases), -1)), dx[part], rows)

    parallel.share(work, parallel.split(n * channels, run.windows.planes))
    return dx.reshape(input_shape)


def weight_grad(
    dy: np.ndarray, x: np.ndarray, weight_shape: Shape, stride: Pair, padding: Padding, dilation: Pair
) -> np.ndarray:
    """The weight gradient in the compute type; NaN where only a product of zero with infinity would be."""
    n, channels = x.shape[:2]
    run = _Runs(x.shape, dy.shape, weight_shape, stride, padding, dilation, compute_dtype(dy.dtype))
    planes = x.reshape(n * channels, *x.shape[2:])
    grads = dy.reshape(n * channels, run.filters, *dy.shape[2:])
    # Sums of planes are added up in their order, whichever thread made them.
    sums = np.empty((n * channels, run.filters, weight_shape[2] * weight_shape[3]), run.windows.dtype)

    def work(parts: Iterator[slice]) -> None:
        rows = run.rows(n * channels)
        for part in parts:
            phases = run.windows.split(planes[part], rows).reshape(*run.phases, len(planes[part]), -1)
            for number in range(run.filters):
                given = run.windows.spread(grads[part, number], run.windows.dtype)
                given = given.reshape(len(planes[part]), -1)[:, : run.length]
                for tap, column, row, shift in run.taps():
                    np.vecdot(phases[column, row, :, shift : shift + run.length], given, out=sums[part, number, tap])

    parallel.share(work, parallel.split(n * channels, run.windows.planes))
    return sums.reshape(n, *weight_shape).sum(axis=0)


class _Runs:
    """The runs of a convolution's planes."""

    def __init__(
        self,
        x_shape: Shape,
        y_shape: Shape,
        weight_shape: Shape,
        stride: Pair,
        padding: Padding,
        dilation: Pair,
        dtype: np.dtype,
    ) -> None:
        before = (padding[0][0], padding[1][0])
        size, pooled, kernel = (shape[2:] for shape in (x_shape, y_shape, weight_shape))
        self.windows = Windows(Window(size, pooled, kernel, stride, before, dilation), dtype)
        self.filters = weight_shape[0] // x_shape[1]
        column_bytes = kernel[0] * kernel[1] * self.windows.hq * self.windows.qp * dtype.itemsize
        #: How many planes to unfold at a time.
        self.planes = max(1, min(_COLUMN_BYTES // column_bytes, self.windows.planes))
        self.phases = (stride[1], stride[0])
        # From the first output of a plane to its last.
        self.length = (pooled[0] - 1) * self.windows.qp + pooled[1]

    def rows(self, planes: int) -> np.ndarray:
        return self.windows.rows(min(planes, self.windows.planes), 0)

    def taps(self) -> Iterator[tuple[int, int, int, int]]:
        """(tap, column phase, row phase, shift) of each tap."""
        for i, row, down in self.windows.taps(0):
            for j, column, right in self.windows.taps(1):
                yield i * self.windows.kernel_size[1] + j, column, row, down * self.windows.qp + right

    def of_planes(self, weight: np.ndarray, part: slice, channels: int) -> np.ndarray:
        """The weights (planes, filters, taps) of some planes."""
        return _of_planes(weight.astype(self.windows.dtype).reshape(channels, self.filters, -1), part)


def _of_planes(values: np.ndarray, part: slice) -> np.ndarray:
    """What belongs to the channel of each plane."""
    return values[np.arange(part.start, part.stop) % len(values)]
