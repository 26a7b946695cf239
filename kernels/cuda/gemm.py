"""Our own kernels for matrix products: the choice of kernel, tile and number of parts, and each launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..geometry.activation import KINDS
from . import launch
from .cublaslt import Product
from .kernel import Kernel
from .launch import FLOAT_TYPES, divide_up

Array = Any


@dataclass(frozen=True)
class Tile:
    """What a block computes, with tensor cores, or without, where each thread has `each` × `each` sums."""

    rows: int
    columns: int
    each: int = 0

    def kernel(self, c_type: str, exact: bool) -> Kernel:
        if self.each:
            return Kernel("gemm_simt.cu", f"gemm_simt<{c_type}, {self.rows}, {self.columns}, {self.each}, {self.each}>")
        name = f"gemm_mma<{c_type}, {str(exact).lower()}, {self.rows}, {self.columns}>"
        return Kernel("gemm_mma.cu", name, least=_TENSOR_CORES)

    @property
    def threads(self) -> int:
        return 128 if not self.each and self.rows * self.columns <= 64 * 64 else 256

    @property
    def shared_bytes(self) -> int:
        return 0 if self.each else _STAGES * ((self.rows + self.columns) * _LINE_BYTES + 2 * _FREE_BYTES)


FUSED = ("relu", "silu")  # what src/epilogue.cuh has
_NO_ACTIVATION = -1
_TENSOR_CORES = 80
_STAGES, _LINE_BYTES = 4, 64  # kStages and kLineBytes in gemm_mma.cu
_FREE_BYTES = 512  # of each operand's tile: kFree times its depth

# Widest first: a wide tile loads less for each multiplication, a narrow one leaves less of itself empty and gives more
# blocks. Exact products have two sets of sums in registers.
_TENSOR = (Tile(128, 128), Tile(128, 64), Tile(64, 64))
_EXACT = _TENSOR[1:]
_PLAIN = {
    "float": (Tile(128, 128, 8), Tile(64, 64, 4)),
    **dict.fromkeys(("double", "float16", "bfloat16"), (Tile(64, 64, 4),)),
}
_FEW_BLOCKS = 128  # fewer leave multiprocessors of a large GPU idle

# Few tiles are split along the depth until there are so many blocks, but not into parts that are not worth a block.
# Constants, so that every device adds in the same order.
_WANTED_BLOCKS = 256
_LEAST_PART = 512
_WHOLE_PART = 64  # kPromoted in gemm_mma.cu: all kernels' steps divide it


def _sum_kernel(c_type: str) -> Kernel:
    return Kernel("gemm_simt.cu", f"gemm_sum<{c_type}>")


VARIANTS = [
    *(tile.kernel(c_type, False) for c_type in ("float16", "bfloat16", "float") for tile in _TENSOR),
    *(tile.kernel("float", True) for tile in _EXACT),
    *(tile.kernel(c_type, False) for c_type in FLOAT_TYPES for tile in _PLAIN[c_type]),
    *(_sum_kernel(c_type) for c_type in FLOAT_TYPES),
]


def candidates(c_type: str, tf32: bool, capability: int) -> tuple[Tile, ...]:
    """The tiles that can compute a product, widest first."""
    if c_type == "double" or capability < _TENSOR_CORES:
        return _PLAIN[c_type]
    return _EXACT if c_type == "float" and not tf32 else _TENSOR


def choose(product: Product, capability: int) -> tuple[Tile, int]:
    """The tile, and how much of the depth a block sums up."""
    *wider, narrowest = candidates(product.c_type, product.tf32, capability)
    rows, columns, depth, count = product.rows, product.columns, product.depth, product.batch.times

    def blocks(tile: Tile) -> int:
        return count * divide_up(rows, tile.rows) * divide_up(columns, tile.columns)

    fitting = (tile for tile in wider if rows > tile.rows // 2 and columns > tile.columns // 2)
    tile = next((tile for tile in fitting if blocks(tile) >= _FEW_BLOCKS), narrowest)
    splits = 1
    if blocks(tile) < _FEW_BLOCKS:
        splits = min(divide_up(_WANTED_BLOCKS, blocks(tile)), max(1, depth // _LEAST_PART))
    return tile, divide_up(divide_up(depth, splits), _WHOLE_PART) * _WHOLE_PART


_GEMM = np.dtype(
    [
        *((f"{name}_{what}", np.int64) for what in ("first", "batch") for name in ("a", "b", "out")),
        *((name, np.int64) for name in ("a_pitch", "b_pitch")),
        *((name, np.int32) for name in "rows columns depth part splits a_transposed b_transposed".split()),
        *((name, np.int32) for name in "a_vectors b_vectors packed bias_row bias_column activation".split()),
    ],
    align=True,
)


def multiply(
    product: Product,
    arrays: tuple[Array, Array, Array],
    firsts: tuple[int, int, int],
    bias: Array | None,
    activation: str | None,
) -> None:
    """Let out = activation(a @ b + bias) for `arrays` (a, b, out), `firsts` elements from their start.

    The bias is (columns,), or (rows, 1), the activation one of FUSED or None. The parts of a sum that is split are
    added in order, on every device alike.
    """
    a, b, out = arrays
    tile, part = choose(product, launch.capability(a))
    splits = divide_up(product.depth, part)
    rows, columns, batch = product.rows, product.columns, product.batch
    exact = product.c_type == "float" and not product.tf32
    settings = launch.struct(
        _GEMM,
        **dict(zip(("a_first", "b_first", "out_first"), firsts, strict=True)),
        a_batch=batch.a,
        b_batch=batch.b,
        out_batch=batch.out,
        a_pitch=product.a.pitch,
        b_pitch=product.b.pitch,
        rows=rows,
        columns=columns,
        depth=product.depth,
        part=part,
        splits=splits,
        a_transposed=product.a.transposed,
        b_transposed=product.b.transposed,
        a_vectors=_in_vectors(a, firsts[0], product.a.pitch, batch.a, rows if product.a.transposed else product.depth),
        b_vectors=_in_vectors(
            b, firsts[1], product.b.pitch, batch.b, product.depth if product.b.transposed else columns
        ),
        packed=columns % 4 == 0 and firsts[2] % 4 == 0 and launch.aligned(out, 16),
        bias_row=bias is not None and bias.ndim == 2,
        bias_column=bias is not None and bias.ndim == 1,
        activation=_NO_ACTIVATION if activation is None else KINDS[activation].code,
    )
    partial = None
    if splits > 1:
        accumulator = np.float64 if product.c_type == "double" else np.float32
        partial = launch.empty((batch.times * splits * rows * columns,), accumulator, a)
    grid = (batch.times * splits * divide_up(rows, tile.rows) * divide_up(columns, tile.columns),)
    args = [launch.flat(a), launch.flat(b), bias, out, partial, settings]
    launch.launch(tile.kernel(product.c_type, exact), grid, (tile.threads,), args, tile.shared_bytes)
    if partial is not None:
        count = batch.times * rows * columns
        grid = (divide_up(count, 256),)
        launch.launch(_sum_kernel(product.c_type), grid, (256,), [partial, bias, out, settings, np.int64(count)])


def _in_vectors(array: Array, *elements: int) -> bool:
    """Whether the array begins at a multiple of 16 bytes, and so many elements are a multiple of 16 bytes."""
    return launch.aligned(array, 16) and all(n * array.dtype.itemsize % 16 == 0 for n in elements)
