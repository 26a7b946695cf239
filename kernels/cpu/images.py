"""Convolution of images (N, C, H, W) as matrix products over unfolded pieces of the batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..geometry import Padding, Pair, Shape
from . import parallel, winograd
from .arithmetic import compute_dtype
from .columns import Block, Piece, Unfolding
from .interleaved import Interleaving
from .parallel import SMALL_PRODUCT

# Columns of a piece: up to SMALL_PRODUCT pieces go to our threads, beyond it to the threads of BLAS.
_SMALL_PIECE_BYTES = 1 << 20
_LARGE_PIECE_BYTES = 4 << 20


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: Shape,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    k, c, r, s = weight.shape
    dtype = compute_dtype(x.dtype)
    if winograd.serves(x.dtype, shape, weight.shape, stride, dilation, groups):
        y = winograd.forward(x, weight, bias, shape, padding, groups)
        if y is not None:
            return y
    interleaving = Interleaving(x.shape, weight.shape, shape[2:], stride, padding, dilation, groups, dtype)
    if interleaving.serves:
        return interleaving.forward(x, weight, bias)
    filters = weight.astype(dtype, copy=False).reshape(groups, k // groups, c * r * s)
    if bias is not None:
        bias = bias.astype(dtype, copy=False).reshape(groups, k // groups, 1, 1)
    return _forward(x, filters, bias, shape, (r, s), stride, padding, dilation)


def input_grad(
    dy: np.ndarray,
    weight: np.ndarray,
    input_shape: Shape,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    k, c, r, s = weight.shape
    if winograd.serves(dy.dtype, input_shape, weight.shape, stride, dilation, groups):
        seen, around = _reach(dy, (r, s), padding, dilation)
        dx = winograd.forward(seen, weight, None, input_shape, around, groups, transposed=True)
        if dx is not None:
            return dx
    interleaving = Interleaving(input_shape, weight.shape, dy.shape[2:], stride, padding, dilation, groups, dy.dtype)
    filters = weight.astype(interleaving.dtype, copy=False).reshape(groups, k // groups, c, r, s)
    # The quicker ways see zeros around dy, and 0 * inf is not 0.
    finite = np.isfinite(filters).all()
    if interleaving.serves and stride[1] == 1 and finite:
        return interleaving.input_grad(dy, weight)
    # For each tap unfolding dy writes k rows and folding adds c * groups rows, at about twice the price.
    if stride == (1, 1) and finite and (r == s == 1 or k <= 2 * c * groups):
        flipped = filters.swapaxes(1, 2)[..., ::-1, ::-1].reshape(groups, c, k // groups * r * s)
        dy, around = _reach(dy, (r, s), padding, dilation)
        return _forward(dy, flipped, None, input_shape, (r, s), (1, 1), around, dilation)
    return _fold(dy, filters, input_shape, stride, padding, dilation)


def weight_grad(
    dy: np.ndarray,
    x: np.ndarray,
    weight_shape: Shape,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> np.ndarray:
    k, _, r, s = weight_shape
    dtype = compute_dtype(dy.dtype)
    if winograd.serves(dy.dtype, dy.shape, weight_shape, stride, dilation, groups):
        grad = winograd.weight_grad(dy, x, weight_shape, padding, groups)
        if grad is not None:
            return grad
    interleaving = Interleaving(x.shape, weight_shape, dy.shape[2:], stride, padding, dilation, groups, dtype)
    if interleaving.serves:
        return interleaving.weight_grad(dy, x).reshape(weight_shape).astype(dy.dtype, copy=False)
    settings = (x.shape, (r, s), dy.shape[2:], stride, padding, dilation, groups, dtype, k // groups)
    unfolding, small = _unfolding(*settings)
    dw = _weight_grad(dy, x, unfolding, small)
    if unfolding.pitch != dy.shape[3] and not np.isfinite(dw).all():
        # Between the rows of a pitched dy are zeros, and 0 * inf is not 0.
        dw = _weight_grad(dy, x, *_unfolding(*settings, may_pitch=False))
    return dw.reshape(weight_shape).astype(dy.dtype, copy=False)


def _forward(
    x: np.ndarray,
    filters: np.ndarray,
    bias: np.ndarray | None,
    shape: Shape,
    taps: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
) -> np.ndarray:
    """The convolution (N, K, P, Q) of `shape` by filters (groups, K / groups, C / groups * R * S)."""
    groups, outputs, _ = filters.shape
    n, _, p, q = shape
    unfolding, small = _unfolding(x.shape, taps, (p, q), stride, padding, dilation, groups, filters.dtype, outputs)
    y = np.empty((n, groups, outputs, p, q), x.dtype)
    straight = y.dtype == filters.dtype and unfolding.pitch == q

    def work(pieces: Iterator[Piece]) -> None:
        buffers = unfolding.buffers()
        for piece in pieces:
            seen = unfolding.unfold(x, piece, buffers)
            target = y[piece.images, :, :, piece.rows]
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
    return y.reshape(shape)


def _fold(
    dy: np.ndarray, filters: np.ndarray, input_shape: Shape, stride: Pair, padding: Padding, dilation: Pair
) -> np.ndarray:
    """The input gradient through its columns, by filters (groups, K / groups, C / groups, R, S)."""
    groups, outputs, inside, *taps = filters.shape
    n, _, h, w = input_shape
    unfolding, small = _unfolding(
        input_shape,
        (taps[0], taps[1]),
        dy.shape[2:],
        stride,
        padding,
        dilation,
        groups,
        filters.dtype,
        outputs,
        may_pitch=bool(np.isfinite(filters).all()),
    )
    dx = np.empty((n, groups, inside, h, w), dy.dtype)
    transposed = filters.transpose(0, 2, 3, 4, 1)
    rows = slice(0, dy.shape[2])

    def work(blocks: Iterator[Block]) -> None:
        for block in blocks:
            target = dx[block]
            grads = _gradients(dy, unfolding, Piece(block.images, rows), outputs)[:, block.groups]
            factors = transposed[block.groups, block.channels].reshape(target.shape[1], -1, outputs)
            columns = np.empty((*target.shape[:2], factors.shape[1], grads.shape[3]), filters.dtype)
            at_once = SMALL_PRODUCT // max(1, factors[0].size) if small else grads.shape[3]
            for part in parallel.split(grads.shape[3], max(1, at_once)):
                np.matmul(factors, grads[..., part], out=columns[..., part])
            folded = unfolding.fold(columns, target.shape[1] * target.shape[2])
            np.copyto(target, folded.reshape(target.shape), casting="unsafe")

    parallel.share(work, unfolding.blocks(), None if small else 1)
    return dx.reshape(input_shape)


def _weight_grad(dy: np.ndarray, x: np.ndarray, unfolding: Unfolding, small: bool) -> np.ndarray:
    """The weight gradient (groups, K / groups, C / groups * R * S)."""
    groups, outputs = unfolding.groups, dy.shape[1] // unfolding.groups
    pieces = unfolding.pieces()
    # Partial sums are added in the order of the pieces, whichever thread made them.
    partial = np.zeros((len(pieces) if small else 1, groups, outputs, unfolding.depth), unfolding.dtype)
    product = np.empty(partial.shape[1:], partial.dtype)

    def work(numbers: Iterator[int]) -> None:
        buffers = unfolding.buffers()
        for number in numbers:
            piece = pieces[number]
            seen = unfolding.unfold(x, piece, buffers, together=not small).swapaxes(-1, -2)
            grads = _gradients(dy, unfolding, piece, outputs)
            if small:
                np.matmul(grads, seen).sum(axis=0, out=partial[number])
            else:
                np.matmul(grads.transpose(1, 2, 0, 3).reshape(groups, outputs, -1), seen, out=product)
                np.add(partial[0], product, out=partial[0])

    parallel.share(work, range(len(pieces)), None if small else 1)
    return partial.sum(axis=0)


def _gradients(dy: np.ndarray, unfolding: Unfolding, piece: Piece, outputs: int) -> np.ndarray:
    """dy of a piece (n, groups, K / groups, positions), with zeros where a position has no meaning."""
    source = dy[piece.images, :, piece.rows]
    n, rows = piece.size
    shape = (n, unfolding.groups, outputs, rows * unfolding.pitch)
    if unfolding.pitch == dy.shape[3]:
        return source.astype(unfolding.dtype, copy=False).reshape(shape)
    grads = np.zeros(shape, unfolding.dtype)
    target = unfolding.meaningful(grads)
    np.copyto(target, source.reshape(target.shape), casting="unsafe")
    return grads


def _reach(dy: np.ndarray, taps: Pair, padding: Padding, dilation: Pair) -> tuple[np.ndarray, Padding]:
    """dy and the padding by which a stride-1 convolution of it covers the unpadded input."""
    crops, pads = [], []
    for size, count, gap, (before, after) in zip(dy.shape[2:], taps, dilation, padding, strict=True):
        low, high = gap * (count - 1) - before, gap * (count - 1) - after
        # Outputs that saw nothing but padding have no part in the gradient.
        crops.append(slice(max(0, -low), size - max(0, -high)))
        pads.append((max(0, low), max(0, high)))
    return dy[:, :, crops[0], crops[1]], (pads[0], pads[1])


def _unfolding(
    shape: Shape,
    taps: Pair,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    dtype: np.dtype,
    outputs: int,
    may_pitch: bool = True,
) -> tuple[Unfolding, bool]:
    """How to unfold, and whether the products with `outputs` filters a group are small."""
    depth = shape[1] // groups * taps[0] * taps[1]
    waste = shape[3] + sum(padding[1]) - size[1]
    # A pitch saves about 8 ns for each row of the columns and costs products with what has no meaning.
    pitched = stride == (1, 1) and (waste == 0 or (may_pitch and outputs * waste < 350 and 2 * depth > 3 * outputs))
    rows = SMALL_PRODUCT // max(1, outputs * depth * (size[1] + waste * pitched))
    small = rows >= min(4, size[0])
    piece_bytes = _SMALL_PIECE_BYTES if small else _LARGE_PIECE_BYTES
    rows = rows if small else size[0]
    return Unfolding(shape, taps, size, stride, padding, dilation, groups, dtype, pitched, rows, piece_bytes), small
