"""Embeddings on CUDA: chooses the grid of src/embedding.cu; src/radix.cu sorts the indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import launch, radix
from .kernel import Kernel

Array = Any

_SOURCE = "embedding.cu"
_WARP = 32
_BLOCK = 256
_MOST_BLOCKS = 2048
_CHUNK = 32  # sorted indices that one thread adds up

_EMBEDDING = np.dtype(
    [("count", np.int64), ("rows", np.int64), ("dim", np.int32), ("by_frequency", np.int32)], align=True
)


def embedding(weight: Array, indices: Array) -> Array:
    weight, indices = launch.contiguous(weight), _flat(indices)
    rows, dim = weight.shape
    y = launch.empty((*indices.shape, dim), weight.dtype, weight)
    if y.size:
        shape = launch.struct(_EMBEDDING, count=indices.size, rows=rows, dim=dim, by_frequency=False)
        launch.launch(_kernel("rows", weight), *_grid(indices.size, weight), (weight, indices, y, shape))
    return y


def embedding_weight_grad(
    dy: Array, indices: Array, num_embeddings: int, padding_idx: int = -1, scale_grad_by_freq: bool = False
) -> Array:
    dy, indices = launch.contiguous(dy), _flat(indices)
    count, dim = indices.size, dy.shape[-1]
    if max(count, num_embeddings) >= radix.MOST:
        raise ValueError(
            f"embedding_weight_grad: on CUDA there may be {radix.MOST - 1} indices and rows, got {count} indices "
            f"and {num_embeddings} rows"
        )
    grad = launch.empty((num_embeddings, dim), dy.dtype, dy)
    if not grad.size:
        return grad
    keys, positions, starts = radix.sort(indices.reshape(-1), num_embeddings, padding_idx)
    shape = launch.struct(_EMBEDDING, count=count, rows=num_embeddings, dim=dim, by_frequency=scale_grad_by_freq)
    chunks = launch.divide_up(count, _CHUNK)
    parts = launch.empty((chunks, 2, dim), np.float64 if dy.dtype == np.float64 else np.float32, dy)
    launch.launch(_kernel("grad_chunks", dy), *_grid(chunks, dy), (dy, keys, positions, starts, grad, parts, shape))
    launch.launch(_kernel("grad_rest", dy), *_grid(num_embeddings, dy), (dy, starts, grad, parts, shape))
    return grad


def embedding_renorm(weight: Array, indices: Array, max_norm: float, norm_type: float = 2.0) -> Array:
    indices = _flat(indices)
    values = launch.contiguous(weight)
    rows, dim = values.shape
    if not indices.size or not values.size:
        return weight
    taken = launch.empty((rows,), np.uint8, values)
    taken.fill(0)
    shape = launch.struct(_EMBEDDING, count=indices.size, rows=rows, dim=dim, by_frequency=False)
    grid = min(_MOST_BLOCKS, launch.divide_up(indices.size, _BLOCK))
    launch.launch(_MARK, (grid,), (_BLOCK,), (indices, taken, shape))
    grid = min(_MOST_BLOCKS, launch.divide_up(rows, _BLOCK // _WARP))
    args = (values, taken, shape, np.float64(max_norm), np.float64(norm_type))
    launch.launch(_kernel("renorm", values), (grid,), (_WARP, _BLOCK // _WARP), args)
    if values is not weight:
        weight[...] = values
    return weight


def _flat(indices: Array) -> Array:
    return launch.contiguous(indices.astype(np.int64, copy=False))


def _grid(rows: int, array: Array) -> tuple[tuple[int, int], tuple[int, int]]:
    """The grid and the block for so many rows, each as long as those of `array`."""
    vectors = launch.divide_up(array.shape[-1], 16 // array.dtype.itemsize)
    lanes = min(_BLOCK, 1 << (vectors - 1).bit_length())
    together = _BLOCK // lanes
    return (min(_MOST_BLOCKS, launch.divide_up(rows, together)), launch.divide_up(vectors, lanes)), (lanes, together)


def _kernel(name: str, array: Array) -> Kernel:
    return _variant(name, launch.c_type(array.dtype))


def _variant(name: str, scalar: str) -> Kernel:
    return Kernel(_SOURCE, f"embedding_{name}<{scalar}>")


_MARK = Kernel(_SOURCE, "embedding_mark<uint8>")

VARIANTS = [
    *(
        _variant(name, scalar)
        for scalar in launch.FLOAT_TYPES
        for name in ("rows", "grad_chunks", "grad_rest", "renorm")
    ),
    _MARK,
]
