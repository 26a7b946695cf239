"""Sums over all but the channels of images.

Not as products with ones: those wake the threads of BLAS, which then spin beside ours for 26 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from . import parallel
from .arithmetic import compute_dtype
from .scratch import scratch

_LONG_PLANE = 32  # from here on planes are added up first, else images
_PIECE_BYTES = 1 << 19


def conv_bias_grad(dy: np.ndarray) -> np.ndarray:
    images, channels, *sizes = dy.shape
    plane, dtype = prod(sizes), compute_dtype(dy.dtype)
    if dy.size == 0:
        return np.zeros(channels, dy.dtype)
    shape = (images * channels, plane) if plane >= _LONG_PLANE else (images, channels * plane)
    rows = np.ascontiguousarray(dy).reshape(shape)
    along_rows = plane >= _LONG_PLANE
    # Added up in this type are at most the elements of a plane, or the images; what is left is little.
    sums = _add(rows, along_rows) if dy.dtype == dtype else _add_half_types(rows, dtype, along_rows)
    if along_rows:
        return sums.reshape(images, channels).sum(0, dtype=np.float64).astype(dy.dtype)
    return sums.reshape(channels, plane).sum(1, dtype=np.float64).astype(dy.dtype)


def _add(rows: np.ndarray, along_rows: bool) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.einsum("ij->i", rows) if along_rows else np.add.reduce(rows, axis=0)


def _add_half_types(rows: np.ndarray, dtype: np.dtype, along_rows: bool) -> np.ndarray:
    """The same of pieces, each widened on its way."""
    step = max(1, _PIECE_BYTES // (rows.shape[1] * dtype.itemsize))
    pieces = list(enumerate(parallel.split(len(rows), step)))
    sums = np.empty(len(rows) if along_rows else (len(pieces), rows.shape[1]), dtype)

    def run(some: Iterator[tuple[int, slice]]) -> None:
        with scratch() as memory:
            wide = memory.empty((min(step, len(rows)), rows.shape[1]), dtype)
            for number, piece in some:
                values = wide[: piece.stop - piece.start]
                np.copyto(values, rows[piece])
                sums[piece if along_rows else number] = _add(values, along_rows)

    parallel.share(run, pieces, parallel.worth(rows.nbytes))
    return sums if along_rows else sums.sum(0, dtype=np.float64)
