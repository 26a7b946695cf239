"""Batch normalisation and its gradient, in pieces of a few channels that stay in the cache.

Sums are taken of x minus a value of each channel (its first element), in float32 over short runs and in float64
from there on. Where that element lies far from the mean, so that the squares would cancel, the sums are taken once
more, of x minus the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..geometry import channel_runs
from . import parallel
from .arithmetic import compute_dtype
from .scratch import Scratch, scratch

_PIECE_BYTES = 1 << 20  # smaller ones are passed on too often
# A channel of more bytes is cut into pieces, and read twice.
_CHANNEL_BYTES = 2 << 20
# Below so many elements one piece is faster than two threads.
_SMALL = 3 << 16
# Rows of fewer bytes cost more than their bytes where only some of the channels are taken.
_LEAST_ROW = 256
# Runs of fewer elements are worked on with one number for each element of an image, not for each channel.
_LONG_RUN = 4096
# From so many elements on a dot product for each run is faster than sums over the images.
_DOT_RUN = 64
# So many float32 numbers are added before float64 takes over, and at most so many by one call of BLAS.
_MOST_ROWS = 256
_LONGEST_DOT = 8192
# The sum of squares about the origin may be so many times that about the mean.
_MOST_LOST = 16

Array = np.ndarray
Vector = np.ndarray | None
Result = TypeVar("Result")


class Piece(NamedTuple):
    """Images, channels and a part of each run."""

    images: slice
    channels: slice
    run: slice


def batch_norm(
    x: Array,
    weight: Vector = None,
    bias: Vector = None,
    eps: float = 1e-5,
    residual: Array | None = None,
    relu: bool = False,
    running_mean: Vector = None,
    running_var: Vector = None,
    momentum: float | None = 0.1,
    num_batches_tracked: Array | None = None,
) -> tuple[Array, Array, Array]:
    if num_batches_tracked is not None:
        num_batches_tracked += 1
    if not x.size:
        nothing = np.zeros(x.shape[1], compute_dtype(x.dtype))
        return np.empty(x.shape, x.dtype), nothing, nothing.copy()
    job = _Forward(x, weight, bias, eps, residual, relu)
    job.run()
    if running_mean is not None and running_var is not None:
        factor = 1 / int(num_batches_tracked) if momentum is None else momentum  # type: ignore[arg-type]
        count = x.size // x.shape[1]
        _move(running_mean, job.mean, factor)
        _move(running_var, job.var * (count / max(count - 1, 1)), factor)
    return job.y, job.mean.astype(job.dtype), job.inverse_std.astype(job.dtype)


def batch_norm_inference(
    x: Array,
    running_mean: Array,
    running_var: Array,
    weight: Vector = None,
    bias: Vector = None,
    eps: float = 1e-5,
    residual: Array | None = None,
    relu: bool = False,
) -> tuple[Array, Array, Array]:
    job = _Forward(x, weight, bias, eps, residual, relu)
    job.known(running_mean.astype(np.float64), running_var.astype(np.float64))
    job.write_all()
    return job.y, job.mean.astype(job.dtype), job.inverse_std.astype(job.dtype)


def batch_norm_grad(
    dy: Array,
    x: Array,
    weight: Vector,
    bias: Vector,
    mean: Array,
    inverse_std: Array,
    y: Array | None = None,
    residual: bool = False,
    inference: bool = False,
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    job = _Backward(dy, x, weight, mean, inverse_std, y, residual, inference, needs)
    job.run()
    if not needs[1]:
        return job.dx, None, None, job.dresidual
    given = weight if weight is not None else bias
    dtype = x.dtype if given is None else given.dtype
    return job.dx, (job.products * inverse_std).astype(dtype), job.sums.astype(dtype), job.dresidual


class _Runs:
    """Arrays of one shape (N, C, ...) as (N, C, L), and the pieces that are worked on at a time."""

    def __init__(self, x: Array, arrays: int) -> None:
        self.shape = n, c, length = channel_runs(x.shape)
        self.dtype = compute_dtype(x.dtype)
        self.count = n * length
        self.expands = length < _LONG_RUN and n > 3
        itemsize = self.dtype.itemsize
        channel = n * length * itemsize
        budget = _PIECE_BYTES * 2 // arrays
        step = max(1, budget // max(1, channel), -(-_LEAST_ROW // max(1, length * itemsize)))
        self.whole = min(step, c) * channel <= _CHANNEL_BYTES or x.size < _SMALL
        if x.size < _SMALL:
            step = c
        if self.whole:
            step = max(1, min(step, c))
            parts = -(-c // step)
            parts += parts % 2 if parts > 1 else 0  # as many for each of two threads
            step = -(-c // min(parts, c)) if parts else 1
            self.pieces = [Piece(slice(0, n), part, slice(0, length)) for part in parallel.split(c, step)]
            return
        run = min(length, max(1, budget // itemsize))
        channels = min(c, max(1, budget // (run * itemsize)))
        images = max(1, budget // (run * channels * itemsize))
        self.pieces = [
            Piece(i, j, k)
            for i in parallel.split(n, images)
            for j in parallel.split(c, channels)
            for k in parallel.split(length, run)
        ]

    def view(self, array: Array) -> Array:
        return np.ascontiguousarray(array).reshape(self.shape)

    def cut(self, array: Array, piece: Piece) -> Array:
        """The piece of an (N, C, L) array in the form in which numbers of channels are spread over it."""
        part = array[piece.images, piece.channels, piece.run]
        return part.reshape(len(part), -1) if self.expands else part

    def spread(self, vector: Array, piece: Piece) -> Array:
        """One number per channel so that it broadcasts over a piece."""
        vector = vector.astype(self.dtype, copy=False)
        return np.repeat(vector, piece.run.stop - piece.run.start) if self.expands else vector[:, None]

    def sums(self, a: Array, piece: Piece, b: Array | None = None) -> Array:
        """For each channel of a piece the sum of a, or of a times b, in float64."""
        channels = piece.channels.stop - piece.channels.start
        length = piece.run.stop - piece.run.start
        if length >= _DOT_RUN:
            a = a.reshape(len(a), channels, length)
            b = np.ones(length, self.dtype) if b is None else b.reshape(a.shape)
            parts = parallel.split(length, _LONGEST_DOT)
            if len(parts) == 1:
                return np.vecdot(a, b).sum(axis=0, dtype=np.float64)
            of_parts = [np.vecdot(a[..., part], b[..., part]).sum(axis=0, dtype=np.float64) for part in parts]
            return np.sum(of_parts, axis=0)
        a = a.reshape(len(a), channels * length)
        rows = max(1, min(_MOST_ROWS, parallel.SMALL_PRODUCT // a.shape[1]))
        total = np.zeros(a.shape[1])
        for part in parallel.split(len(a), rows):
            if b is None:
                total += np.ones(len(a[part]), self.dtype) @ a[part]
            else:
                total += np.einsum("nc,nc->c", a[part], b.reshape(a.shape)[part])
        return total if length == 1 else total.reshape(channels, length).sum(axis=1)

    def share(self, work: Callable[[Piece, Scratch], Result]) -> list[Result]:
        """What `work` returns for each piece."""
        results: list[Any] = [None] * len(self.pieces)

        def each(numbers: Iterator[int]) -> None:
            for number in numbers:
                with scratch() as memory:
                    results[number] = work(self.pieces[number], memory)

        parallel.share(each, range(len(self.pieces)))
        return results

    def add_up(self, work: Callable[[Piece, Scratch], tuple[Array, Array]]) -> tuple[Array, Array]:
        """The sums over all pieces of the two vectors that `work` returns for the channels of each."""
        totals = np.zeros((2, self.shape[1]))
        for piece, found in zip(self.pieces, self.share(work), strict=True):
            totals[:, piece.channels] += found
        return totals[0], totals[1]


class _Forward:
    """One normalisation. Per channel, x - origin is scaled and shifted."""

    def __init__(self, x: Array, weight: Vector, bias: Vector, eps: float, residual: Array | None, relu: bool) -> None:
        self.runs = runs = _Runs(x, 2 if residual is None else 3)
        self.dtype = runs.dtype
        self.x = runs.view(x)
        self.y = np.empty(x.shape, x.dtype)
        self.out = self.y.reshape(runs.shape)
        self.residual = None if residual is None else runs.view(residual)
        self.weight, self.bias, self.eps, self.relu = weight, bias, eps, relu
        channels = runs.shape[1]
        self.origin = np.empty(channels, self.dtype)
        self.mean, self.var, self.inverse_std = np.empty((3, channels))
        self.scale, self.shift = np.empty((2, channels), self.dtype)

    def run(self) -> None:
        """The result with the mean and the variance of x."""
        self.origin[:] = self.x[0, :, 0]
        if self.runs.whole:
            self.runs.share(self._whole)
            return
        everything = slice(None)
        if not self._settle(everything, *self.runs.add_up(self._measure)):
            self._settle(everything, *self.runs.add_up(self._measure), again=True)
        self.write_all()

    def write_all(self) -> None:
        """The result from numbers that are known."""
        self.runs.share(lambda piece, memory: self._write(piece, self._centre(piece, memory)))

    def known(self, mean: Array, var: Array) -> None:
        """Take the given mean and variance."""
        self.mean, self.var = mean, var
        self.origin[:] = mean
        self._scale(slice(None), mean - self.origin)

    def _whole(self, piece: Piece, memory: Scratch) -> None:
        z = self._centre(piece, memory)
        if not self._settle(piece.channels, *self._sums(piece, z)):
            z = self._centre(piece, memory)
            self._settle(piece.channels, *self._sums(piece, z), again=True)
        self._write(piece, z)

    def _centre(self, piece: Piece, memory: Scratch) -> Array:
        """x - origin, in the result where it has the compute type."""
        given = self.runs.cut(self.x, piece)
        stays = self.y.dtype == self.dtype
        z = self.runs.cut(self.out, piece) if stays else memory.empty(given.shape, self.dtype)
        origin = self.runs.spread(self.origin[piece.channels], piece)
        return np.subtract(given, origin, out=z, dtype=self.dtype, casting="unsafe")

    def _sums(self, piece: Piece, z: Array) -> tuple[Array, Array]:
        return self.runs.sums(z, piece), self.runs.sums(z, piece, z)

    def _measure(self, piece: Piece, memory: Scratch) -> tuple[Array, Array]:
        return self._sums(piece, self._centre(piece, memory))

    def _settle(self, channels: slice, total: Array, squares: Array, again: bool = False) -> bool:
        """Mean and variance from the sums of x - origin and of its squares.

        False, with the origin moved to the mean, where too many digits of the squares cancel the first time.
        """
        offset = total / self.runs.count
        rest = squares - offset * total
        if not again and (rest * _MOST_LOST < squares).any():
            self.origin[channels] += offset
            return False
        self.mean[channels] = self.origin[channels] + offset
        self.var[channels] = rest / self.runs.count
        self._scale(channels, offset)
        return True

    def _scale(self, channels: slice, offset: Array) -> None:
        scale = self.inverse_std[channels] = 1 / np.sqrt(self.var[channels] + self.eps)
        if self.weight is not None:
            scale = scale * self.weight[channels]
        self.scale[channels] = scale
        shift = offset * scale
        self.shift[channels] = -shift if self.bias is None else self.bias[channels] - shift

    def _write(self, piece: Piece, z: Array) -> None:
        """The result from x - origin."""
        runs, channels = self.runs, piece.channels
        z *= runs.spread(self.scale[channels], piece)
        z += runs.spread(self.shift[channels], piece)
        if self.residual is not None:
            np.add(z, runs.cut(self.residual, piece), out=z, dtype=self.dtype, casting="unsafe")
        if self.relu:
            np.maximum(z, np.zeros(z.shape[-1], z.dtype), out=z)  # several times faster than with one zero
        if self.y.dtype != self.dtype:
            np.copyto(runs.cut(self.out, piece), z, casting="unsafe")


class _Backward:
    """The gradients of one normalisation; `sums` and `products` are those of g and g (x - mean) per channel."""

    def __init__(
        self,
        dy: Array,
        x: Array,
        weight: Vector,
        mean: Array,
        inverse_std: Array,
        y: Array | None,
        residual: bool,
        inference: bool,
        needs: tuple[bool, bool],
    ) -> None:
        self.runs = runs = _Runs(x, 3 if y is None else 4)
        self.dtype = runs.dtype
        self.dy, self.x = runs.view(dy), runs.view(x)
        self.y = None if y is None else runs.view(y)
        self.mean, self.inverse_std = mean.astype(np.float64), inverse_std.astype(np.float64)
        self.scale = self.inverse_std if weight is None else self.inverse_std * weight
        self.dx = np.empty(x.shape, x.dtype) if needs[0] else None
        self.dresidual = np.empty(x.shape, x.dtype) if residual and y is not None else None
        self.inference, self.wants_sums = inference, needs[1] or not inference
        self.sums, self.products = np.zeros((2, x.shape[1]))

    def run(self) -> None:
        if not self.runs.count:
            return
        if self.runs.whole:
            self.runs.share(self._whole)
            return
        if self.wants_sums:
            self.sums, self.products = self.runs.add_up(self._measure)
        if self.dx is not None or self.dresidual is not None:
            self.runs.share(lambda piece, memory: self._write(piece, self._gradient(piece, memory), None, memory))

    def _whole(self, piece: Piece, memory: Scratch) -> None:
        g = self._gradient(piece, memory)
        d = None
        if self.wants_sums:
            d = self._centre(piece, memory)
            self.sums[piece.channels] = self.runs.sums(g, piece)
            self.products[piece.channels] = self.runs.sums(g, piece, d)
        self._write(piece, g, d, memory)

    def _measure(self, piece: Piece, memory: Scratch) -> tuple[Array, Array]:
        g, d = self._gradient(piece, memory), self._centre(piece, memory)
        return self.runs.sums(g, piece), self.runs.sums(g, piece, d)

    def _gradient(self, piece: Piece, memory: Scratch) -> Array:
        """dy in the compute type, zero where ReLU stopped it."""
        runs = self.runs
        given = runs.cut(self.dy, piece)
        if self.y is not None:
            keeps = self.dresidual is not None
            gated = runs.cut(self._of(self.dresidual), piece) if keeps else memory.empty(given.shape, given.dtype)
            _gate(given, runs.cut(self.y, piece), gated, memory)
            given = gated
        if given.dtype == self.dtype:
            return given
        g = memory.empty(given.shape, self.dtype)
        np.copyto(g, given, casting="unsafe")
        return g

    def _centre(self, piece: Piece, memory: Scratch) -> Array:
        """x - mean, in the place of its gradient where that has the compute type."""
        given = self.runs.cut(self.x, piece)
        d = self._result(piece, given.shape, memory)
        mean = self.runs.spread(self.mean[piece.channels], piece)
        return np.subtract(given, mean, out=d, dtype=self.dtype, casting="unsafe")

    def _result(self, piece: Piece, shape: tuple[int, ...], memory: Scratch) -> Array:
        if self.dx is not None and self.dx.dtype == self.dtype:
            return self.runs.cut(self._of(self.dx), piece)
        return memory.empty(shape, self.dtype)

    def _write(self, piece: Piece, g: Array, d: Array | None, memory: Scratch) -> None:
        """dx from the gradient and x - mean."""
        if self.dx is None:
            return
        runs, channels = self.runs, piece.channels
        scale = self.scale[channels]
        if self.inference:
            d = self._result(piece, g.shape, memory) if d is None else d
            np.multiply(g, runs.spread(scale, piece), out=d)
        else:
            d = self._centre(piece, memory) if d is None else d
            d *= runs.spread(self.products[channels] * self.inverse_std[channels] ** 2 / -runs.count, piece)
            d += g
            d -= runs.spread(self.sums[channels] / runs.count, piece)
            d *= runs.spread(scale, piece)
        if self.dx.dtype != self.dtype:
            np.copyto(runs.cut(self._of(self.dx), piece), d, casting="unsafe")

    def _of(self, array: Array | None) -> Array:
        assert array is not None
        return array.reshape(self.runs.shape)


def _gate(dy: Array, y: Array, out: Array, memory: Scratch) -> None:
    """dy where y is above zero or NaN, zero elsewhere: what `where` does, in three fast loops."""
    if y.dtype.kind == "V":  # bfloat16 has no fast comparison
        y = y.astype(np.float32)
    stops = np.less_equal(y, y.dtype.type(0), out=memory.empty(y.shape, np.dtype(bool)))
    keeps = np.subtract(stops.view(np.int8), np.int8(1), out=stops.view(np.int8))  # all bits, or none
    bits = np.dtype(f"i{dy.itemsize}")
    np.bitwise_and(dy.view(bits), keeps, out=out.view(bits))


def _move(running: Array, new: Array, factor: float) -> None:
    running[...] = running * (1 - factor) + (new * factor).astype(compute_dtype(running.dtype))
