"""Convolution of images (N, C, H, W) as matrix products over unfolded pieces of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from ..geometry import Padding
from . import conv_choice, parallel, results
from .columns import Block, Piece, Unfolding
from .conv_choice import Problem
from .parallel import SMALL_PRODUCT

# Partial sums of a weight gradient.
_SUMS_BYTES = 8 << 20
_MOST_SUMS = 64


def forward(problem: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    groups, outputs = problem.groups, problem.outputs
    filters = weight.astype(problem.computed, copy=False).reshape(groups, outputs, problem.depth)
    if bias is not None:
        bias = bias.astype(problem.computed, copy=False).reshape(groups, outputs, 1, 1)
    return _forward(problem, x, filters, bias)


def input_grad(problem: Problem, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The input gradient through its columns."""
    groups, outputs, inside = problem.groups, problem.outputs, problem.inside
    filters = weight.astype(problem.computed, copy=False).reshape(groups, outputs, inside, *problem.taps)
    unfolding, small = _unfolding(problem, may_pitch=bool(np.isfinite(filters).all()))
    dx = results.empty(problem.x_shape, dy.dtype)
    grouped = dx.reshape(len(dy), groups, inside, *problem.x_shape[2:])
    transposed = filters.transpose(0, 2, 3, 4, 1)
    rows = slice(0, dy.shape[2])

    def work(blocks: Iterator[Block]) -> None:
        for block in blocks:
            target = grouped[block]
            grads = _gradients(dy, unfolding, Piece(block.images, rows), outputs, block.groups)
            factors = transposed[block.groups, block.channels].reshape(target.shape[1], -1, outputs)
            columns = np.empty((*target.shape[:2], factors.shape[1], grads.shape[3]), filters.dtype)
            at_once = SMALL_PRODUCT // max(1, factors[0].size) if small else grads.shape[3]
            for part in parallel.split(grads.shape[3], max(1, at_once)):
                np.matmul(factors, grads[..., part], out=columns[..., part])
            folded = unfolding.fold(columns, target.shape[1] * target.shape[2])
            np.copyto(target, folded.reshape(target.shape), casting="unsafe")

    parallel.share(work, unfolding.blocks(), None if small else 1)
    return dx


