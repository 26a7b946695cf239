"""Embeddings: a gather of rows, and its gradient by rounds.

For the gradient the indices are sorted. Round k adds the k-th row of dy of all rows of weight that have one, which
are neighbours in the order of how many they have; what is left of rows with many is summed row by row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import parallel
from .arithmetic import compute_dtype

_PIECE_BYTES = 512 << 10
_ROUNDS = 8


def embedding(weight: np.ndarray, indices: np.ndarray) -> np.ndarray:
    dim = weight.shape[1]
    rows = _checked("embedding", indices, len(weight)).reshape(-1)
    result = np.empty((len(rows), dim), weight.dtype)

    def work(parts: Iterator[slice]) -> None:
        for part in parts:
            if weight.flags.c_contiguous:  # take copies any other
                np.take(weight, rows[part], axis=0, out=result[part], mode="clip")
            else:
                result[part] = weight[rows[part]]

    parallel.share(work, parallel.split(len(rows), _step(dim, weight.dtype)))
    return result.reshape(*indices.shape, dim)


def embedding_weight_grad(
    dy: np.ndarray, indices: np.ndarray, num_embeddings: int, padding_idx: int = -1, scale_grad_by_freq: bool = False
) -> np.ndarray:
    dim = dy.shape[-1]
    rows = _checked("embedding_weight_grad", indices, num_embeddings).reshape(-1)
    given = np.ascontiguousarray(dy).reshape(len(rows), dim)  # take copies any other, each time
    result = np.zeros((num_embeddings, dim), dy.dtype)
    dtype = compute_dtype(dy.dtype)
    order = _stable_order(rows, num_embeddings)
    taken = rows[order]
    starts = np.flatnonzero(np.diff(taken, prepend=-1))
    counts = np.diff(starts, append=len(taken))
    if padding_idx >= 0:
        kept = taken[starts] != padding_idx
        starts, counts = starts[kept], counts[kept]
    most_first = np.argsort(-counts, kind="stable")
    starts, counts = starts[most_first], counts[most_first]

    def work(parts: Iterator[slice]) -> None:
        for part in parts:
            first, times = starts[part], counts[part]
            sums = given.take(order[first], axis=0).astype(dtype, copy=False)
            for k in range(1, min(_ROUNDS, int(times[0]))):
                some = first[: np.searchsorted(-times, -k)]
                sums[: len(some)] += given.take(order[some + k], axis=0)
            for i in range(np.searchsorted(-times, -_ROUNDS)):
                rest = order[first[i] + _ROUNDS : first[i] + times[i]]
                sums[i] += given.take(rest, axis=0).sum(axis=0, dtype=dtype)
            if scale_grad_by_freq:
                sums /= times[:, None].astype(dtype)
            result[taken[first]] = sums

    parallel.share(work, parallel.split(len(starts), _step(dim, dtype)))
    return result


def embedding_renorm(weight: np.ndarray, indices: np.ndarray, max_norm: float, norm_type: float = 2.0) -> np.ndarray:
    rows = np.unique(_checked("embedding_renorm", indices, len(weight)))
    taken = weight[rows].astype(compute_dtype(weight.dtype), copy=False)
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(taken, norm_type, axis=1)
        large = norms > max_norm
        # PyTorch's: the result is a little below the norm allowed.
        factors = max_norm / (norms[large] + 1e-7)
        weight[rows[large]] = taken[large] * factors[:, None].astype(taken.dtype)
    return weight


def _step(dim: int, dtype: np.dtype) -> int:
    """How many rows stay in the cache together."""
    return max(1, _PIECE_BYTES // (max(dim, 1) * dtype.itemsize))


def _stable_order(rows: np.ndarray, bound: int) -> np.ndarray:
    """The positions of `rows` in ascending order, equal ones as they stand."""
    n = len(rows)
    if n * bound >= 2**62:
        return np.argsort(rows, kind="stable")
    numbered = rows * n  # to sort numbers alone is the fastest
    numbered += np.arange(n)
    numbered.sort()
    numbered %= max(n, 1)
    return numbered


def _checked(operation: str, indices: np.ndarray, bound: int) -> np.ndarray:
    rows = indices.astype(np.intp, copy=False)
    # Without its sign a negative number is larger than any row.
    if np.ascontiguousarray(rows).view(np.uintp).max(initial=0) < max(bound, not rows.size):
        return rows
    wrong = (indices < 0) | (indices >= bound)
    place = np.unravel_index(int(wrong.argmax()), wrong.shape)
    at = f" at {tuple(map(int, place))}" if place else ""
    raise ValueError(f"{operation}: index {int(indices[place])}{at} is out of range for {bound} rows")
