"""Convolution with one input channel a group, of any number of axes, on long runs of memory.

The padded images of a channel lie one after the other, split into phases of the stride. What a tap sees from all their
outputs is then one run, shifted by some places, and what has no meaning lies between the rows. The zeros behind a row
are those before the next one. One `einsum` adds up the taps of all axes but the last over a run: it multiplies and adds
in one pass, which no other NumPy function does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from ..geometry import Sizes
from . import parallel, results
from .conv_choice import Problem
from .scratch import Scratch, scratch

_PIECE_BYTES = 3 << 19
# Short enough for the first cache, and for OpenBLAS to multiply on the calling thread.
_CHUNK = 8192
_LEAST_RUN = 6 << 10


def forward(problem: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    runs = _Runs(problem)
    stride, shape = problem.stride, problem.y_shape
    factors = runs.factors(weight)
    y = results.empty((len(x), runs.channels, runs.filters, *shape[2:]), x.dtype)
    offsets = None if bias is None else bias.astype(runs.dtype, copy=False).reshape(runs.channels, runs.filters, 1)

    def work(pieces: Iterator[_Piece]) -> None:
        with scratch() as memory:
            seen = runs.zeros(memory, prod(stride), runs.length + runs.reach)
            sums, spare = runs.sums(memory)
            for piece in pieces:
                part = seen[: piece.size[1]]
                runs.read(x[piece.images, piece.channels], part)
                for number in range(runs.filters):
                    made = sums[: len(part)]
                    _correlate(part, factors[piece.channels, number], runs.terms, made[:, : runs.used], spare)
                    if offsets is not None:  # a run takes a fraction of the time of its rows
                        made += offsets[piece.channels, number]
                    np.copyto(y[piece.images, piece.channels, number], runs.outputs(made, piece), casting="unsafe")

    parallel.share(work, runs.pieces())
    return y.reshape(shape)


def input_grad(problem: Problem, dy: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """The input gradient; None if not all weights are finite."""
    # It sees zeros around dy, and 0 * inf is not 0.
    if not np.isfinite(weight).all():
        return None
    runs = _Runs(problem)
    stride, input_shape = problem.stride, problem.x_shape
    factors = runs.factors(weight)
    grads = dy.reshape(len(dy), runs.channels, runs.filters, *dy.shape[2:])
    # For each phase the taps that lie on it, seen from the input. They read dy backwards, so it begins behind zeros.
    length = runs.length + 2 * runs.reach
    phases = [
        [term.reversed(runs, length) for term in runs.terms if term.phase == phase] for phase in range(prod(stride))
    ]
    new = results.empty if all(phases) and runs.covers_input else results.zeros
    dx = new(input_shape, dy.dtype)

    def work(pieces: Iterator[_Piece]) -> None:
        with scratch() as memory:
            given = runs.zeros(memory, runs.filters, length)
            sums, spare = runs.sums(memory)
            for piece in pieces:
                part = given[: piece.size[1]]
                for number in range(runs.filters):
                    middle = part[:, number, runs.reach : runs.reach + runs.length]
                    target = runs.outputs(middle, piece, runs.gradient_start)
                    np.copyto(target, grads[piece.images, piece.channels, number], casting="unsafe")
                for phase, terms in enumerate(phases):
                    if terms:
                        _correlate(part, factors[piece.channels], terms, sums, spare)
                        runs.write(sums[: len(part)], phase, dx[piece.images, piece.channels])

    parallel.share(work, runs.pieces())
    return dx


def weight_grad(problem: Problem, dy: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """The weight gradient; None if any of it is not finite."""
    # NaN too where only a product of zero with infinity would be.
    runs = _Runs(problem)
    stride, weight_shape = problem.stride, problem.weight_shape
    grads = dy.reshape(len(dy), runs.channels, runs.filters, *dy.shape[2:])
    pieces = runs.pieces()
    # Sums of pieces are added up in their order, whichever thread made them.
    sums = np.zeros((-(-len(x) // runs.images), runs.channels, runs.filters, *weight_shape[2:]), runs.dtype)

    def work(pieces: Iterator[_Piece]) -> None:
        with scratch() as memory:
            seen = runs.zeros(memory, prod(stride), runs.length + runs.reach)
            given = runs.zeros(memory, 1, runs.length)[:, 0]
            for piece in pieces:
                part, spread = seen[: piece.size[1]], given[: piece.size[1]]
                if piece.size[0] < runs.images:
                    spread.fill(0)
                runs.read(x[piece.images, piece.channels], part)
                for number in range(runs.filters):
                    np.copyto(
                        runs.outputs(spread, piece), grads[piece.images, piece.channels, number], casting="unsafe"
                    )
                    target = sums[piece.images.start // runs.images, piece.channels, number]
                    for chunk in parallel.split(runs.used, _CHUNK):
                        values = spread[:, chunk].reshape(len(part), *[1] * (len(stride) - 1), -1)
                        for term in runs.terms:
                            target[:, *term.taps] += np.vecdot(term.view(part, chunk), values)

    parallel.share(work, pieces)
    dw = sums.sum(axis=0).reshape(weight_shape)
    return dw.astype(dy.dtype, copy=False) if np.isfinite(dw).all() else None


class _Piece(NamedTuple):
    """Some channels of some images."""

    images: slice
    channels: slice

    @property
    def size(self) -> tuple[int, int]:
        return self.images.stop - self.images.start, self.channels.stop - self.channels.start


class _Term(NamedTuple):
    """Taps that lie on one phase, at equal distances along all axes but the last, where they are at one place."""

    phase: int
    #: Which weights: an index of an array (..., *taps).
    taps: tuple
    counts: Sizes
    #: Where the first tap of an output lies in the phase's run, and how far apart the others are, in elements.
    shift: int
    steps: Sizes

    def reversed(self, runs: _Runs, length: int) -> _Term:
        """The same taps for the gradient of the input, which is read off dy (filters, length) a channel."""
        return _Term(
            0,
            (slice(None), *self.taps),
            (runs.filters, *self.counts),
            runs.reach + runs.offset(runs.gradient_start) - self.shift,
            (length, *(-step for step in self.steps)),
        )

    def view(self, phases: np.ndarray, chunk: slice) -> np.ndarray:
        """View (channels, *counts, places) of phases (channels, phases, run): what the taps see from a chunk."""
        size = phases.itemsize
        places = chunk.stop - chunk.start
        offset = self.phase * phases.shape[2] + self.shift + chunk.start
        steps = (phases.strides[0], *(step * size for step in self.steps), size)
        return np.ndarray((len(phases), *self.counts, places), phases.dtype, phases, offset * size, steps)


def _correlate(
    phases: np.ndarray, factors: np.ndarray, terms: list[_Term], target: np.ndarray, spare: np.ndarray
) -> None:
    """The sum over the terms of factors (channels, ..., *taps) by what they see, in target (channels, places)."""
    channels, axes = len(phases), "abcd"[: len(terms[0].counts)]
    for chunk in parallel.split(target.shape[1], _CHUNK):
        sums = target[:channels, chunk]
        for number, term in enumerate(terms):
            seen, by = term.view(phases, chunk), factors[:, *term.taps]
            out = spare[:channels, : sums.shape[1]] if number else sums
            if by.size == channels:
                np.multiply(seen.reshape(out.shape), by.reshape(channels, 1), out=out)
            else:
                np.einsum(f"z{axes}y,z{axes}->zy", seen, by, out=out)
            if number:
                np.add(sums, out, out=sums)


class _Runs:
    """How the images of one convolution lie in runs: (channels, phases, images * lengths) a piece."""

    def __init__(self, problem: Problem) -> None:
        x_shape, weight_shape, y_shape = problem.x_shape, problem.weight_shape, problem.y_shape
        stride, padding, dilation, dtype = problem.stride, problem.padding, problem.dilation, problem.computed
        self.count, self.channels, *self.sizes = x_shape
        self.filters = weight_shape[0] // self.channels
        self.taps, self.pooled, self.stride, self.dilation = weight_shape[2:], y_shape[2:], stride, dilation
        self.before, self.dtype = [pads[0] for pads in padding], dtype
        #: By how many places the last tap lies behind the first, along each axis.
        self.furthest = [
            (count - 1) * gap // step for count, gap, step in zip(self.taps, dilation, stride, strict=True)
        ]
        self.axes = [list(self._axis(axis)) for axis in range(len(stride))]
        # Places along each axis: enough for the outputs and for all of the input, and for so many zeros behind it that
        # with those before it the taps see no other row.
        self.lengths, self.gradient_start = [], []
        for count, far, phases in zip(self.pooled, self.furthest, self.axes, strict=True):
            inside = [place for place, _ in phases if place.stop > place.start] or [slice(0, 0)]
            first = min(place.start for place in inside)
            self.lengths.append(max(count, count + far - first, *(place.stop for place in inside)))
            self.gradient_start.append(max(0, far - first))
        self.pitches = [prod(self.lengths[axis + 1 :]) for axis in range(len(stride))]
        self.reach = self.offset(self.furthest)
        volume = prod(self.lengths)
        self.images = parallel.evenly(self.count, -(-_LEAST_RUN // volume))
        self.length = self.images * volume
        #: Up to the last output.
        self.used = self.length - volume + self.offset([count - 1 for count in self.pooled]) + 1
        run_bytes = prod(stride) * self.length * dtype.itemsize
        self.piece_channels = parallel.evenly(self.channels, _PIECE_BYTES // run_bytes)
        self.terms = list(self._terms())

    @property
    def covers_input(self) -> bool:
        """Whether no input lies behind the last place of a run."""
        axes = zip(self.sizes, self.before, self.pooled, self.furthest, self.stride, strict=True)
        return all(size + pad <= (count + far) * step for size, pad, count, far, step in axes)

    def offset(self, places: Sequence[int]) -> int:
        """How far these places along the axes lie behind the first."""
        return sum(place * pitch for place, pitch in zip(places, self.pitches, strict=True))

    def pieces(self) -> list[_Piece]:
        channels = parallel.split(self.channels, self.piece_channels)
        return [_Piece(images, some) for images in parallel.split(self.count, self.images) for some in channels]

    def factors(self, weight: np.ndarray) -> np.ndarray:
        """The weights (channels, filters, *taps)."""
        return weight.astype(self.dtype, copy=False).reshape(self.channels, self.filters, *self.taps)

    def zeros(self, memory: Scratch, rows: int, length: int) -> np.ndarray:
        """Memory (channels, rows, length) for a piece. What lies around the images stays zero."""
        held = memory.empty((self.piece_channels, rows, length), self.dtype)
        held.fill(0)
        return held

    def sums(self, memory: Scratch) -> tuple[np.ndarray, np.ndarray]:
        """Memory for the sums of a piece, and for one more term of a chunk of them."""
        spare = memory.empty((self.piece_channels, min(_CHUNK, self.length)), self.dtype)
        return memory.empty((self.piece_channels, self.length), self.dtype), spare

    def outputs(self, run: np.ndarray, piece: _Piece, first: Sequence[int] | None = None) -> np.ndarray:
        """View (images, channels, *outputs) of runs (channels, length), the outputs beginning at `first`."""
        start = first or [0] * len(self.pooled)
        inside = [slice(low, low + count) for low, count in zip(start, self.pooled, strict=True)]
        grid = run.reshape(len(run), self.images, *self.lengths)
        return grid[:, : piece.size[0], *inside].swapaxes(0, 1)

    def read(self, x: np.ndarray, phases: np.ndarray) -> None:
        """Copy images (images, channels, *sizes) to where they lie in the phases."""
        for phase, inside, source in self._phases():
            grid = phases[:, phase, : self.length].reshape(x.shape[1], self.images, *self.lengths)
            np.copyto(grid[:, : len(x), *inside], x[:, :, *source].swapaxes(0, 1), casting="unsafe")

    def write(self, run: np.ndarray, phase: int, x: np.ndarray) -> None:
        """Copy the run of one phase to where it lies in images (images, channels, *sizes)."""
        _, inside, target = next(entry for entry in self._phases() if entry[0] == phase)
        grid = run.reshape(len(run), self.images, *self.lengths)
        np.copyto(x[:, :, *target], grid[:, : len(x), *inside].swapaxes(0, 1), casting="unsafe")

    def _phases(self) -> Iterator[tuple[int, list[slice], list[slice]]]:
        """For each phase: where its elements lie in the run's grid, and where in an image."""
        for number, places in enumerate(product(*self.axes)):
            yield number, [place[0] for place in places], [place[1] for place in places]

    def _axis(self, axis: int) -> Iterator[tuple[slice, slice]]:
        """The same for each phase of one axis."""
        size, step, pad = self.sizes[axis], self.stride[axis], self.before[axis]
        places = self.pooled[axis] + self.furthest[axis]
        for phase in range(step):
            first = max(0, -((phase - pad) // step))
            start = first * step + phase - pad
            count = max(0, min(places - first, (size - start + step - 1) // step))
            yield slice(first, first + count), slice(start, start + count * step, step)

    def _terms(self) -> Iterator[_Term]:
        axes = zip(self.taps, self.stride, self.dilation, self.pitches, strict=True)
        *leading, last = (list(_residues(*axis)) for axis in axes)
        # Along the last axis an einsum would take the taps, not the places, for its inner loop.
        single = [
            _Taps(taps.phase, tap, 1, taps.shift + number * taps.step, 0)
            for taps in last
            for number, tap in enumerate(range(self.taps[-1])[taps.which])
        ]
        for groups in product(*leading, single):
            phase = 0
            for group, step in zip(groups, self.stride, strict=True):
                phase = phase * step + group.phase
            yield _Term(
                phase,
                (..., *(group.which for group in groups)),
                tuple(group.number for group in groups[:-1]),
                sum(group.shift for group in groups),
                tuple(group.step for group in groups[:-1]),
            )


class _Taps(NamedTuple):
    """The taps of one axis that lie on one phase: which they are, where the first lies and how far apart they are."""

    phase: int
    which: Any
    number: int
    shift: int
    step: int


def _residues(taps: int, stride: int, dilation: int, pitch: int) -> Iterator[_Taps]:
    apart = stride // gcd(stride, dilation)
    for first in range(min(apart, taps)):
        shift, phase = divmod(first * dilation, stride)
        index = slice(first, None, apart)
        yield _Taps(phase, index, len(range(taps)[index]), shift * pitch, apart * dilation // stride * pitch)
