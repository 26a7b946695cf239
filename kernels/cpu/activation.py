"""Activations on NumPy arrays, in pieces that stay in the cache, on several threads where there is more than one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..geometry.activation import planes
from . import parallel
from .activation_formulas import FORMULAS, gradient
from .activation_smooth import sigmoid, sigmoid_slope
from .activation_work import PIECE_BYTES, Work
from .arithmetic import compute_dtype
from .results import empty
from .scratch import scratch

Array = np.ndarray
# Calls with the pieces of the inputs, then those of the results, all of the type to compute in.
Compute = Callable[..., None]


def activation(x: Array, kind: str, a: float = 0.0, b: float = 0.0) -> Array:
    formulas = FORMULAS[kind]
    y = empty(x.shape, x.dtype)
    if formulas.quiet and _is_one_piece(x):
        formulas.value(x.ravel(), y.reshape(-1), Work(None, x.size, x.dtype), a, b)
    else:
        value = formulas.value
        _elementwise([x], [y], lambda work, x, y: value(x, y, work, a, b))
    return y


def activation_with_slope(x: Array, kind: str, a: float = 0.0, b: float = 0.0) -> tuple[Array, Array | None]:
    both = FORMULAS[kind].both
    # A slope rounded to a half type would cost the gradient accuracy.
    if both is None or x.dtype.itemsize == 2:
        return activation(x, kind, a, b), None
    y, slope = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
    _elementwise([x], [y, slope], lambda work, x, y, slope: both(x, y, slope, work, a, b))
    return y, slope


def activation_input_grad(dy: Array, saved: Array, kind: str, a: float = 0.0, b: float = 0.0) -> Array:
    formulas = FORMULAS[kind]
    dx = empty(dy.shape, dy.dtype)
    if formulas.quiet and _is_one_piece(dy):
        gradient(kind, dy.ravel(), saved.ravel(), dx.reshape(-1), Work(None, dy.size, dy.dtype), a, b)
    else:
        _elementwise([dy, saved], [dx], lambda work, dy, saved, dx: gradient(kind, dy, saved, dx, work, a, b))
    return dx


def activation_scale(slope: Array, dy: Array, in_place: bool = False) -> Array:
    dx = slope if in_place else empty(dy.shape, dy.dtype)
    _elementwise([dy, slope], [dx], lambda work, dy, slope, dx: np.multiply(dy, slope, out=dx))
    return dx


def glu(x: Array, dim: int) -> Array:
    outer, size, inner = planes(x.shape, dim)
    half = size // 2 * inner
    y = np.empty((*x.shape[:dim], size // 2, *x.shape[dim + 1 :]), x.dtype)
    halves = np.ascontiguousarray(x).reshape(outer, 2, half)

    def compute(work: Work, first: Array, gate: Array, y: Array) -> None:
        sigmoid(gate, y, work, 0, 0)
        y *= first

    _by_rows([halves[:, 0], halves[:, 1]], [y.reshape(outer, half)], compute)
    return y


def glu_input_grad(dy: Array, x: Array, dim: int) -> Array:
    outer, size, inner = planes(x.shape, dim)
    half = size // 2 * inner
    dx = np.empty(x.shape, x.dtype)
    grads = np.ascontiguousarray(dy).reshape(outer, half)
    halves, results = np.ascontiguousarray(x).reshape(outer, 2, half), dx.reshape(outer, 2, half)

    def compute(work: Work, dy: Array, first: Array, gate: Array, by_first: Array, by_gate: Array) -> None:
        s = work.array(0)
        sigmoid(gate, s, work, 0, 0)
        np.multiply(dy, s, out=by_first)
        sigmoid_slope(s, by_gate, work, 0, 0)
        by_gate *= first
        by_gate *= dy

    _by_rows([grads, halves[:, 0], halves[:, 1]], [results[:, 0], results[:, 1]], compute)
    return dx


def _is_one_piece(x: Array) -> bool:
    return x.nbytes <= 2 * PIECE_BYTES and x.dtype.itemsize > 2


def _elementwise(inputs: list[Array], results: list[Array], compute: Compute) -> None:
    # A C-contiguous array is its own ravel.
    in_pieces([array.ravel() for array in inputs], [array.reshape(-1) for array in results], compute)


def _by_rows(inputs: list[Array], results: list[Array], compute: Compute) -> None:
    """The same for arrays (rows, columns) whose rows lie apart."""
    rows, columns = results[0].shape
    if columns * results[0].itemsize >= PIECE_BYTES // 32:
        for row in range(rows):
            in_pieces([array[row] for array in inputs], [array[row] for array in results], compute)
        return
    step = max(1, PIECE_BYTES // max(1, columns * compute_dtype(results[0].dtype).itemsize))
    for part in parallel.split(rows, step):
        packed = [np.ascontiguousarray(array[part]).reshape(-1) for array in inputs]
        made = [np.empty(packed[0].shape, array.dtype) for array in results]
        in_pieces(packed, made, compute)
        for array, values in zip(results, made, strict=True):
            array[part] = values.reshape(part.stop - part.start, columns)


def in_pieces(inputs: list[Array], results: list[Array], compute: Compute) -> None:
    """Call `compute(work, *inputs, *results)` with pieces of flat, contiguous arrays, halves as float32."""
    size, stored = results[0].size, results[0].dtype
    dtype = compute_dtype(stored)
    limit = parallel.worth(size * dtype.itemsize)
    step = (1 + (limit == 1)) * PIECE_BYTES // dtype.itemsize
    if size * dtype.itemsize <= PIECE_BYTES and stored is dtype:
        with np.errstate(all="ignore"):
            compute(Work(None, size, dtype), *inputs, *results)
        return

    def run(pieces: Iterator[slice]) -> None:
        with scratch() as memory:
            work = Work(memory, min(step, size), dtype)
            for piece in pieces:
                given, made = [array[piece] for array in inputs], [array[piece] for array in results]
                work.cut(len(given[0]))
                if stored == dtype:
                    compute(work, *given, *made)
                    continue
                wide = [work.wide(number) for number in range(len(given) + len(made))]
                for target, array in zip(wide, given, strict=False):
                    np.copyto(target, array, casting="unsafe")
                compute(work, *wide)
                for array, source in zip(made, wide[len(given) :], strict=True):
                    np.copyto(array, source, casting="unsafe")

    pieces = parallel.split(size, step)
    parallel.share(run, pieces, limit)
