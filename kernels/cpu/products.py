"""Matrix products on the calling thread, in shapes at which BLAS is quick."""

from __future__ import annotations

from math import isqrt

import numpy as np

from .parallel import SMALL_PRODUCT

# BLAS makes so many rows and columns at once: products of other sizes leave a part of its registers empty.
_ROWS = 4
_COLUMNS = 8


def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """a (..., m, k) @ b (..., k, n) in out (..., m, n), in products that BLAS computes on the calling thread."""
    (m, inside), n = a.shape[-2:], b.shape[-1]
    if m * inside * n <= SMALL_PRODUCT:
        np.matmul(a, b, out=out)
        return
    rows, columns = _sizes(m, inside, n)
    # One call for many parts, which takes each matrix of a stack from end to end before the next one.
    for some, row_parts in _runs(m, rows):
        left = a[..., some, :].reshape(*a.shape[:-2], row_parts, 1, -1, inside)
        for part, column_parts in _runs(n, columns):
            right = b[..., part].reshape(*b.shape[:-1], column_parts, -1)
            target = out[..., some, part].reshape(*out.shape[:-2], row_parts, left.shape[-2], column_parts, -1)
            np.matmul(left, right.swapaxes(-2, -3)[..., None, :, :, :], out=target.swapaxes(-2, -3))


def _runs(count: int, size: int) -> list[tuple[slice, int]]:
    """range(count) as a run of parts of `size` and what remains, each with its number of parts."""
    parts, rest = divmod(count, size)
    runs = [(slice(0, parts * size), parts), (slice(parts * size, count), 1)]
    return runs if rest else runs[:1]


def _sizes(m: int, inside: int, n: int) -> tuple[int, int]:
    """Rows and columns of the parts of a product: nearly square, and of about one size."""
    area = max(1, SMALL_PRODUCT // max(1, inside))
    side = isqrt(area)
    rows = m if m <= side else max(area // n, side)
    rows = _evenly(m, rows, _ROWS)
    return rows, _evenly(n, max(1, area // rows), _COLUMNS)


def _evenly(count: int, most: int, multiple: int) -> int:
    """A length of at most `most`, a multiple if there is one, for parts of `count` of about one length."""
    if count <= most:
        return count
    most = max(most // multiple * multiple, 1) if most >= multiple else most
    parts = -(-count // most)
    return min(most, -(-count // (parts * multiple)) * multiple)
