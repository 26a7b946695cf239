"""Norms of gradients: partial sums of pieces, added in their order, whatever thread computed them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .arithmetic import compute_dtype
from .pieces import Piece, pieces, share

# Longer dot products OpenBLAS shares among threads of its own.
_LONGEST_DOT = 8192


def grad_norm(grads: Sequence[np.ndarray], norm_type: float = 2.0) -> np.ndarray:
    order = float(norm_type)
    found = pieces([grads])
    partials = np.zeros(len(found))

    def work(rest: Iterator[tuple[int, Piece]]) -> None:
        for i, ((array,), part) in rest:
            partials[i] = _partial(array if part is None else array[part], order)

    share(work, list(enumerate(found)), [grads])
    with np.errstate(all="ignore"):
        if order == math.inf:
            total = partials.max(initial=0)
        else:
            total = partials.sum()
            total = np.sqrt(total) if order == 2 else total ** (1 / order)
        return np.asarray(total, np.float64 if any(grad.dtype == np.float64 for grad in grads) else np.float32)


def clip_grads(grads: Sequence[np.ndarray], max_norm: float, total_norm: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        norm = total_norm.astype(compute_dtype(total_norm.dtype), copy=False)
        factor = norm.dtype.type(max_norm) / (norm + norm.dtype.type(1e-6))
    if factor >= 1:
        return

    def work(rest: Iterator[Piece]) -> None:
        for (array,), part in rest:
            piece = array if part is None else array[part]
            dtype = compute_dtype(piece.dtype)
            np.multiply(piece, np.asarray(factor, dtype), out=piece, dtype=dtype, casting="unsafe")

    share(work, pieces([grads]), [grads])


def clip_grad_norm(grads: Sequence[np.ndarray], max_norm: float, norm_type: float = 2.0) -> np.ndarray:
    total = grad_norm(grads, norm_type)
    clip_grads(grads, max_norm, total)
    return total


def clamp_grads(grads: Sequence[np.ndarray], limit: float) -> None:
    def work(rest: Iterator[Piece]) -> None:
        for (array,), part in rest:
            piece = array if part is None else array[part]
            most = piece.dtype.type(limit)
            np.maximum(piece, -most, out=piece)
            np.minimum(piece, most, out=piece)

    share(work, pieces([grads]), [grads])


def _partial(array: np.ndarray, order: float) -> float:
    """The sum of the powers of an array's elements, or their maximum."""
    flat = array.reshape(-1).astype(compute_dtype(array.dtype), copy=False)
    if order == 2:
        return _squares(flat)
    size = np.abs(flat)
    if order == math.inf:
        return size.max()
    return float(size.sum() if order == 1 else (size**order).sum())


def _squares(flat: np.ndarray) -> float:
    if len(flat) <= _LONGEST_DOT:
        return np.dot(flat, flat)
    whole = len(flat) // _LONGEST_DOT * _LONGEST_DOT
    rows = flat[:whole].reshape(-1, _LONGEST_DOT)
    return np.vecdot(rows, rows).sum(dtype=np.float64) + np.dot(flat[whole:], flat[whole:])
