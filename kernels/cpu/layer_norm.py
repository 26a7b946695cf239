"""Layer and RMS normalisation: pieces of rows that stay in the cache, in place where the result will stand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import parallel
from .arithmetic import compute_dtype
from .rows import dots, narrow_buffer, rows_of_a_piece
from .scratch import scratch

# Longer than a core's own cache would have it: two threads wait for each other at every one of the short steps.
PIECE_BYTES = 2 << 20
# Rows that are added one after the other before their sums are: float32 loses a bit with each doubling.
_MOST_IN_SEQUENCE = 256
# Rows of up to so many elements are short, where there are more than so many in all; and the length of their operands.
_SHORT_ROW = 256
_FEW_ELEMENTS = 1 << 15
_SHORT_OPERAND = 4096
# From the square of so many standard deviations on, a mean is far from 0.
_FAR = 16
# Up to so many standard deviations a mean is so near 0 that its square may be taken away from the mean of the squares.
NEAR = 1


def layer_norm(
    x: np.ndarray, weight: np.ndarray | None = None, bias: np.ndarray | None = None, eps: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean = np.full(len(x), np.nan, compute_dtype(x.dtype))
    y, rstd = _normalize(x, weight, bias, eps, mean)
    return y, mean, rstd


def rms_norm(x: np.ndarray, weight: np.ndarray | None = None, eps: float = 1e-5) -> tuple[np.ndarray, np.ndarray]:
    return _normalize(x, weight, None, eps, None)


def layer_norm_grad(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    with_weight: bool = True,
    with_bias: bool = True,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    return _gradients(dy, x, weight, mean, rstd, with_weight, with_bias)


def rms_norm_grad(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray | None, rstd: np.ndarray, with_weight: bool = True
) -> tuple[np.ndarray, np.ndarray | None]:
    return _gradients(dy, x, weight, None, rstd, with_weight, False)[:2]


class _Broadcast:
    """Operations of rows with one number a row or one a column.

    NumPy takes broadcast operands of short rows through a buffer. So for many short rows the numbers are written out,
    and a vector is repeated for several rows.
    """

    def __init__(self, rows: int, size: int) -> None:
        self.size = size
        self.short = 0 < size <= _SHORT_ROW and rows * size > _FEW_ELEMENTS
        self.repeats = _SHORT_OPERAND // size if self.short else 1
        narrow_buffer(self.repeats * size)

    def vector(self, values: np.ndarray | None) -> np.ndarray | None:
        """The operand of `columns` for a vector."""
        return values if values is None or self.repeats == 1 else np.tile(values, self.repeats)

    def columns(self, operation: np.ufunc, rows: np.ndarray, vector: np.ndarray) -> None:
        """rows = operation(rows, vector), for contiguous rows."""
        whole = len(rows) - len(rows) % self.repeats
        if whole:
            lines = rows[:whole].reshape(-1, len(vector))
            operation(lines, vector, out=lines)
        if whole < len(rows):
            operation(rows[whole:], vector[: self.size], out=rows[whole:])

    def rows(
        self, operation: np.ufunc, rows: np.ndarray, numbers: np.ndarray, out: np.ndarray, spare: np.ndarray | None
    ) -> None:
        """out = operation(rows, numbers); `spare` is memory to write them out."""
        column = numbers[:, None]
        if self.short and spare is not None:
            np.copyto(spare, column)
            column = spare
        operation(rows, column, out=out)


def near_variance(rows: np.ndarray, mean: np.ndarray, ones: np.ndarray) -> np.ndarray | None:
    """Put the mean of each row into `mean`; the biased variances, None where they would be small differences."""
    share = rows.dtype.type(1 / rows.shape[1])
    np.multiply(dots(rows, ones), share, out=mean)
    var = dots(rows, rows)
    var *= share
    squares = mean * mean
    var -= squares
    return var if (squares <= NEAR * NEAR * var).all() else None


def centre(
    rows: np.ndarray, out: np.ndarray, mean: np.ndarray, ones: np.ndarray, spare: np.ndarray | None = None
) -> np.ndarray:
    """Put each row less its mean into `out` and the mean into `mean`; the biased variances."""
    share = rows.dtype.type(1 / rows.shape[1])
    np.multiply(dots(rows, ones), share, out=mean)
    column = mean[:, None]
    if spare is not None:
        np.copyto(spare, column)
        column = spare
    np.subtract(rows, column, out=out)
    var = dots(out, out)
    var *= share
    if (mean * mean > _FAR * var).any():  # such a mean was summed too coarsely, but what it left over was not
        rest = dots(out, ones)
        rest *= share
        out -= rest[:, None]
        mean += rest
        var -= rest * rest
    return var


def inverse_root(var: np.ndarray, eps: float, out: np.ndarray) -> None:
    """1 / sqrt(var + eps)"""
    np.add(var, var.dtype.type(eps), out=out)
    np.sqrt(out, out=out)
    np.reciprocal(out, out=out)


def column_sums(values: np.ndarray) -> np.ndarray:
    """The sum of each column."""
    rows, columns = values.shape
    if rows <= 2 * _MOST_IN_SEQUENCE:
        return np.add.reduce(values, axis=0)
    whole = rows - rows % _MOST_IN_SEQUENCE
    sums = np.add.reduce(values[:whole].reshape(-1, _MOST_IN_SEQUENCE, columns), axis=1)
    return np.add.reduce(np.concatenate([sums, values[whole:]]), axis=0, dtype=np.float64)


def widened(vector: np.ndarray | None, dtype: np.dtype) -> np.ndarray | None:
    """The vector in the type of the computation."""
    return None if vector is None else np.ascontiguousarray(vector, dtype)


def _normalize(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float, mean: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    rows, size = x.shape
    dtype = compute_dtype(x.dtype)
    stays = x.dtype == dtype
    weight, bias = widened(weight, dtype), widened(bias, dtype)
    y, rstd = np.empty((rows, size), x.dtype), np.full(rows, np.nan, dtype)
    if not x.size:
        return y, rstd
    ones = np.ones(size, dtype)
    share = dtype.type(1 / size)

    step = rows_of_a_piece(size, dtype, PIECE_BYTES)

    def work(parts: Iterator[slice]) -> None:
        broadcast = _Broadcast(rows, size)
        weights, biases = broadcast.vector(weight), broadcast.vector(bias)
        with scratch() as memory:
            wide = None if stays else memory.empty((min(step, rows), size), dtype)
            spares = memory.empty((min(step, rows), size), dtype) if broadcast.short else None
            for part in parts:
                given, factor = x[part], rstd[part]
                out = y[part] if wide is None else wide[: len(given)]
                spare = None if spares is None else spares[: len(given)]
                if wide is not None:
                    np.copyto(out, given, casting="unsafe")
                    given = out
                if mean is None:
                    var = dots(given, given)
                    var *= share
                else:
                    var = centre(given, out, mean[part], ones, spare)
                    given = out
                inverse_root(var, eps, factor)
                broadcast.rows(np.multiply, given, factor, out, spare)
                if weights is not None:
                    broadcast.columns(np.multiply, out, weights)
                if biases is not None:
                    broadcast.columns(np.add, out, biases)
                if wide is not None:
                    np.copyto(y[part], out, casting="unsafe")

    parallel.share(work, parallel.split(rows, step), parallel.worth(y.nbytes))
    return y, rstd


def _gradients(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray | None,
    rstd: np.ndarray,
    with_weight: bool,
    with_bias: bool,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """With h = dy rstd, c = x - mean and <> the mean of a row: dx = h weight - <h weight> - c rstd² <h weight c>."""
    rows, size = x.shape
    dtype = compute_dtype(x.dtype)
    stays = x.dtype == dtype
    kind = x.dtype if weight is None else weight.dtype
    weight = widened(weight, dtype)
    along = np.ones(size, dtype) if weight is None else weight
    dx = np.empty((rows, size), x.dtype)
    step = rows_of_a_piece(size, dtype, PIECE_BYTES) if size else 1
    parts = parallel.split(rows, step) if size else []
    by_weight = np.empty((len(parts), size), dtype) if with_weight else None
    by_bias = np.empty((len(parts), size), dtype) if with_bias else None
    share = dtype.type(-1 / max(size, 1))

    def work(numbers: Iterator[int]) -> None:
        broadcast = _Broadcast(rows, size)
        weights = broadcast.vector(weight)
        with scratch() as memory:
            scaled, products, *wide = (memory.empty((min(step, rows), size), dtype) for _ in range(2 if stays else 3))
            for number in numbers:
                part = parts[number]
                g, given, factor = dy[part], x[part], rstd[part]
                count = len(given)
                h, product = scaled[:count], products[:count]
                c = dx[part] if stays else wide[0][:count]
                if not stays:
                    np.copyto(h, g, casting="unsafe")
                    np.copyto(c, given, casting="unsafe")
                    g, given = h, c
                if by_bias is not None:
                    by_bias[number] = column_sums(g)
                broadcast.rows(np.multiply, g, factor, h, product)
                if mean is not None:
                    broadcast.rows(np.subtract, given, mean[part], c, product)
                    given = c
                np.multiply(h, given, out=product)
                if by_weight is not None:
                    by_weight[number] = column_sums(product)
                slope = dots(product, along)
                slope *= factor
                slope *= factor
                slope *= share
                broadcast.rows(np.multiply, given, slope, c, product)
                if mean is not None:
                    level = dots(h, along)
                    level *= share
                    broadcast.rows(np.add, c, level, c, product)
                if weights is not None:
                    broadcast.columns(np.multiply, h, weights)
                c += h
                if not stays:
                    np.copyto(dx[part], c, casting="unsafe")

    parallel.share(work, range(len(parts)), parallel.worth(dx.nbytes))
    return dx, _added(by_weight, kind), _added(by_bias, kind)


def _added(parts: np.ndarray | None, dtype: np.dtype) -> np.ndarray | None:
    """The sum of the pieces' sums."""
    if parts is None or len(parts) == 1:
        return None if parts is None else parts[0].astype(dtype, copy=False)
    return parts.sum(axis=0, dtype=np.float64).astype(dtype)
