"""Activations with one number per channel, a bias before or the slope of PReLU, on NumPy arrays.

An array is seen as rows (outer, channels) where channels are the last dimension, else as planes (outer * channels,
inner); pieces are some of its rows or planes. Sums over a piece are kept and added up in the order of the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..geometry.activation import planes
from . import parallel
from .activation_formulas import FORMULAS, gradient
from .activation_work import PIECE_BYTES, Work
from .arithmetic import compute_dtype
from .scratch import scratch

Array = np.ndarray


class _Channels:
    """How an array is cut up, and what goes with each piece."""

    def __init__(self, outer: int, channels: int, inner: int, dtype: np.dtype) -> None:
        if channels == 1:
            outer, inner = outer * inner, 1
        self.channels = channels
        self.outer, self.dtype = outer, compute_dtype(dtype)
        self.last = inner == 1
        self.lines, self.length = (outer, self.channels) if self.last else (outer * self.channels, inner)
        step = max(1, PIECE_BYTES // max(1, self.length * self.dtype.itemsize))
        self.pieces = parallel.split(self.lines, step) if self.length else []
        self.step = min(step, self.lines)

    def flat(self, array: Array) -> Array:
        return np.ascontiguousarray(array).reshape(self.lines, self.length)

    def spread(self, vector: Array) -> Array:
        """A number per channel so that it broadcasts over all lines."""
        vector = vector.astype(self.dtype, copy=False)
        if self.last:
            return np.broadcast_to(vector, (self.lines, self.length))
        return np.tile(vector, self.outer)[:, None]

    def total(self, sums: Array) -> Array:
        """The sum of each channel from those of pieces of rows, or of planes."""
        return sums.sum(0) if self.last else sums.reshape(self.outer, self.channels).sum(0)

    def sums(self) -> Array:
        """Where `add_up` puts what it finds."""
        return np.zeros((len(self.pieces), self.length) if self.last else self.lines, self.dtype)

    def add_up(self, values: Array, work: Work, piece: slice, sums: Array) -> None:
        """Put the sums of a piece in their place."""
        if self.last:
            np.dot(work.one[: len(values)], values, out=sums[piece.start // self.step])
        else:
            values.sum(1, out=sums[piece])

    def each(self, compute: Callable[[Work, slice], None]) -> None:
        """Call `compute` for every piece."""
        size = self.step * self.length

        def run(pieces: Iterator[slice]) -> None:
            with scratch() as memory:
                work = Work(memory, size, self.dtype)
                for piece in pieces:
                    work.cut((piece.stop - piece.start) * self.length)
                    compute(work, piece)

        parallel.share(run, self.pieces, parallel.worth(self.lines * self.length * self.dtype.itemsize))

    def wide(self, array: Array, work: Work, number: int) -> Array:
        """A piece in the type to compute in."""
        if array.dtype == self.dtype:
            return array
        wide = work.wide(number).reshape(array.shape)
        np.copyto(wide, array, casting="unsafe")
        return wide


def bias_activation(x: Array, bias: Array, kind: str, dim: int, a: float = 0.0, b: float = 0.0) -> Array:
    view = _Channels(*planes(x.shape, dim), x.dtype)
    y = np.empty(x.shape, x.dtype)
    given, results, added = view.flat(x), y.reshape(view.lines, view.length), view.spread(bias)
    value = FORMULAS[kind].value

    def compute(work: Work, piece: slice) -> None:
        z = work.wide(0)
        np.add(given[piece], added[piece], out=z.reshape(-1, view.length), dtype=view.dtype, casting="unsafe")
        out = results[piece].reshape(-1)
        made = out if out.dtype == view.dtype else work.wide(1)
        value(z, made, work, a, b)
        if made is not out:
            np.copyto(out, made, casting="unsafe")

    view.each(compute)
    return y


def bias_activation_with_slope(
    x: Array, bias: Array, kind: str, dim: int, a: float = 0.0, b: float = 0.0
) -> tuple[Array, Array | None]:
    both = FORMULAS[kind].both
    if both is None or x.dtype.itemsize == 2:
        return bias_activation(x, bias, kind, dim, a, b), None
    view = _Channels(*planes(x.shape, dim), x.dtype)
    y, slope = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    given, added = view.flat(x), view.spread(bias)
    values, slopes = (array.reshape(view.lines, view.length) for array in (y, slope))

    def compute(work: Work, piece: slice) -> None:
        z = work.wide(0)
        np.add(given[piece], added[piece], out=z.reshape(-1, view.length))
        both(z, values[piece].reshape(-1), slopes[piece].reshape(-1), work, a, b)

    view.each(compute)
    return y, slope


def bias_activation_scale(
    slope: Array, dy: Array, dim: int, with_bias_grad: bool = True, in_place: bool = False
) -> tuple[Array, Array | None]:
    view = _Channels(*planes(dy.shape, dim), dy.dtype)
    dx = slope if in_place else np.empty(dy.shape, dy.dtype)
    grads, slopes, results = view.flat(dy), view.flat(slope), dx.reshape(view.lines, view.length)
    sums = view.sums()

    def compute(work: Work, piece: slice) -> None:
        np.multiply(grads[piece], slopes[piece], out=results[piece])
        if with_bias_grad:
            view.add_up(results[piece], work, piece, sums)

    view.each(compute)
    return dx, view.total(sums).astype(dy.dtype, copy=False) if with_bias_grad else None


def bias_activation_grad(
    dy: Array,
    saved: Array,
    bias: Array | None,
    kind: str,
    dim: int,
    a: float = 0.0,
    b: float = 0.0,
    with_bias_grad: bool = True,
) -> tuple[Array, Array | None]:
    view = _Channels(*planes(dy.shape, dim), dy.dtype)
    dx = np.empty(dy.shape, dy.dtype)
    grads, kept, results = view.flat(dy), view.flat(saved), dx.reshape(view.lines, view.length)
    added = None if bias is None else view.spread(bias)
    sums = view.sums()

    def compute(work: Work, piece: slice) -> None:
        g = view.wide(grads[piece], work, 0).reshape(-1)
        if added is None:
            s = view.wide(kept[piece], work, 1)
        else:
            s = work.wide(1).reshape(-1, view.length)
            np.add(kept[piece], added[piece], out=s, dtype=view.dtype, casting="unsafe")
        out = results[piece]
        made = out if out.dtype == view.dtype else work.wide(2).reshape(out.shape)
        gradient(kind, g, s.reshape(-1), made.reshape(-1), work, a, b)
        if made is not out:
            np.copyto(out, made, casting="unsafe")
        if with_bias_grad:
            view.add_up(made, work, piece, sums)

    view.each(compute)
    return dx, view.total(sums).astype(dy.dtype, copy=False) if with_bias_grad else None


def prelu(x: Array, weight: Array) -> Array:
    view = _prelu_channels(x, weight)
    y = np.empty(x.shape, x.dtype)
    given, results, slopes = view.flat(x), y.reshape(view.lines, view.length), view.spread(weight)

    def compute(work: Work, piece: slice) -> None:
        x = view.wide(given[piece], work, 0)
        out = results[piece]
        made = out if out.dtype == view.dtype else work.wide(1).reshape(out.shape)
        zero = work.zero.reshape(x.shape)
        below = np.minimum(x, zero, out=work.array(0).reshape(x.shape))
        below *= slopes[piece]
        np.maximum(x, zero, out=made)
        made += below
        if made is not out:
            np.copyto(out, made, casting="unsafe")

    view.each(compute)
    return y


def prelu_grad(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    view = _prelu_channels(x, weight)
    dx = np.empty(dy.shape, dy.dtype)
    grads, kept, results = view.flat(dy), view.flat(x), dx.reshape(view.lines, view.length)
    slopes, sums = view.spread(weight), view.sums()

    def compute(work: Work, piece: slice) -> None:
        g, x = view.wide(grads[piece], work, 0), view.wide(kept[piece], work, 1)
        out = results[piece]
        made = out if out.dtype == view.dtype else work.wide(2).reshape(out.shape)
        # 1 where x is positive, else the weight: m + (1 - m) w.
        positive = work.array(0).reshape(x.shape)
        np.copyto(positive, np.greater(x, 0, out=work.mask.reshape(x.shape)))
        np.subtract(work.one.reshape(x.shape), positive, out=made)
        made *= slopes[piece]
        made += positive
        made *= g
        if made is not out:
            np.copyto(out, made, casting="unsafe")
        below = np.minimum(x, work.zero.reshape(x.shape), out=positive)
        below *= g
        view.add_up(below, work, piece, sums)

    view.each(compute)
    return dx, view.total(sums).astype(dy.dtype, copy=False)


def _prelu_channels(x: Array, weight: Array) -> _Channels:
    shape = (1, 1, x.size) if weight.size == 1 else planes(x.shape, 1)
    return _Channels(*shape, x.dtype)
