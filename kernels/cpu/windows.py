"""The windows of pooling as runs of memory.

The padded planes of a piece are split into phases: the rows and columns whose position is r, c modulo the
stride. In its phase, what one tap of the window sees from all outputs of all planes is a single contiguous
run, shifted by some rows and columns. So each tap is one NumPy call over long runs, whatever the stride,
padding and dilation.

Runs have the pitch of a phase, (hq, qp) a plane, which is larger than (P, Q) where windows overlap. What is
past P and Q has no meaning.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .taps import Window

_PIECE_BYTES = 2 << 20  # smaller ones are passed on too often between threads


class Windows:
    """How the planes (planes, H, W) of one pooling are split into phases and merged again."""

    def __init__(self, window: Window, dtype: np.dtype) -> None:
        self.size, self.pooled, self.kernel_size, self.stride, self.padding, self.dilation = window
        self.dtype = dtype
        self.hq, self.qp = (
            count + (taps - 1) * gap // step for _, count, taps, step, _, gap in zip(*window, strict=True)
        )
        #: Whether windows reach past the input, into padding or beyond it.
        self.reach_out = any(
            pad > 0 or (count - 1) * step + (taps - 1) * gap >= size
            for size, count, taps, step, pad, gap in zip(*window, strict=True)
        )
        self.planes = max(1, _PIECE_BYTES // (self.stride[0] * self.stride[1] * self.hq * self.qp * dtype.itemsize))

    def rows(self, planes: int, fill: float) -> np.ndarray:
        """Memory for `split` and `merge`: (stride, planes, hq, qp * stride)."""
        return np.full((self.stride[0], planes, self.hq, self.qp * self.stride[1]), fill, self.dtype)

    def split(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Phases (column phase, row phase, planes * hq * qp) of x, around it what `rows` was filled with."""
        rows = rows[:, : len(x)]
        for phase, inside, source in self._row_phases():
            np.copyto(rows[phase][inside], x[source], casting="unsafe")
        step = self.stride[1]
        phases = np.empty((step, self.stride[0], rows[0].size // step), self.dtype)
        for column in range(step):
            np.copyto(phases[column].reshape((*rows.shape[:-1], self.qp)), rows[..., column::step])
        return phases

    def merge(self, phases: list[np.ndarray | None], dx: np.ndarray, rows: np.ndarray) -> None:
        """Write column phases (row phase, planes * hq * qp) to dx, zero where there is none."""
        rows = rows[:, : len(dx)]
        for column, values in enumerate(phases):
            target = rows[..., column :: self.stride[1]]
            np.copyto(target, 0 if values is None else values.reshape(target.shape))
        covered = [min(n, count * step - pad) for n, count, step, pad in self._extents()]
        dx[:, covered[0] :] = 0
        dx[:, :, covered[1] :] = 0
        for phase, inside, source in self._row_phases():
            np.copyto(dx[source], rows[phase][inside], casting="unsafe")

    def taps(self, axis: int) -> Iterator[tuple[int, int, int]]:
        """(tap, phase, shift) along an axis: tap reads its phase, shifted by so many rows or columns."""
        for tap in range(self.kernel_size[axis]):
            shift, phase = divmod(tap * self.dilation[axis], self.stride[axis])
            yield tap, phase, shift

    def spread(self, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Values (planes, P, Q) at the pitch of a phase, zero where there is no output; flat."""
        if (self.hq, self.qp) == self.pooled:
            return values.astype(dtype, copy=False).reshape(-1)
        spread = np.zeros((len(values), self.hq, self.qp), dtype)
        np.copyto(spread[:, : self.pooled[0], : self.pooled[1]], values, casting="unsafe")
        return spread.reshape(-1)

    def outputs(self, run: np.ndarray) -> np.ndarray:
        """View (planes, P, Q) of a run at the pitch of a phase."""
        return run.reshape(-1, self.hq, self.qp)[:, : self.pooled[0], : self.pooled[1]]

    def _extents(self) -> Iterator[tuple[int, int, int, int]]:
        return zip(self.size, (self.hq, self.qp), self.stride, self.padding, strict=True)

    def _row_phases(self) -> Iterator[tuple[int, tuple, tuple]]:
        """For each row phase: where its rows lie in the memory of `rows`, and where in x."""
        (height, hq, step, top), (width, qp, column_step, left) = self._extents()
        columns = min(width, qp * column_step - left)
        for phase in range(step):
            first = max(0, -((phase - top) // step))
            start = first * step + phase - top
            count = max(0, min(hq - first, (height - start + step - 1) // step))
            yield (
                phase,
                (slice(None), slice(first, first + count), slice(left, left + columns)),
                (slice(None), slice(start, start + count * step, step), slice(0, columns)),
            )
