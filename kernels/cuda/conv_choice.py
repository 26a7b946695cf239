"""Which kernel and tile runs a convolution: one table, from the problem's shape, type, precision and device.

The first row that applies wins. A row names the variant, what it can run at all, and from which sizes on it is chosen:
change the numbers here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from ..precision import PRECISIONS
from .conv_axes import MOST_ELEMENTS
from .kernel import Kernel
from .launch import FLOAT_TYPES, divide_up

FORWARD, INPUT_GRAD, WEIGHT_GRAD = "forward", "input_grad", "weight_grad"
GATHERS = (FORWARD, INPUT_GRAD)

_STAGES = 4  # kStages in conv_mma.cu


@dataclass(frozen=True)
class Problem:
    """A convolution as a matrix product of each group: rows x columns results, sums of `reduction` products.

    Forward: filters x pixels over channels and taps. Input gradient: channels x pixels over filters and taps, for the
    largest of its residue classes. Weight gradient: filters x (channels and taps) over pixels.
    """

    operation: str
    c_type: str
    precision: str  # of float: "highest" or "high"
    capability: int  # of the device, 10 times its compute capability
    groups: int
    rows: int
    channels: int  # of a group: those of the source, summed over in the first two, columns of the weight gradient
    taps: int
    pixels: int  # of all images
    places: int  # of a channel of the source
    plane: int = 0  # pixels of an image, where this is a product of filters and images as they lie: 1×1
    bulk: bool = False  # whether bulk tensor copies can bring its tiles (conv_wgmma.possible)

    @property
    def columns(self) -> int:
        return self.channels * self.taps if self.operation == WEIGHT_GRAD else self.pixels

    @property
    def reduction(self) -> int:
        return self.pixels if self.operation == WEIGHT_GRAD else self.channels * self.taps


@dataclass(frozen=True)
class Product:
    """One matrix product for each image: see `matmul.py`, which has choices of its own."""


@dataclass(frozen=True)
class Direct:
    """One result for each thread, or for each block of a weight gradient."""

    def kernel(self, operation: str, c_type: str) -> Kernel:
        name = "gather_direct" if operation in GATHERS else "weight_grad_direct"
        return Kernel("conv_direct.cu", f"{name}<{c_type}>")


@dataclass(frozen=True)
class Tile:
    """What a block and each of its threads compute. All tiles have 256 threads."""

    depth: ClassVar[int] = 8  # of a stage of the reduction: kDepth in product.cuh
    rows: int
    columns: int
    rows_each: int
    columns_each: int

    def kernel(self, operation: str, c_type: str) -> Kernel:
        sizes = f"{self.rows}, {self.columns}, {self.rows_each}, {self.columns_each}"
        if operation == WEIGHT_GRAD:
            return Kernel("conv_gemm_weight_grad.cu", f"weight_grad_gemm<{c_type}, {sizes}>")
        return Kernel("conv_gemm.cu", f"gather_gemm<{c_type}, {sizes}>")


@dataclass(frozen=True)
class TensorTile:
    """What a block and each of its warps compute on tensor cores, from copies with channels last.

    `piece` is what is copied at once, in bytes: channels are padded to a multiple of it. `strict` sums floats as
    exactly as float32 does (3xTF32).
    """

    line_bytes: ClassVar[int] = 64  # of a row or column in a stage: kLineBytes in conv_mma.cu
    rows: int
    columns: int
    warp_rows: int
    warp_columns: int
    piece: int = 16
    strict: bool = False

    @property
    def threads(self) -> int:
        return self.rows // self.warp_rows * (self.columns // self.warp_columns) * 32

    @property
    def shared_bytes(self) -> int:
        return _STAGES * (self.rows + self.columns) * self.line_bytes

    def padded(self, channels: int, c_type: str) -> int:
        values = self.piece // (4 if c_type == "float" else 2)
        return divide_up(channels, values) * values

    def kernel(self, operation: str, c_type: str) -> Kernel:
        sizes = f"{self.rows}, {self.columns}, {self.warp_rows}, {self.warp_columns}, {self.piece}"
        source, name = "conv_mma.cu", "gather_mma"
        if operation == WEIGHT_GRAD:
            source, name = "conv_mma_weight_grad.cu", "weight_grad_mma"
        return Kernel(source, f"{name}<{c_type}, {sizes}, {str(self.strict).lower()}>", least=80)


@dataclass(frozen=True)
class BulkTile:
    """What a block computes by wgmma, from the same copies: sm_90a only."""

    rows = columns = 128
    threads = 256
    strict = False
    # Stages of two tiles of 64 channels, moved to a multiple of 1024.
    shared_bytes = _STAGES * (rows + columns) * 128 + 1024

    def padded(self, channels: int, c_type: str) -> int:
        return divide_up(channels, 8) * 8

    def kernel(self, operation: str, c_type: str) -> Kernel:
        return Kernel("conv_wgmma.cu", f"gather_wgmma<{c_type}>", least=90, only="sm_90a")


WithKernel = Direct | Tile | TensorTile | BulkTile
Variant = Product | WithKernel


@dataclass(frozen=True)
class Row:
    """A variant, what it can run, and the sizes for which it is chosen."""

    variant: Variant
    operations: Sequence[str]
    types: Sequence[str] = FLOAT_TYPES
    precision: Sequence[str] = PRECISIONS
    # Chosen from so many on, and up to so many channels:
    least_rows: int = 0
    least_columns: int = 0
    least_reduction: int = 0
    least_blocks: int = 0
    most_channels: int = 2**30
    least_channels: int = 0

    def can_run(self, problem: Problem) -> bool:
        if isinstance(self.variant, Product):
            return problem.plane > 0 and problem.operation in self.operations
        fits = True
        if isinstance(self.variant, TensorTile | BulkTile):
            padded = self.variant.padded(problem.channels, problem.c_type)
            fits = problem.reduction > 0 and problem.places * padded <= MOST_ELEMENTS
        return (
            fits
            and (problem.bulk or not isinstance(self.variant, BulkTile))
            and problem.operation in self.operations
            and problem.c_type in self.types
            and self.variant.kernel(problem.operation, problem.c_type).runs_on(problem.capability)
            and (problem.c_type != "float" or problem.precision in self.precision)
        )

    def is_chosen(self, problem: Problem) -> bool:
        if isinstance(self.variant, Product):
            return problem.plane >= _LEAST_PLANE and problem.plane % _VECTOR == 0
        return (
            problem.rows >= self.least_rows
            and problem.columns >= self.least_columns
            and problem.reduction >= self.least_reduction
            and self.least_channels <= problem.channels <= self.most_channels
            and (isinstance(self.variant, Direct) or blocks(self.variant, problem) >= self.least_blocks)
        )


def blocks(tile: Tile | TensorTile | BulkTile, problem: Problem) -> int:
    """How many tiles cover the results of all groups."""
    return problem.groups * divide_up(problem.rows, tile.rows) * divide_up(problem.columns, tile.columns)


_NO_DOUBLE = tuple(c_type for c_type in FLOAT_TYPES if c_type != "double")
_FEW = 8  # rows, columns or steps: with fewer, most of the narrowest tile would be empty
_FILLED = 128  # blocks; fewer leave multiprocessors of a large GPU idle
_HALVES = ("float16", "bfloat16")

# Of small planes a tile of each image's product would be half empty, and those of odd sizes begin anywhere in a vector:
# all images' pixels together fill the tiles of a convolution.
_LEAST_PLANE = 128
_VECTOR = 8

# Types, precision of float, and whether sums are strict.
_MODES = ((_HALVES, PRECISIONS, False), (("float",), ("high",), False), (("float",), ("highest",), True))


def _tensor_rows(types: Sequence[str], precision: Sequence[str], strict: bool) -> list[Row]:
    """Tiles of tensor cores. The sums of a warp's 64 x 32 would not fit into the registers twice, as strict ones do."""

    def row(rows: int, columns: int, warp_rows: int = 32, piece: int = 16, **sizes: int) -> Row:
        tile = TensorTile(rows, columns, warp_rows, 32, piece, strict)
        return Row(tile, GATHERS, types, precision, least_reduction=16, **sizes)

    few_channels = [row(64, 128, piece=8, least_rows=16, most_channels=4)] if types == _HALVES else []
    # Floats are padded to 4 channels, which costs more than tensor cores gain over FFMA if only one of them is there.
    least = 1 if types == _HALVES else 3 if strict else 2
    return [
        *few_channels,
        row(128, 128, 32 if strict else 64, least_rows=65, least_blocks=_FILLED, least_channels=least),
        row(64, 128, least_rows=33, least_blocks=_FILLED, least_channels=least),
        row(64, 64, least_rows=33, least_channels=least),
        row(32, 128, least_rows=16, least_channels=least),
    ]


