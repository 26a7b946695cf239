"""Layer and RMS normalisation: pieces of rows that stay in the cache, in place where the result will stand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import parallel
from .arithmetic import compute_dtype
from .rows import dots, narrow_buffer, rows_of_a_piece
from .scratch import scratch

# With smaller ones, two threads wait for each other at every one of the short steps.
PIECE_BYTES = 512 << 10
# Rows that are added one after the other before their sums are: float32 loses a bit with each doubling.
_MOST_IN_SEQUENCE = 256
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


def near_variance(rows: np.ndarray, mean: np.ndarray, ones: np.ndarray) -> np.ndarray | None:
    """Put the mean of each row into `mean`; the biased variances, None where they would be small differences."""
    share = rows.dtype.type(1 / rows.shape[1])
    np.multiply(dots(rows, ones), share, out=mean)
    var = dots(rows, rows)
    var *= share
    squares = mean * mean
    var -= squares
    return var if (squares <= NEAR * NEAR * var).all() else None


def centre(rows: np.ndarray, out: np.ndarray, mean: np.ndarray, ones: np.ndarray) -> np.ndarray:
    """Put each row less its mean into `out` and the mean into `mean`; the biased variances."""
    share = rows.dtype.type(1 / rows.shape[1])
    np.multiply(dots(rows, ones), share, out=mean)
    np.subtract(rows, mean[:, None], out=out)
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
    return column_sums(np.concatenate([sums, values[whole:]]))


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
        narrow_buffer(size)
        with scratch() as memory:
            wide = None if stays else memory.empty((min(step, rows), size), dtype)
            for part in parts:
                given, factor = x[part], rstd[part]
                out = y[part] if wide is None else wide[: len(given)]
                if wide is not None:
                    np.copyto(out, given, casting="unsafe")
                    given = out
                if mean is None:
                    var = dots(given, given)
                    var *= share
                else:
                    var = centre(given, out, mean[part], ones)
                    given = out
                inverse_root(var, eps, factor)
                np.multiply(given, factor[:, None], out=out)
                if weight is not None:
                    out *= weight
                if bias is not None:
                    out += bias
                if wide is not None:
                    np.copyto(y[part], out, casting="unsafe")

    parallel.share(work, parallel.split(rows, step))
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
        narrow_buffer(size)
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
                np.multiply(g, factor[:, None], out=h)
                if mean is not None:
                    given = np.subtract(given, mean[part, None], out=c)
                np.multiply(h, given, out=product)
                if by_weight is not None:
                    by_weight[number] = column_sums(product)
                slope = dots(product, along)
                slope *= factor
                slope *= factor
                slope *= share
                np.multiply(given, slope[:, None], out=c)
                if mean is not None:
                    level = dots(h, along)
                    level *= share
                    c += level[:, None]
                if weight is not None:
                    h *= weight
                c += h
                if not stays:
                    np.copyto(dx[part], c, casting="unsafe")

    parallel.share(work, range(len(parts)))
    return dx, _added(by_weight, kind), _added(by_bias, kind)


def _added(parts: np.ndarray | None, dtype: np.dtype) -> np.ndarray | None:
    """The sum of the pieces' sums."""
    if parts is None or len(parts) == 1:
        return None if parts is None else parts[0].astype(dtype, copy=False)
    return parts.sum(axis=0, dtype=np.float64).astype(dtype)
