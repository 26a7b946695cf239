"""Convolution with few filters, several rows of the output at once.

A product with few filters leaves most of BLAS's registers empty, and columns of every row repeat most of the input.
Here the filters of R rows, each shifted by a row, are one matrix (K * R, C * (taps + R - 1) * taps) with zeros where a
row does not see: R times the rows for the products, and an R-th of the columns with a few taps more. The images are
last, so that what a tap sees from all blocks of R rows is long runs of memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import conv_choice, parallel, results
from .conv_choice import Problem
from .joined import collect, lay
from .scratch import Scratch, scratch


def forward(problem: Problem, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray | None:
    """None if not all of x is finite: a row meets its neighbours' inputs times zero."""
    if not np.isfinite(x).all():
        return None
    filters = _filters(problem, weight)
    y = results.empty(problem.y_shape, x.dtype)
    rows = problem.rows_at_once
    if bias is not None:
        bias = bias.astype(problem.computed, copy=False)[:, None, None, None, None]

    def work(blocks: Iterator[slice]) -> None:
        with scratch() as memory:
            for block in blocks:
                memory.clear()
                columns = _columns(problem, x[block], memory)
                product = memory.empty((len(filters), columns.shape[1]), problem.computed)
                np.matmul(filters, columns, out=product)
                made = product.reshape(y.shape[1], rows, -1, y.shape[3], block.stop - block.start)
                if bias is not None:
                    made += bias
                for row in range(rows):
                    target = y[block, :, row::rows]
                    collect(made[:, row, : target.shape[2], None], target)

    parallel.share(work, _blocks(problem), 1)
    return y


def weight_grad(problem: Problem, dy: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """None if any of it is not finite: a row past the last meets x times zero."""
    rows, (height, width) = problem.rows_at_once, problem.taps
    k, c = problem.weight_shape[:2]
    products = np.zeros((k * rows, c * (height + rows - 1) * width), problem.computed)

    def work(blocks: Iterator[slice]) -> None:
        with scratch() as memory:
            for block in blocks:
                memory.clear()
                grads = _grads(problem, dy[block], memory)
                columns = _columns(problem, x[block], memory)
                np.add(products, grads @ columns.T, out=products)

    parallel.share(work, _blocks(problem), 1)
    products = products.reshape(k, rows, c, -1, width)
    dw = np.add.reduce([products[:, row, :, row : row + height] for row in range(rows)])
    return dw.astype(dy.dtype, copy=False) if np.isfinite(dw).all() else None


def _blocks(problem: Problem) -> list[slice]:
    images = problem.x_shape[0]
    return parallel.split(images, parallel.evenly(images, conv_choice.ROWS_BLOCK_BYTES // problem.rows_bytes))


def _filters(problem: Problem, weight: np.ndarray) -> np.ndarray:
    """(K * R, C * (taps + R - 1) * taps)."""
    k, c, height, width = weight.shape
    rows = problem.rows_at_once
    filters = np.zeros((k, rows, c, height + rows - 1, width), problem.computed)
    for row in range(rows):
        filters[:, row, :, row : row + height] = weight
    return filters.reshape(k * rows, -1)


def _columns(problem: Problem, x: np.ndarray, memory: Scratch) -> np.ndarray:
    """What the taps of R rows see, (C * (taps + R - 1) * taps, blocks * Q * images)."""
    (top, _), (left, right) = problem.padding
    (taps, across), rows, (height, width) = problem.taps, problem.rows_at_once, problem.y_shape[2:]
    n, c, h, w = x.shape
    count = -(-height // rows)
    lines = memory.empty((c, count * rows + taps - 1, left + w + right, n), problem.computed)
    for zeros in (lines[:, :top], lines[:, top + h :], lines[:, :, :left], lines[:, :, left + w :]):
        zeros.fill(0)
    lay(x, lines[:, top : top + h, None], left)
    sc, sh, sw, sn = lines.strides
    shape = (c, taps + rows - 1, across, count, width, n)
    columns = memory.empty(shape, problem.computed)
    np.copyto(columns, np.ndarray(shape, lines.dtype, lines, 0, (sc, sh, sw, sh * rows, sw, sn)))
    return columns.reshape(c * (taps + rows - 1) * across, -1)


def _grads(problem: Problem, dy: np.ndarray, memory: Scratch) -> np.ndarray:
    """dy (K * R, blocks * Q * images), zeros for rows past the last."""
    n, k, height, width = dy.shape
    rows = problem.rows_at_once
    grads = memory.empty((k, rows, -(-height // rows), width, n), problem.computed)
    for row in range(rows):
        some = dy[:, :, row::rows]
        grads[:, row, some.shape[2] :].fill(0)
        lay(some, grads[:, row, : some.shape[2], None])
    return grads.reshape(k * rows, -1)
