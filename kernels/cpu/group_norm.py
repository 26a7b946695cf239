"""Group normalisation: pieces of groups that stay in the cache; an image's channel is one run of one factor."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from . import parallel
from .arithmetic import compute_dtype
from .layer_norm import NEAR, PIECE_BYTES, centre, column_sums, inverse_root, near_variance, widened
from .rows import dots, narrow_buffer, rows_of_a_piece
from .scratch import scratch


def group_norm(
    x: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    groups: int = 1,
    eps: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = _Shape(x.shape, groups)
    dtype = compute_dtype(x.dtype)
    stays = x.dtype == dtype
    rows = x.reshape(shape.rows, shape.size)
    y = np.empty(rows.shape, x.dtype)
    mean, rstd = np.empty(shape.rows, dtype), np.empty(shape.rows, dtype)
    weights, biases = shape.by_row(widened(weight, dtype)), shape.by_row(widened(bias, dtype))
    ones = np.ones(shape.size, dtype)

    def work(parts: Iterator[slice]) -> None:
        narrow_buffer(shape.length)
        for part in parts:
            given, factor = rows[part], rstd[part]
            with scratch() as memory:
                out = y[part] if stays else memory.empty(given.shape, dtype)
                if not stays:
                    np.copyto(out, given, casting="unsafe")
                    given = out
                own_mean = mean[part]
                var = near_variance(given, own_mean, ones)
                near = var is not None
                if var is None:
                    var, given = centre(given, out, own_mean, ones), out
                inverse_root(var, eps, factor)
                scale = factor[:, None] if weights is None else factor[:, None] * weights[part]
                shift = None if biases is None else biases[part]
                if near:
                    moved = own_mean[:, None] * scale
                    shift = -moved if shift is None else shift - moved
                channels = shape.channels(out)
                np.multiply(shape.channels(given), scale[..., None], out=channels)
                if shift is not None:
                    channels += shift[..., None]
                if not stays:
                    np.copyto(y[part], out, casting="unsafe")

    if x.size:
        pieces = parallel.split(shape.rows, rows_of_a_piece(shape.size, dtype, PIECE_BYTES))
        parallel.share(work, pieces, parallel.worth(x.nbytes))
    return y.reshape(x.shape), mean.reshape(shape.outer), rstd.reshape(shape.outer)


def group_norm_grad(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    groups: int,
    with_weight: bool = True,
    with_bias: bool = True,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """With c = x - mean and <> the mean of a group: dx = rstd (dy weight - <dy weight> - c rstd² <dy weight c>)."""
    shape = _Shape(x.shape, groups)
    dtype = compute_dtype(x.dtype)
    stays = x.dtype == dtype
    dys, rows = dy.reshape(shape.rows, shape.size), x.reshape(shape.rows, shape.size)
    dx = np.empty(rows.shape, x.dtype)
    means, factors = mean.reshape(-1, 1), rstd.reshape(-1, 1)
    weights = shape.by_row(widened(weight, dtype))
    # Sums over each channel of each image: of dy, and of dy times the normal numbers.
    sums, products = (np.zeros((shape.rows, shape.depth), dtype) for _ in range(2))
    share = dtype.type(-1 / max(shape.size, 1))
    ones = np.ones(shape.length, dtype)

    def work(parts: Iterator[slice]) -> None:
        narrow_buffer(shape.length)
        for part in parts:
            g, given, factor = dys[part], rows[part], factors[part]
            with scratch() as memory:
                h = memory.empty(given.shape, dtype)
                c = dx[part] if stays else memory.empty(given.shape, dtype)
                if not stays:
                    np.copyto(h, g, casting="unsafe")
                    np.copyto(c, given, casting="unsafe")
                    g, given = h, c
                own_mean = means[part]
                near = (np.abs(own_mean) * factor).max() <= NEAR
                if not near:
                    given = np.subtract(given, own_mean, out=c)
                lines = shape.lines(g)
                own_sums = dots(lines, ones).reshape(-1, shape.depth)
                own_products = dots(lines, shape.lines(given)).reshape(-1, shape.depth)
                if near:
                    own_products -= own_mean * own_sums
                own_products *= factor
                sums[part], products[part] = own_sums, own_products
                scale = factor if weights is None else factor * weights[part]
                level = (own_sums * scale).sum(axis=1, keepdims=True) * share
                slope = (own_products * scale).sum(axis=1, keepdims=True) * factor * share
                if near:
                    level -= own_mean * slope
                np.multiply(shape.channels(g), scale[..., None], out=shape.channels(h))
                np.multiply(given, slope, out=c)
                c += level
                c += h
                if not stays:
                    np.copyto(dx[part], c, casting="unsafe")

    if x.size:
        pieces = parallel.split(shape.rows, rows_of_a_piece(shape.size, dtype, PIECE_BYTES))
        parallel.share(work, pieces, parallel.worth(x.nbytes))
    kind = x.dtype if weight is None else weight.dtype
    by_weight = shape.of_channels(products).astype(kind) if with_weight else None
    by_bias = shape.of_channels(sums).astype(kind) if with_bias else None
    return dx.reshape(x.shape), by_weight, by_bias


class _Shape:
    """(N, C, ...) as rows, one for each group of an image: `depth` channels of `length` elements."""

    def __init__(self, shape: tuple[int, ...], groups: int) -> None:
        self.outer = shape[0], groups
        self.rows = shape[0] * groups
        self.depth = shape[1] // groups
        self.length = prod(shape[2:])
        self.size = self.depth * self.length

    def by_row(self, vector: np.ndarray | None) -> np.ndarray | None:
        """One number for each channel as (rows, depth)."""
        return None if vector is None else np.tile(vector, self.outer[0]).reshape(self.rows, self.depth)

    def channels(self, rows: np.ndarray) -> np.ndarray:
        """Contiguous rows as (rows, depth, length)."""
        return rows.reshape(-1, self.depth, self.length)

    def lines(self, rows: np.ndarray) -> np.ndarray:
        """Contiguous rows as (rows · depth, length)."""
        return rows.reshape(-1, self.length)

    def of_channels(self, sums: np.ndarray) -> np.ndarray:
        """The sum over the images."""
        return column_sums(sums.reshape(self.outer[0], self.outer[1] * self.depth))
