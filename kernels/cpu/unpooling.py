"""Max unpooling of planes on threads."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from ..geometry.pooling import Sizes
from . import parallel

_PIECE = 1 << 18  # elements of the output


def max_unpool(x: np.ndarray, indices: np.ndarray, output_size: Sizes) -> np.ndarray:
    planes, plane = x.shape[0] * x.shape[1], prod(output_size)
    y = np.empty((planes, plane), x.dtype)
    values, positions = x.reshape(planes, prod(x.shape[2:])), indices.reshape(planes, prod(x.shape[2:]))

    def work(parts: Iterator[slice]) -> None:
        for part in parts:
            y[part] = 0
            # Of several values for one place NumPy keeps the last.
            y[part].reshape(-1)[_flat("max_unpool", positions[part], plane)] = values[part]

    parallel.share(work, parallel.split(planes, max(1, _PIECE // max(1, plane))))
    return y.reshape(*x.shape[:2], *output_size)


def max_unpool_input_grad(dy: np.ndarray, indices: np.ndarray) -> np.ndarray:
    planes, plane = dy.shape[0] * dy.shape[1], prod(dy.shape[2:])
    grads, positions = dy.reshape(planes, plane), indices.reshape(planes, prod(indices.shape[2:]))
    dx = np.empty(positions.shape, dy.dtype)
    step = max(1, _PIECE // max(1, plane))

    def work(parts: Iterator[slice]) -> None:
        taken = np.empty(min(step, planes) * plane, bool)
        for part in parts:
            flat = _flat("max_unpool_input_grad", positions[part], plane)
            # The fastest mode: the positions are known to be right.
            np.take(grads[part].reshape(-1), flat, out=dx[part], mode="wrap")
            taken.fill(False)
            taken[flat] = True
            if np.count_nonzero(taken) < flat.size:
                dx[part][_replaced(flat, taken.size)] = 0

    parallel.share(work, parallel.split(planes, step))
    return dx.reshape(indices.shape)


def _replaced(flat: np.ndarray, size: int) -> np.ndarray:
    """Which elements share their place with a later one."""
    winners, numbers = np.empty(size, np.int64), np.arange(flat.size).reshape(flat.shape)
    winners[flat] = numbers
    return winners.take(flat) != numbers


def _flat(operation: str, positions: np.ndarray, plane: int) -> np.ndarray:
    """Positions in the memory of several planes."""
    # A negative number is a large one without its sign.
    if positions.size and int(positions.view(np.uint64).max()) >= plane:
        raise ValueError(
            f"{operation}: indices must be positions in a plane of {plane} elements, got {positions.min()} to "
            f"{positions.max()}"
        )
    return positions + np.arange(len(positions))[:, None] * plane
