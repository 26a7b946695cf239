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
    cells = _Cells(dy.shape[2:], indices.shape[2:])

    def work(parts: Iterator[slice]) -> None:
        for part in parts:
            apart = cells.hold(positions[part])
            flat = _flat("max_unpool_input_grad", positions[part], plane, checked=apart)
            # The fastest mode: the positions are known to be right.
            np.take(grads[part].reshape(-1), flat, out=dx[part], mode="wrap")
            if not apart:
                dx[part][_replaced(flat, len(flat) * plane)] = 0

    parallel.share(work, parallel.split(planes, step))
    return dx.reshape(indices.shape)


class _Cells:
    """A plane cut into equal cells, one for each element: positions in cells of their own are all different."""

    def __init__(self, size: Sizes, counts: Sizes) -> None:
        self.starts, self.inside = np.zeros(1, np.int64), np.zeros(1, np.int64)
        for length, count in zip(size, counts, strict=True):
            cell = length // max(1, count)
            self.starts = np.add.outer(self.starts * length, np.arange(count) * cell).reshape(-1)
            self.inside = np.add.outer(self.inside * length, np.arange(cell)).reshape(-1)
        self.belongs = np.zeros(self.inside.max(initial=-1) + 1, bool)
        self.belongs[self.inside] = True

    def hold(self, positions: np.ndarray) -> bool:
        """Whether each position lies in its element's cell."""
        from_start = positions - self.starts
        # A negative number is a large one without its sign.
        if positions.size and int(from_start.view(np.uint64).max()) >= self.belongs.size:
            return False
        return self.inside.size == self.belongs.size or bool(self.belongs.take(from_start, mode="wrap").all())


def _replaced(flat: np.ndarray, size: int) -> np.ndarray:
    """Which elements share their place with a later one."""
    winners, numbers = np.empty(size, np.int64), np.arange(flat.size).reshape(flat.shape)
    winners[flat] = numbers
    return winners.take(flat) != numbers


def _flat(operation: str, positions: np.ndarray, plane: int, checked: bool = False) -> np.ndarray:
    """Positions in the memory of several planes."""
    if positions.size and not checked and int(positions.view(np.uint64).max()) >= plane:
        raise ValueError(
            f"{operation}: indices must be positions in a plane of {plane} elements, got {positions.min()} to "
            f"{positions.max()}"
        )
    return positions + np.arange(len(positions))[:, None] * plane
