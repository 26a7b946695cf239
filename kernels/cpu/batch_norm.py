"""Batch normalisation and its gradient, in pieces of a few channels that stay in the cache.

Sums are taken in float32 over short runs and in float64 from there on. Where the mean of a channel is large beside
its deviation, so that digits would cancel, they are taken of x minus that mean instead of x.
"""

from __future__ import annotations

import numpy as np

from . import results
from .arithmetic import compute_dtype
from .runs import Piece, runs_of
from .scratch import Scratch

# The sum of squares about the origin may be so many times that about the mean: what cancels is three bits.
_MOST_LOST = 8

Array = np.ndarray
Vector = np.ndarray | None


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
        _move(running_mean, job.mean, factor, 1)
        _move(running_var, job.var, factor, count / max(count - 1, 1))
    return job.y, *job.statistics


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
    job.infer(running_mean.astype(np.float64), running_var.astype(np.float64))
    return job.y, *job.statistics


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
    if x.size:
        job.run()
    if not needs[1]:
        return job.dx, None, None, job.dresidual
    given = weight if weight is not None else bias
    dtype = x.dtype if given is None else given.dtype
    return job.dx, (job.products * job.inverse_std).astype(dtype), job.sums.astype(dtype), job.dresidual


class _Forward:
    """One normalisation. Per channel, x - origin is scaled and shifted; the origin is 0 where that costs no digits."""

    def __init__(self, x: Array, weight: Vector, bias: Vector, eps: float, residual: Array | None, relu: bool) -> None:
        self.dtype = compute_dtype(x.dtype)
        self.runs = runs = runs_of(x.shape, self.dtype, 2 if residual is None else 3)
        self.x = runs.view(x)
        self.y = results.empty(x.shape, x.dtype)
        self.out = self.y.reshape(runs.shape)
        self.residual = None if residual is None else runs.view(residual)
        self.weight, self.bias, self.eps, self.relu = weight, bias, eps, relu
        channels = runs.shape[1]
        self.origin = np.zeros(channels, self.dtype)
        self.mean, self.var = np.empty((2, channels))
        self.statistics = np.empty((2, channels), self.dtype)  # mean and 1 / standard deviation
        self.factors = np.empty((2, channels), self.dtype)  # scale and shift

    def run(self) -> None:
        """The result with the mean and the variance of x."""
        if self.runs.whole:
            self.runs.share(self._whole)
            return
        everything = slice(None)
        moved = not self._settle(everything, self.runs.add_up(self._measure), moved=False)
        if moved:
            self._settle(everything, self.runs.add_up(self._measure_moved), moved=True)
        self._write_all(moved)

    def infer(self, mean: Array, var: Array) -> None:
        """The result with a given mean and variance."""
        moved = not (mean * mean < _MOST_LOST * (var + self.eps)).all()
        if moved:
            self.origin[:] = mean
        self._scale(slice(None), mean, var, mean - self.origin)
        self._write_all(moved)

    def _write_all(self, moved: bool) -> None:
        source = self._moved if moved else self._wide
        self.runs.share(lambda piece, memory: self._write(piece, source(piece, memory), memory))

    def _whole(self, piece: Piece, memory: Scratch) -> None:
        z = self._wide(piece, memory)
        if not self._settle(piece.channels, self.runs.sums(z, z, piece, memory), moved=False):
            z = self._moved(piece, memory)
            self._settle(piece.channels, self.runs.sums(z, z, piece, memory), moved=True)
        self._write(piece, z, memory)

    def _wide(self, piece: Piece, memory: Scratch) -> Array:
        """x in the compute type."""
        given = self.runs.cut(self.x, piece)
        if given.dtype == self.dtype:
            return given
        z = memory.empty(given.shape, self.dtype)
        np.copyto(z, given, casting="unsafe")
        return z

    def _moved(self, piece: Piece, memory: Scratch) -> Array:
        """x - origin."""
        given = self.runs.cut(self.x, piece)
        origin = self.runs.spread(self.origin[piece.channels], piece)
        z = self._place(piece, given.shape, memory)
        return np.subtract(given, origin, out=z, dtype=self.dtype, casting="unsafe")

    def _place(self, piece: Piece, shape: tuple[int, ...], memory: Scratch) -> Array:
        """Where the result is computed: where it will stay, if it has the compute type."""
        if self.y.dtype == self.dtype:
            return self.runs.cut(self.out, piece)
        return memory.empty(shape, self.dtype)

    def _measure(self, piece: Piece, memory: Scratch) -> Array:
        z = self._wide(piece, memory)
        return self.runs.sums(z, z, piece, memory)

    def _measure_moved(self, piece: Piece, memory: Scratch) -> Array:
        z = self._moved(piece, memory)
        return self.runs.sums(z, z, piece, memory)

    def _settle(self, channels: slice, sums: Array, moved: bool) -> bool:
        """Mean and variance from the sums of x - origin and of its squares.

        False, with the origin moved to the mean, where too many digits of the squares cancel the first time.
        """
        offset, squares = sums / self.runs.count
        var = squares - offset * offset
        if not moved and (var * _MOST_LOST < squares).any():
            self.origin[channels] = offset
            return False
        self._scale(channels, self.origin[channels] + offset if moved else offset, var, offset)
        return True

    def _scale(self, channels: slice, mean: Array, var: Array, offset: Array) -> None:
        """What follows from mean and variance; `offset` is the mean of x - origin."""
        self.mean[channels], self.var[channels] = mean, var
        scale = np.sqrt(var + self.eps)
        np.divide(1, scale, out=scale)
        self.statistics[0, channels], self.statistics[1, channels] = mean, scale
        if self.weight is not None:
            scale *= self.weight[channels]
        offset = offset * scale
        self.factors[0, channels] = scale
        self.factors[1, channels] = -offset if self.bias is None else self.bias[channels] - offset

    def _write(self, piece: Piece, z: Array, memory: Scratch) -> None:
        """The result from x - origin."""
        runs, channels = self.runs, piece.channels
        result = self._place(piece, z.shape, memory)
        scale, shift = runs.spread(self.factors[:, channels], piece)
        np.multiply(z, scale, out=result)
        result += shift
        if self.residual is not None:
            np.add(result, runs.cut(self.residual, piece), out=result, dtype=self.dtype, casting="unsafe")
        if self.relu:
            # Several times faster than with one zero.
            np.maximum(result, np.zeros(result.shape[-1], self.dtype), out=result)
        if self.y.dtype != self.dtype:
            np.copyto(runs.cut(self.out, piece), result, casting="unsafe")


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
        self.dtype = compute_dtype(x.dtype)
        self.runs = runs = runs_of(x.shape, self.dtype, 3 if y is None else 4)
        self.dy, self.x = runs.view(dy), runs.view(x)
        self.y = None if y is None else runs.view(y)
        self.mean, self.inverse_std = mean.astype(np.float64), inverse_std.astype(np.float64)
        self.scale = self.inverse_std if weight is None else self.inverse_std * weight
        self.dx = results.empty(x.shape, x.dtype) if needs[0] else None
        self.dresidual = results.empty(x.shape, x.dtype) if residual and y is not None else None
        self.inference, self.wants_sums = inference, needs[1] or not inference
        self.sums, self.products = np.zeros((2, x.shape[1]))

    def run(self) -> None:
        # x itself serves where its mean is small beside the deviation.
        share = self.mean * self.inverse_std
        self.centred = not (share * share).max() < _MOST_LOST
        if self.runs.whole:
            self.runs.share(self._whole)
            return
        if self.wants_sums:
            self._settle(slice(None), self.runs.add_up(self._measure))
        if self.dx is not None or self.dresidual is not None:
            self.runs.share(lambda piece, memory: self._write(piece, self._gradient(piece, memory), None, memory))

    def _whole(self, piece: Piece, memory: Scratch) -> None:
        g, x = self._gradient(piece, memory), None
        if self.wants_sums:
            x = self._input(piece, memory)
            self._settle(piece.channels, self.runs.sums(g, x, piece, memory))
        self._write(piece, g, x, memory)

    def _measure(self, piece: Piece, memory: Scratch) -> Array:
        return self.runs.sums(self._gradient(piece, memory), self._input(piece, memory), piece, memory)

    def _settle(self, channels: slice, found: Array) -> None:
        """The sums per channel from those of g and of g times x, or times x - mean."""
        sums, products = found
        if not self.centred:
            products -= self.mean[channels] * sums
        self.sums[channels], self.products[channels] = sums, products

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

    def _input(self, piece: Piece, memory: Scratch) -> Array:
        """x, or x - mean, in the compute type; a difference in the place of its gradient."""
        given = self.runs.cut(self.x, piece)
        if given.dtype == self.dtype and not self.centred:
            return given
        d = self._place(piece, given.shape, memory)
        if not self.centred:
            np.copyto(d, given, casting="unsafe")
            return d
        mean = self.runs.spread(self.mean[piece.channels], piece)
        return np.subtract(given, mean, out=d, dtype=self.dtype, casting="unsafe")

    def _place(self, piece: Piece, shape: tuple[int, ...], memory: Scratch) -> Array:
        if self.dx is not None and self.dx.dtype == self.dtype:
            return self.runs.cut(self._of(self.dx), piece)
        return memory.empty(shape, self.dtype)

    def _write(self, piece: Piece, g: Array, x: Array | None, memory: Scratch) -> None:
        """dx = scale (g + slope (x - mean) - the mean of g), from the gradient and x or x - mean."""
        if self.dx is None:
            return
        runs, channels = self.runs, piece.channels
        if self.inference:
            d = self._place(piece, g.shape, memory)
            np.multiply(g, runs.spread(self.scale[channels].astype(self.dtype), piece), out=d)
        else:
            x = self._input(piece, memory) if x is None else x
            d = self._place(piece, g.shape, memory)
            slope, shift, scale = runs.spread(self._factors(channels), piece)
            np.multiply(x, slope, out=d)
            d += g
            d += shift
            d *= scale
        if self.dx.dtype != self.dtype:
            np.copyto(runs.cut(self._of(self.dx), piece), d, casting="unsafe")

    def _factors(self, channels: slice) -> Array:
        """Slope, shift and scale."""
        inverse_std = self.inverse_std[channels]
        slope = self.products[channels] * inverse_std
        slope *= inverse_std
        slope /= -self.runs.count
        shift = self.sums[channels] / -self.runs.count
        if not self.centred:
            shift -= slope * self.mean[channels]
        factors = np.empty((3, len(slope)), self.dtype)
        factors[0], factors[1], factors[2] = slope, shift, self.scale[channels]
        return factors

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


def _move(running: Array, new: Array, factor: float, times: float) -> None:
    np.add(running * (1 - factor), new * (factor * times), out=running, casting="unsafe")
