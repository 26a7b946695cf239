"""Convolution of small images, interleaved: channels by height by width by images.

What a tap sees from a row of the output is then one run of memory, as long as the row times the images of a
block, and matrix products have long rows too. Nothing lies between the rows that does not belong there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..geometry import Pads
from . import conv_choice, parallel, results
from .conv_choice import Problem
from .parallel import SMALL_PRODUCT
from .scratch import Scratch, scratch

_MOST_SUMS = 64


def forward(problem: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return Interleaving(problem).forward(x, weight, bias)


def input_grad(problem: Problem, dy: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """The input gradient with stride 1 along the width; None if not all weights are finite."""
    # It sees zeros beside dy, and 0 * inf is not 0.
    return Interleaving(problem).input_grad(dy, weight) if np.isfinite(weight).all() else None


def weight_grad(problem: Problem, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    dw = Interleaving(problem).weight_grad(dy, x)
    return dw.reshape(problem.weight_shape).astype(dy.dtype, copy=False)


class Interleaving:
    """How the images (N, C, H, W) of one convolution are taken in blocks and unfolded to columns.

    Columns are (groups, depth, P * Q * images): a row for each channel of a group and each tap.
    """

    def __init__(self, problem: Problem) -> None:
        self.shape, self.size, self.stride = problem.x_shape, problem.y_shape[2:], problem.stride
        self.padding, self.dilation, self.groups = problem.padding, problem.dilation, problem.groups
        self.inside, self.outputs, self.taps = problem.inside, problem.outputs, problem.taps
        self.depth, self.dtype = problem.depth, problem.computed
        total = self.shape[0] * problem.image_bytes
        # Blocks that the cache holds, of one size and even in number for an even number of threads.
        count = (
            1 if 2 * total <= conv_choice.IMAGE_BLOCK_BYTES else 2 * -(-total // (2 * conv_choice.IMAGE_BLOCK_BYTES))
        )
        self.images = max(1, -(-self.shape[0] // count))

    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The convolution (N, K, P, Q)."""
        y = results.empty((len(x), self.groups, self.outputs, *self.size), x.dtype)
        filters = weight.astype(self.dtype, copy=False).reshape(self.groups, self.outputs, self.depth)
        if bias is not None:
            bias = bias.astype(self.dtype, copy=False).reshape(self.groups, self.outputs, 1, 1)

        def work(blocks: Iterator[slice]) -> None:
            with scratch() as memory:
                for block in blocks:
                    memory.clear()
                    product = self._product(filters, self._columns(x[block], memory), memory)
                    values = product.reshape(*y.shape[1:], -1).transpose(4, 0, 1, 2, 3)
                    if bias is None:
                        np.copyto(y[block], values, casting="unsafe")
                    else:
                        np.add(values, bias, out=y[block], casting="unsafe")

        parallel.share(work, self._blocks())
        return y.reshape(len(x), -1, *self.size)

    def input_grad(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The gradient (N, C, H, W), with stride 1 along the width and weights that are all finite.

        dy is unfolded along the width, where zeros go round it, and the products are folded along the height:
        both move fewer elements than to unfold or fold along both.
        """
        _, _, height, width = self.shape
        dx = results.empty(self.shape, dy.dtype)
        split = weight.astype(self.dtype, copy=False).reshape(self.groups, self.outputs, self.inside, *self.taps)
        filters = split[..., ::-1].transpose(0, 2, 3, 1, 4).reshape(self.groups, -1, self.outputs * self.taps[1])
        (top, _), (left, _) = self.padding
        # The first tap of the reversed filters sees dy from this column on; some columns saw nothing but padding.
        first = left - (self.taps[1] - 1) * self.dilation[1]
        used = slice(max(0, first), min(self.size[1], left + width))
        around = ((0, 0), (used.start - first, left + width - used.stop))

        def work(blocks: Iterator[slice]) -> None:
            with scratch() as memory:
                for block in blocks:
                    memory.clear()
                    product = self._product(
                        filters, self._gradient_columns(dy[block, :, :, used], around, memory), memory
                    )
                    folded = self._folded(product, memory)
                    np.copyto(dx[block], folded[:, top : top + height].transpose(3, 0, 1, 2), casting="unsafe")

        parallel.share(work, self._blocks())
        return dx

    def weight_grad(self, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The gradient (groups, K / groups, depth) in the compute type."""
        blocks = self._blocks()
        # Sums are added in the order of the blocks, whichever thread made them.
        parts = parallel.split(len(blocks), -(-len(blocks) // _MOST_SUMS))
        sums = np.zeros((len(parts), self.groups, self.outputs, self.depth), self.dtype)

        def work(numbers: Iterator[int]) -> None:
            with scratch() as memory:
                for number in numbers:
                    for block in blocks[parts[number]]:
                        memory.clear()
                        grads = _interleave(dy[block], ((0, 0), (0, 0)), self.dtype, memory)
                        grads = self._parts(grads.reshape(self.groups, self.outputs, -1))
                        columns = self._parts(self._columns(x[block], memory))
                        products = memory.empty((len(grads), *sums.shape[1:]), self.dtype)
                        np.matmul(grads, columns.swapaxes(-1, -2), out=products)
                        sums[number] += products.sum(axis=0)

        parallel.share(work, range(len(parts)))
        return sums.sum(axis=0)

    def _blocks(self) -> list[slice]:
        return parallel.split(self.shape[0], self.images)

    def _columns(self, x: np.ndarray, memory: Scratch) -> np.ndarray:
        """The columns of a block."""
        padded = _interleave(x, self.padding, self.dtype, memory)
        sc, sh, sw, sn = padded.strides
        steps = (sc, sh * self.dilation[0], sw * self.dilation[1], sh * self.stride[0], sw * self.stride[1], sn)
        columns = _copy(padded, (len(padded), *self.taps, *self.size, len(x)), steps, memory)
        return columns.reshape(self.groups, self.depth, -1)

    def _gradient_columns(self, dy: np.ndarray, around: Pads, memory: Scratch) -> np.ndarray:
        """What the taps of a row of the filters see of dy, (groups, K / groups * S, P * W * images)."""
        padded = _interleave(dy, around, self.dtype, memory)
        sk, sp, sq, sn = padded.strides
        shape = (len(padded), self.taps[1], self.size[0], self.shape[3], len(dy))
        columns = _copy(padded, shape, (sk, sq * self.dilation[1], sp, sq, sn), memory)
        return columns.reshape(self.groups, self.outputs * self.taps[1], -1)

    def _folded(self, product: np.ndarray, memory: Scratch) -> np.ndarray:
        """The padded gradient (C, H + padding, W, images), of its parts for each row of the filters."""
        _, channels, height, width = self.shape
        rows = product.reshape(channels, self.taps[0], self.size[0], width, -1)
        folded = memory.empty((channels, height + sum(self.padding[0]), width, rows.shape[-1]), self.dtype)
        folded.fill(0)
        for tap in range(self.taps[0]):
            start = tap * self.dilation[0]
            target = folded[:, start : start + (self.size[0] - 1) * self.stride[0] + 1 : self.stride[0]]
            np.add(target, rows[:, tap], out=target)
        return folded

    def _product(self, filters: np.ndarray, columns: np.ndarray, memory: Scratch) -> np.ndarray:
        """Filters (groups, k, depth) times columns (groups, depth, length), (groups, k, length)."""
        product = memory.empty((*filters.shape[:2], columns.shape[2]), self.dtype)
        np.matmul(filters, self._parts(columns), out=self._parts(product))
        return product

    def _parts(self, values: np.ndarray) -> np.ndarray:
        """View (parts, groups, rows, length / parts) of (groups, rows, length), so short that products are small."""
        length = values.shape[2]
        parts = max(1, -(-self.outputs * self.depth * length // SMALL_PRODUCT))
        while length % parts:
            parts += 1
        return values.reshape(*values.shape[:2], parts, -1).transpose(2, 0, 1, 3)


def _interleave(x: np.ndarray, padding: Pads, dtype: np.dtype, memory: Scratch) -> np.ndarray:
    """Images (n, C, H, W) as (C, H, W, n), with zeros around them."""
    (top, bottom), (left, right) = padding
    n, channels, height, width = x.shape
    padded = memory.empty((channels, top + height + bottom, left + width + right, n), dtype)
    for zeros in (padded[:, :top], padded[:, top + height :], padded[:, :, :left], padded[:, :, left + width :]):
        if zeros.size:
            zeros.fill(0)
    np.copyto(padded[:, top : top + height, left : left + width], x.transpose(1, 2, 3, 0), casting="unsafe")
    return padded


def _copy(padded: np.ndarray, shape: tuple[int, ...], steps: tuple[int, ...], memory: Scratch) -> np.ndarray:
    """A copy of the view of `shape` with these steps, in bytes."""
    columns = memory.empty(shape, padded.dtype)
    # A tenth of the time of as_strided; `padded` may lie inside a larger piece of memory.
    np.copyto(columns, np.ndarray(shape, padded.dtype, padded, 0, steps))
    return columns
