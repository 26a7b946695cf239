"""Matrix products by our own kernels, which run where cuBLASLt is not found: fewer and shorter than the benchmark's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...cuda import matmul
from ...precision import using
from ..case import Case, itemsize, normal

_PARTS = (
    "few tiles are split along the depth so that there are enough blocks: each part is written and read once more, in "
    "float32, and at the traced size it is large beside the operands"
)


def _case(
    shape: str,
    rows: int,
    depth: int,
    columns: int,
    dtype: str,
    precision: str = "highest",
    batch: int = 1,
    a_transposed: bool = False,
    b_transposed: bool = False,
    **limits: Any,
) -> Case:
    """(batch, rows, depth) times (batch, depth, columns), either as it lies or as the transposed of what lies there."""

    def prepare() -> Callable[[], object]:
        a = normal((batch, *((depth, rows) if a_transposed else (rows, depth))), dtype)
        b = normal((batch, *((columns, depth) if b_transposed else (depth, columns))), dtype, 1)
        a = a.transpose(0, 2, 1) if a_transposed else a
        b = b.transpose(0, 2, 1) if b_transposed else b

        def run() -> object:
            with using(precision):
                return matmul(a, b)

        return run

    return Case(
        operation="product",
        shape=f"{shape}{', TF32' if precision == 'high' else ''}",
        dtype=dtype,
        prepare=prepare,
        needed=itemsize(dtype) * batch * (rows * depth + depth * columns + rows * columns),
        operations=2 * batch * rows * depth * columns,
        **limits,
    )


CASES = [
    *(
        _case(
            "64 of 512x64 by 64x512 transposed",
            128,
            32,
            64 if strict else 128,
            dtype,
            precision,
            128,
            b_transposed=True,
        )
        for dtype, precision, strict in (
            ("float32", "highest", True),
            ("float32", "high", False),
            ("bfloat16", "highest", False),
        )
    ),
    _case("64 of 512x512 by 512x64", 128, 64, 64, "bfloat16", batch=8),
    _case("4096x512 by 512x2048", 256, 64, 256, "bfloat16"),
    _case("4096x512 by 512x2048", 128, 64, 128, "float32"),
    _case("16x4096 by 4096x4096 transposed", 16, 2048, 64, "bfloat16", b_transposed=True, most_bytes=1.5, why=_PARTS),
    _case("512x4096 transposed by 4096x2048", 64, 2048, 64, "bfloat16", a_transposed=True, most_bytes=1.5, why=_PARTS),
    _case("4096x4096 by 4096x4096", 64, 64, 64, "float64"),
]
