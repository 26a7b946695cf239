"""Depthwise convolution of planes that keep their width, by small windows with stride 1.

What a tap sees from all outputs of a plane is one run of memory, moved along, but for what wraps around the ends of the
rows. With these runs below each other a plane is the product of its filter, a vector, with a matrix. OpenBLAS makes
small ones on the calling thread, and NumPy does many planes in a call. Weight gradients are dot products with these
runs; what the ends of the rows add to them is taken off.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

import numpy as np

from ..geometry import Sizes
from . import parallel, results
from .conv_choice import Problem
from .images import reach
from .scratch import Scratch, scratch

# Of planes with their columns, and of planes alone.
_COLUMNS_BYTES = 4 << 20
_PLANES_BYTES = 1 << 20
# Up to so many elements OpenBLAS multiplies a matrix, and a vector, by a vector on the calling thread.
_SMALL_MATRIX = 9215
_SMALL_DOT = 8192
# Partial sums of a weight gradient.
_MOST_SUMS = 64

_Piece = tuple[slice, slice]  # images, channels


def forward(problem: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """The convolution of arrays that have the type of the sums."""
    filters = weight.reshape(len(weight), -1)
    if bias is not None:
        filters = np.concatenate([filters, bias[:, None]], axis=1)
    return _correlate(problem, x, filters)


def input_grad(problem: Problem, dy: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """The input gradient; None if not all weights are finite."""
    # It sees zeros around dy, and 0 * inf is not 0.
    if not np.isfinite(weight).all():
        return None
    dy, around = reach(problem, dy)
    turned = problem.of(x_shape=dy.shape, y_shape=problem.x_shape, padding=around)
    return _correlate(turned, dy, weight[..., ::-1, ::-1].reshape(len(weight), -1))


def weight_grad(problem: Problem, dy: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """The weight gradient; None if any of it is not finite."""
    planes = _Planes(problem)
    pieces = planes.pieces(planes.pitch, _PLANES_BYTES)
    parts = parallel.split(planes.places, _SMALL_DOT)
    # Sums of images are added up in their order, whichever thread made them.
    step = pieces[0][0].stop
    sums = np.empty((-(-planes.count // step), planes.channels, *planes.taps), dy.dtype)

    def work(pieces: Iterator[_Piece]) -> None:
        with scratch() as memory:
            padded = _Padded(planes, memory)
            for images, channels in pieces:
                seen = padded.read(x[images, channels])
                grads = dy[images, channels].reshape(*seen.shape[:2], 1, 1, planes.places)
                dots = [np.vecdot(seen[..., part], grads[..., part]) for part in parts]
                np.sum(sum(dots), axis=0, out=sums[images.start // step, channels])

    parallel.share(work, pieces)
    dw = sums.sum(axis=0)
    for tap, ahead in enumerate(planes.ahead):
        if ahead:
            dw[..., tap] -= planes.wrapped(x, dy, ahead)
    return dw.reshape(problem.weight_shape) if np.isfinite(dw).all() else None


def _correlate(problem: Problem, x: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """The planes by filters (channels, taps), or (channels, taps + 1) with what is to be added."""
    planes, rows = _Planes(problem), filters.shape[1]
    filters = np.ascontiguousarray(filters)  # BLAS takes no negative strides
    y = results.empty((planes.count, planes.channels, planes.places), x.dtype)
    # Matrices of one length, and what remains.
    length = parallel.evenly(planes.places, _SMALL_MATRIX // rows)
    whole = planes.places - planes.places % length
    parts = [(slice(0, whole), length), (slice(whole, planes.places), planes.places - whole)]
    parts = [(part, size) for part, size in parts if size]

    def work(pieces: Iterator[_Piece]) -> None:
        with scratch() as memory:
            padded = _Padded(planes, memory, rows)
            for images, channels in pieces:
                columns = padded.unfold(x[images, channels])
                vectors = filters[channels, None, None]
                for part, size in parts:
                    matrices = columns[..., part].reshape(*columns.shape[:3], -1, size).swapaxes(2, 3)
                    target = y[images, channels, part].reshape(*matrices.shape[:3], 1, size)
                    np.matmul(vectors, matrices, out=target)

    parallel.share(work, planes.pieces(planes.pitch + rows * planes.places, _COLUMNS_BYTES))
    return y.reshape(problem.y_shape)


class _Planes:
    """The shape of the planes of one convolution, and of the zeros around them."""

    def __init__(self, problem: Problem) -> None:
        self.count, self.channels, self.height, self.width = problem.x_shape
        self.taps, self.dilation, self.dtype = problem.taps, problem.dilation, problem.dtype
        (self.top, bottom), (self.left, _) = problem.padding
        self.rows = problem.y_shape[2]
        self.places = self.rows * self.width
        #: A padded plane: rows of zeros above and below, and zeros before the first and behind the last one.
        self.padded_rows = self.top + self.height + bottom
        self.pitch = self.padded_rows * self.width + (self.taps[1] - 1) * self.dilation[1]
        #: By how many places each tap of a row looks ahead.
        self.ahead = [tap * self.dilation[1] - self.left for tap in range(self.taps[1])]

    def pieces(self, size: int, nbytes: int) -> list[_Piece]:
        """The planes in pieces of about so many bytes, with `size` elements for each."""
        most = nbytes // (size * self.dtype.itemsize)
        images = parallel.evenly(self.count, max(most // self.channels, -(-self.count // _MOST_SUMS)))
        channels = parallel.evenly(self.channels, most // images)
        return list(product(parallel.split(self.count, images), parallel.split(self.channels, channels)))

    def wrapped(self, x: np.ndarray, dy: np.ndarray, ahead: int) -> np.ndarray:
        """What dot products (channels, taps of a column) hold of x beyond the ends of the rows."""
        most = _PLANES_BYTES // (self.count * (self.padded_rows + 2) * abs(ahead) * self.dtype.itemsize)
        some = parallel.split(self.channels, max(1, most))
        return np.concatenate([self._wrapped(x[:, channels], dy[:, channels], ahead) for channels in some])

    def _wrapped(self, x: np.ndarray, dy: np.ndarray, ahead: int) -> np.ndarray:
        shape = (x.shape[1], self.count, self.padded_rows + 2, abs(ahead))
        seen, grads = np.zeros(shape, self.dtype), np.zeros(shape, self.dtype)
        seen[:, :, self.top + 1 : self.top + 1 + self.height] = x[..., _end(ahead)].swapaxes(0, 1)
        grads[:, :, : self.rows] = dy[..., _end(-ahead)].swapaxes(0, 1)
        # There lies the next row's begin, or the end of the one before.
        first, step = (2 if ahead > 0 else 0) * abs(ahead), self.dilation[0] * abs(ahead)
        steps = (seen.strides[0], step * seen.itemsize, seen.itemsize)
        last = grads[0].size - (shape[2] - self.rows) * abs(ahead)
        view = np.ndarray((len(seen), self.taps[0], last), seen.dtype, seen, first * seen.itemsize, steps)
        return np.einsum("zry,zy->zr", view, grads.reshape(len(grads), -1)[:, :last])


class _Padded:
    """Memory for the planes of a piece, and for `rows` of columns: one for each tap, and ones below."""

    def __init__(self, planes: _Planes, memory: Scratch, rows: int = 0) -> None:
        self.planes, self.memory, self.rows = planes, memory, rows
        self.shape: Sizes = ()

    def read(self, x: np.ndarray) -> np.ndarray:
        """View (images, channels, *taps, places) of planes: what the taps see, and what wraps around."""
        if x.shape != self.shape:  # the last piece may be smaller
            self._prepare(x.shape)
        np.copyto(self.inside, x)
        return self.seen

    def unfold(self, x: np.ndarray) -> np.ndarray:
        """The columns (images, channels, rows, places) of planes, with zeros where a tap sees nothing."""
        seen = self.read(x)
        np.copyto(self.columns[:, :, : prod(self.planes.taps)].reshape(seen.shape), seen)
        for end in self.ends:
            end.fill(0)
        return self.columns

    def _prepare(self, shape: Sizes) -> None:
        planes, self.shape = self.planes, shape
        self.memory.clear()
        padded = self.memory.empty((*shape[:2], planes.pitch), planes.dtype)
        padded.fill(0)
        start = planes.top * planes.width + planes.left
        self.inside = padded[..., start : start + planes.height * planes.width].reshape(shape)
        apart = (planes.dilation[0] * planes.width * padded.itemsize, planes.dilation[1] * padded.itemsize)
        steps = (*padded.strides[:2], *apart, padded.itemsize)
        self.seen = np.ndarray((*shape[:2], *planes.taps, planes.places), planes.dtype, padded, 0, steps)
        self.columns = self.memory.empty((*shape[:2], self.rows, planes.places), planes.dtype)
        self.columns[:, :, prod(planes.taps) :] = 1
        if self.rows:
            lines = self.columns[:, :, : prod(planes.taps)].reshape(*shape[:2], *planes.taps, planes.rows, planes.width)
            self.ends = [lines[:, :, :, tap, :, _end(-ahead)] for tap, ahead in enumerate(planes.ahead) if ahead]


def _end(count: int) -> slice:
    """The first so many places of a row, or the last ones for a negative number."""
    return slice(0, count) if count > 0 else slice(count, None)