def weight_grad(problem: Problem, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    unfolding, small = _unfolding(problem)
    dw = _weight_grad(dy, x, unfolding, small)
    if unfolding.pitch != dy.shape[3] and not np.isfinite(dw).all():
        # Between the rows of a pitched dy are zeros, and 0 * inf is not 0.
        dw = _weight_grad(dy, x, *_unfolding(problem, may_pitch=False))
    return dw.reshape(problem.weight_shape).astype(dy.dtype, copy=False)


def reach(problem: Problem, dy: np.ndarray) -> tuple[np.ndarray, Padding]:
    """dy and the padding by which a stride-1 convolution of it covers the unpadded input."""
    crops, pads = [], []
    axes = zip(dy.shape[2:], problem.taps, problem.dilation, problem.padding, strict=True)
    for size, count, gap, (before, after) in axes:
        low, high = gap * (count - 1) - before, gap * (count - 1) - after
        # Outputs that saw nothing but padding have no part in the gradient.
        crops.append(slice(max(0, -low), size - max(0, -high)))
        pads.append((max(0, low), max(0, high)))
    return dy[:, :, crops[0], crops[1]], (pads[0], pads[1])


def _forward(problem: Problem, x: np.ndarray, filters: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """The convolution (N, K, P, Q) by filters (groups, K / groups, C / groups * R * S)."""
    groups, outputs, _ = filters.shape
    n, _, p, q = problem.y_shape
    # Added by the product: to add it afterwards is one more pass, of short rows where columns are pitched.
    ones = False
    if bias is not None and groups == 1 and prod(problem.taps) > 1:
        filters, bias, ones = np.concatenate([filters, bias[..., 0]], axis=2), None, True
    unfolding, small = _unfolding(problem, ones=ones)
    y = results.empty(problem.y_shape, x.dtype)
    grouped = y.reshape(n, groups, outputs, p, q)
    straight = y.dtype == filters.dtype and unfolding.pitch == q

    def work(pieces: Iterator[Piece]) -> None:
        buffers = unfolding.buffers()
        for piece in pieces:
            seen = unfolding.unfold(x, piece, buffers)
            target = grouped[piece.images, :, :, piece.rows]
            if straight:
                flat = y.reshape(n, groups, outputs, p * q)[piece.images]
                np.matmul(filters, seen, out=flat[..., piece.rows.start * q : piece.rows.stop * q])
                if bias is not None:
                    target += bias
            else:
                product = unfolding.meaningful(np.matmul(filters, seen))
                if bias is None:
                    np.copyto(target, product, casting="unsafe")
                else:
                    np.add(product, bias, out=target, casting="unsafe")

    parallel.share(work, unfolding.pieces(), None if small else 1)
    return y


def _weight_grad(dy: np.ndarray, x: np.ndarray, unfolding: Unfolding, small: bool) -> np.ndarray:
    """The weight gradient (groups, K / groups, C / groups * R * S)."""
    groups, outputs = unfolding.groups, dy.shape[1] // unfolding.groups
    pieces = unfolding.pieces()
    # Each run of pieces makes one sum, and the sums are added up in their order, whichever thread made them.
    shape = (groups, outputs, unfolding.depth)
    most = min(_MOST_SUMS, max(2, _SUMS_BYTES // max(1, unfolding.dtype.itemsize * prod(shape)))) if small else 1
    runs = parallel.split(len(pieces), parallel.evenly(len(pieces), -(-len(pieces) // most)))
    sums = np.zeros((len(runs), *shape), unfolding.dtype)
    # One large product of all images of a piece, for which dy is copied, where that is less than the sums of each.
    together = not small and dy.shape[2] * unfolding.pitch < unfolding.depth

    def work(numbers: Iterator[int]) -> None:
        buffers = unfolding.buffers()
        product = np.empty(shape, unfolding.dtype) if together else None
        for number in numbers:
            for piece in pieces[runs[number]]:
                seen = unfolding.unfold(x, piece, buffers, together).swapaxes(-1, -2)
                grads = _gradients(dy, unfolding, piece, outputs)
                if product is None:
                    sums[number] += np.matmul(grads, seen).sum(axis=0)
                else:
                    np.matmul(grads.transpose(1, 2, 0, 3).reshape(groups, outputs, -1), seen, out=product)
                    np.add(sums[number], product, out=sums[number])

    parallel.share(work, range(len(runs)), None if small else 1)
    return sums.sum(axis=0)


def _gradients(
    dy: np.ndarray, unfolding: Unfolding, piece: Piece, outputs: int, groups: slice = slice(None)
) -> np.ndarray:
    """dy of a piece (n, groups, K / groups, positions), with zeros where a position has no meaning."""
    source = dy.reshape(len(dy), unfolding.groups, outputs, *dy.shape[2:])[piece.images, groups, :, piece.rows]
    shape = (*source.shape[:3], piece.size[1] * unfolding.pitch)
    if unfolding.pitch == dy.shape[3]:
        return source.astype(unfolding.dtype, copy=False).reshape(shape)
    grads = np.zeros(shape, unfolding.dtype)
    np.copyto(unfolding.meaningful(grads), source, casting="unsafe")
    return grads


def _unfolding(problem: Problem, may_pitch: bool = True, ones: bool = False) -> tuple[Unfolding, bool]:
    """How to unfold, and whether the products of a piece are small ones for our own threads."""
    pitched = may_pitch and conv_choice.pitches(problem)
    rows = conv_choice.small_rows(problem, pitched, problem.depth + ones)
    piece_bytes = conv_choice.SMALL_PIECE_BYTES if rows else conv_choice.LARGE_PIECE_BYTES
    return Unfolding(problem, pitched, rows or problem.y_shape[2], piece_bytes, ones), rows > 0
