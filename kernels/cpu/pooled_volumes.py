"""Volumes (planes, D, H, W) pooled in pieces, on threads: what one, two and three axes have in common.

An input of fewer axes is a volume of depth 1 and perhaps height 1. A volume is a stack of slices, which `windows`
pools in long runs of memory; the depth comes on top of that, slice by slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import numpy as np

from . import gathered, parallel, taps
from .arithmetic import compute_dtype
from .taps import Span, Window
from .windows import Windows

# With more phases than this their runs are short.
_MOST_PHASES = 16

Sizes = tuple[int, ...]


class Volumes:
    """One pooling, lifted to three axes."""

    def __init__(
        self,
        x_shape: Sequence[int],
        y_shape: Sequence[int],
        kernel_size: Sizes,
        stride: Sizes,
        padding: Sizes,
        dilation: Sizes,
        dtype: np.dtype,
    ) -> None:
        size, pooled = tuple(x_shape[2:]), tuple(y_shape[2:])
        ones = (1,) * (3 - len(kernel_size))
        self.window = Window(
            ones + size, ones + pooled, ones + kernel_size, ones + stride, (0,) * len(ones) + padding, ones + dilation
        )
        self.planes = x_shape[0] * x_shape[1]
        self.dtype = compute_dtype(dtype)
        #: Whether windows are far apart, each best taken as a whole.
        self.apart = gathered.serves(self.window)
        self.runs = Windows(Window(*(setting[1:] for setting in self.window)), self.dtype)
        self.by_runs = self._runs_are_long()
        self.spans = taps.spans(self.window, 0)
        depth, out_depth, taps_, step, pad, gap = (setting[0] for setting in self.window)
        #: Whether the depth is more than a pile of slices pooled one by one.
        self.deep = taps_ > 1 or step > 1 or pad > 0
        #: Whether windows reach past the input, into padding or beyond it.
        self.reach_out = self.runs.reach_out or pad > 0 or (out_depth - 1) * step + (taps_ - 1) * gap >= depth

    def __call__(self, piece: Callable[..., None], fill: float, *arrays: np.ndarray) -> None:
        """Call `piece` with memory for the runs, filled, and with some volumes of each array, on all threads."""
        depth = self.window.size[0]
        flat = [array.reshape(self.planes, *(1,) * (5 - array.ndim), *array.shape[2:]) for array in arrays]
        step = max(1, self.runs.planes // depth)

        def work(parts: Iterator[slice]) -> None:
            rows = self.runs.rows(min(step, self.planes) * depth, fill) if self.by_runs else None
            for part in parts:
                piece(rows, *(array[part] for array in flat))

        parallel.share(work, parallel.split(self.planes, step))

    def _runs_are_long(self) -> bool:
        if self.apart and prod(self.window.pooled) == 1:
            return False
        return self.runs.stride[0] * self.runs.stride[1] <= _MOST_PHASES

    def slices(self, volumes: np.ndarray) -> np.ndarray:
        """(planes, D, H, W) as (planes * D, H, W)."""
        return volumes.reshape(-1, *volumes.shape[2:])

    def stack(self, run: np.ndarray, depth: int) -> np.ndarray:
        """A run over all slices as (planes, depth, one slice), or, where slices are pooled one by one, (1, 1, all)."""
        pitch = self.runs.hq * self.runs.qp
        return run.reshape(-1, depth, pitch) if self.deep else run.reshape(1, 1, -1)

    def places(self) -> list[Span]:
        """The taps along a stack."""
        return self.spans if self.deep else [Span(0, slice(None), slice(None))]

    def in_compute_dtype(self, dx: np.ndarray, fill: Callable[[np.ndarray], None]) -> None:
        """Let sums be made in the compute type and rounded once."""
        if dx.dtype == self.dtype:
            fill(dx)
            return
        sums = np.empty(dx.shape, self.dtype)
        fill(sums)
        np.copyto(dx, sums, casting="unsafe")
