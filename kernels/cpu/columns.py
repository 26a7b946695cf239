"""Images unfolded to columns, and columns folded back, a piece at a time.

The columns of an image are a matrix (C * R * S, positions): a row for each channel and tap, holding what that
tap sees from each position of the output. A piece is small enough for its columns to stay in the cache.

With stride 1 the positions may be pitched: laid out with the width of the padded image. Then what a tap sees
is one run of memory instead of one per output row, and the positions past the end of each output row have no
meaning (`Unfolding.meaningful` leaves them out).
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from ..geometry import Pair
from .conv_choice import Problem
from .parallel import split


class Piece(NamedTuple):
    """Some rows of the output of some images."""

    images: slice
    rows: slice

    @property
    def size(self) -> Pair:
        return self.images.stop - self.images.start, self.rows.stop - self.rows.start


class Block(NamedTuple):
    """Some channels of some groups of some images."""

    images: slice
    groups: slice
    channels: slice


class Unfolding:
    """How the images (N, C, H, W) of one convolution become columns of type `dtype`, and back.

    A piece has at most `rows` rows of the output and about `piece_bytes` of columns. With `ones`, which takes a single
    group, a row of ones lies below its columns.
    """

    def __init__(self, problem: Problem, pitched: bool, rows: int, piece_bytes: int, ones: bool = False) -> None:
        taps, size, stride, padding = problem.taps, problem.y_shape[2:], problem.stride, problem.padding
        self.n, self.channels, self.height, self.width = problem.x_shape
        self.taps, self.size, self.stride, self.padding, self.dilation = taps, size, stride, padding, problem.dilation
        self.groups, self.dtype, self.pitched, self.piece_bytes = problem.groups, problem.computed, pitched, piece_bytes
        self.padded_width = self.width + sum(padding[1])
        self.pitch = self.padded_width if pitched else size[1]
        self.depth, self.ones = problem.depth, int(ones)
        # A 1x1 convolution with nothing around the image: the image is its own columns.
        self.plain = taps == (1, 1) and stride == (1, 1) and padding == ((0, 0), (0, 0))
        # What is unfolded, or the padded input where a stride leaves most of it out.
        row = max(self.groups * self.depth * self.pitch, self.channels * stride[0] * self.padded_width)
        row_bytes = max(1, row * self.dtype.itemsize)
        self.rows = max(1, min(piece_bytes // row_bytes, rows, size[0]))
        self.images = max(1, min(piece_bytes // (row_bytes * self.rows), self.n))

    def pieces(self) -> list[Piece]:
        return [Piece(images, rows) for images in split(self.n, self.images) for rows in split(self.size[0], self.rows)]

    def blocks(self) -> list[Block]:
        """The images in blocks with about `piece_bytes` of columns."""
        inside = self.channels // self.groups
        channel_bytes = max(1, self.taps[0] * self.taps[1] * self.size[0] * self.pitch * self.dtype.itemsize)
        channels = max(1, min(self.piece_bytes // channel_bytes, inside))
        groups = max(1, min(self.piece_bytes // (channel_bytes * channels), self.groups))
        images = max(1, self.piece_bytes // (channel_bytes * channels * groups))
        return [
            Block(*block)
            for block in (
                (n, g, c)
                for n in split(self.n, images if groups * channels >= self.channels else 1)
                for g in split(self.groups, groups)
                for c in split(inside, channels)
            )
        ]

    def buffers(self) -> tuple[np.ndarray, np.ndarray]:
        """Memory in which to unfold one piece at a time: its padded input, zero, and its columns."""
        shape = (self.images, self.channels, self._input_rows(self.rows), self.padded_width)
        columns = self.images * (self.groups * self.depth + self.ones) * self.rows * self.pitch
        return np.zeros(shape, self.dtype), np.empty((columns,), self.dtype)

    def unfold(
        self, x: np.ndarray, piece: Piece, buffers: tuple[np.ndarray, np.ndarray], together: bool = False
    ) -> np.ndarray:
        """The columns (n, groups, depth or one more, positions) of a piece of x.

        If `together`, (groups, depth, n * positions).
        """
        n, rows = piece.size
        if self.plain and x.dtype == self.dtype and not together:
            return x[piece.images, :, piece.rows].reshape(n, self.groups, self.depth, rows * self.pitch)
        padded, columns = buffers
        self._pad(x, piece, padded[:n])
        seen = self._seen(padded[:n], rows)
        if together:
            columns = columns[: seen.size].reshape(*seen.shape[1:4], n, *seen.shape[4:])
            np.copyto(np.moveaxis(columns, 3, 0), seen)
            return columns.reshape(self.groups, self.depth, n * rows * self.pitch)
        made = (n, self.groups, self.depth + self.ones, rows * self.pitch)
        columns = columns[: prod(made)].reshape(made)
        columns[:, :, self.depth :] = 1
        np.copyto(columns[:, :, : self.depth].reshape(seen.shape), seen)
        return columns

    def fold(self, columns: np.ndarray, channels: int) -> np.ndarray:
        """Add columns (n, ..., positions) to where they came from: (n, channels, H, W)."""
        # A stride may leave the last rows of the input unseen.
        height = max(self._input_rows(self.size[0]), self.padding[0][0] + self.height)
        padded = np.zeros((len(columns), channels, height, self.padded_width), self.dtype)
        seen = self._seen(padded, self.size[0])
        columns = columns.reshape(seen.shape)
        for i in range(self.taps[0]):
            for j in range(self.taps[1]):
                seen[:, :, i, j] += columns[:, :, i, j]
        (top, _), (left, _) = self.padding
        return padded[:, :, top : top + self.height, left : left + self.width]

    def meaningful(self, values: np.ndarray) -> np.ndarray:
        """View (..., rows, Q) of values (..., positions)."""
        return values.reshape(*values.shape[:-1], -1, self.pitch)[..., : self.size[1]]

    def _seen(self, padded: np.ndarray, rows: int) -> np.ndarray:
        """View (n, C, R, S, positions) of padded images: what each tap sees."""
        sn, sc, sh, sw = padded.strides
        steps: tuple[int, ...] = (sn, sc, sh * self.dilation[0], sw * self.dilation[1])
        if self.pitched:
            positions: tuple[int, ...] = (rows * self.pitch,)
            steps += (sw,)
        else:
            positions = (rows, self.pitch)
            steps += (sh * self.stride[0], sw * self.stride[1])
        # A tenth of the time of as_strided.
        return np.ndarray((*padded.shape[:2], *self.taps, *positions), padded.dtype, padded, 0, steps)

    def _input_rows(self, rows: int) -> int:
        """Rows of the padded input that so many rows of the output see."""
        # What is pitched runs up to one row further.
        return (rows - 1) * self.stride[0] + (self.taps[0] - 1) * self.dilation[0] + 1 + self.pitched

    def _pad(self, x: np.ndarray, piece: Piece, padded: np.ndarray) -> None:
        """Fill in the padded input of a piece; the columns beside the image stay zero."""
        first = piece.rows.start * self.stride[0] - self.padding[0][0]
        count = self._input_rows(piece.size[1])
        before = min(max(0, -first), count)
        after = max(before, min(count, self.height - first))
        left = self.padding[1][0]
        padded[:, :, :before] = 0
        padded[:, :, after:] = 0
        source = x[piece.images, :, first + before : first + after]
        np.copyto(padded[:, :, before:after, left : left + self.width], source, casting="unsafe")
