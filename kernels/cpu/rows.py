"""What the kernels that work on rows share: pieces of rows, and each row's maximum, sum and dot product."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from . import parallel

_PIECE_BYTES = 2 << 20  # smaller ones are passed on too often
# Above this OpenBLAS shares a dot product among its own threads.
_LONGEST_DOT = 8192
# Elements of a short row; and of a matrix whose product with a vector OpenBLAS computes on the calling thread.
_SHORT_ROW = 256
_SMALL_PRODUCT = 1 << 18
# NumPy copies one number per row into a buffer, once for each column, where two rows fit into it.
_BUFFER = 512


def rows_of_a_piece(size: int, dtype: np.dtype, piece_bytes: int = _PIECE_BYTES) -> int:
    """How many rows of `size` elements a piece has."""
    return max(1, piece_bytes // (size * dtype.itemsize))


def split_rows(rows: int, size: int, dtype: np.dtype) -> list[slice]:
    """Rows of `size` elements in pieces: one for each thread where they are large enough to be shared at all."""
    step = rows_of_a_piece(size, dtype)
    if parallel.worth(rows * size * dtype.itemsize) is None:
        step = min(step, -(-rows // parallel.threads()))
    return parallel.split(rows, step)


def narrow_buffer(size: int) -> None:
    """Let NumPy read one number per row in place; `parallel.share` sets the buffer back."""
    if 2 * size > _BUFFER:
        np.setbufsize(_BUFFER)


def largest(rows: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """The maximum of each row as a column, the first NaN where there is one; `lines` numbers the rows."""
    return rows[lines, rows.argmax(axis=1), None]  # faster than max


def sums(rows: np.ndarray) -> np.ndarray:
    """The sum of each row."""
    columns = rows.shape[1]
    ones = _ones(min(columns, _LONGEST_DOT), rows.dtype)
    if 0 < columns <= _SHORT_ROW:  # several times faster than one dot product after the other
        parts = parallel.split(len(rows), _SMALL_PRODUCT // columns)
        return np.concatenate([rows[part] @ ones for part in parts]) if len(parts) > 1 else rows @ ones
    result = np.vecdot(rows[:, :_LONGEST_DOT], ones)
    for start in range(_LONGEST_DOT, columns, _LONGEST_DOT):
        result += np.vecdot(rows[:, start : start + _LONGEST_DOT], ones[: columns - start])
    return result


@lru_cache(maxsize=32)
def _ones(count: int, dtype: np.dtype) -> np.ndarray:
    return np.ones(count, dtype)


def dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The dot product of each row of `a` with that row of `b`, or with the one row `b`."""
    result = np.vecdot(a[..., :_LONGEST_DOT], b[..., :_LONGEST_DOT])
    for start in range(_LONGEST_DOT, a.shape[-1], _LONGEST_DOT):
        end = start + _LONGEST_DOT
        result += np.vecdot(a[..., start:end], b[..., start:end])
    return result