def _tensor_weight_grad_rows(types: Sequence[str], precision: Sequence[str], strict: bool) -> list[Row]:
    """Few channels are padded to 8 bytes (halves) or read as they lie (floats). Columns are taps and channels."""

    def row(rows: int, columns: int, warp_rows: int = 32, piece: int = 16, **sizes: int) -> Row:
        tile = TensorTile(rows, columns, warp_rows, 32, piece, strict)
        return Row(tile, (WEIGHT_GRAD,), types, precision, least_reduction=32, **sizes)

    few = {"piece": 8, "most_channels": 4} if types == _HALVES else {"piece": 4, "most_channels": 3}
    return [
        row(64, 64, least_rows=4, least_columns=_FEW, **few),
        row(128, 128, 32 if strict else 64, least_rows=65, least_columns=65),
        row(64, 64, least_rows=33, least_columns=_FEW),
        row(32, 128, least_rows=_FEW, least_columns=_FEW),
    ]


# Widest first. A wide tile loads less for each multiplication; a narrow one leaves less of itself empty and gives more
# blocks. The sums of the widest tiles of doubles would not fit into the registers.
TABLE = (
    Row(Product(), GATHERS),
    # A step of its reduction is 64 channels of one tap, however few there are.
    Row(BulkTile(), GATHERS, _HALVES, least_rows=65, least_reduction=128, least_blocks=_FILLED, least_channels=32),
    *(row for mode in _MODES for row in (*_tensor_rows(*mode), *_tensor_weight_grad_rows(*mode))),
    Row(Tile(128, 128, 8, 8), GATHERS, _NO_DOUBLE, least_rows=65, least_reduction=_FEW, least_blocks=_FILLED),
    Row(Tile(64, 128, 4, 8), GATHERS, least_rows=33, least_reduction=_FEW, least_blocks=_FILLED),
    Row(Tile(32, 128, 4, 4), GATHERS, least_rows=_FEW, least_reduction=_FEW),
    # Enough blocks of a weight gradient come from its parts.
    Row(Tile(128, 128, 8, 8), (WEIGHT_GRAD,), _NO_DOUBLE, least_rows=65, least_columns=65),
    Row(Tile(64, 64, 4, 4), (WEIGHT_GRAD,), least_rows=_FEW, least_columns=_FEW),
    Row(Direct(), (*GATHERS, WEIGHT_GRAD)),
)  # fmt: skip

VARIANTS = [
    row.variant.kernel(operation, t)
    for row in TABLE
    if not isinstance(row.variant, Product)
    for operation in row.operations
    for t in row.types
]


_only: Variant | None = None


@contextmanager
def only(variant: Variant) -> Iterator[None]:
    """Within it this variant is chosen for every problem, so that the report and tests see one kernel."""
    global _only
    before, _only = _only, variant
    try:
        yield
    finally:
        _only = before


def choose(problem: Problem) -> Variant:
    """The first variant of the table that can run the problem and is worth it."""
    if _only is not None:
        return _only
    return next(row.variant for row in TABLE if row.can_run(problem) and row.is_chosen(problem))


def candidates(problem: Problem) -> list[Variant]:
    """All variants that can run the problem, whatever its sizes."""
    return list(dict.fromkeys(row.variant for row in TABLE if row.can_run(problem)))
