"""How exactly float32 matrix products and convolutions are computed on tensor cores: one setting.

"highest": as exactly as float32 sums of float32 products. "high": factors are rounded to TF32, which has the range of
float32 and 10 bits after the leading one; sums stay in float32. Wrappers read the setting when they choose a kernel.
It concerns CUDA only: NumPy always computes in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PRECISIONS = ("highest", "high")

_precision = "highest"


def set_float32_matmul_precision(precision: str) -> None:
    """Choose "highest" (the default) or "high" (TF32) for float32 matrix products and convolutions on CUDA.

    It holds for the whole process, from the next call on. Names and meaning are PyTorch's, whose setting leaves
    convolutions alone.
    """
    global _precision
    if precision not in PRECISIONS:
        supported = " and ".join(f'"{name}"' for name in PRECISIONS)
        hint = "; products in bfloat16 come from bfloat16 tensors" if precision == "medium" else ""
        raise ValueError(f"set_float32_matmul_precision: supported are {supported}, got {precision!r}{hint}")
    _precision = precision


def get_float32_matmul_precision() -> str:
    """What `set_float32_matmul_precision` chose: "highest" or "high"."""
    return _precision


@contextmanager
def using(precision: str) -> Iterator[None]:
    """Within it `set_float32_matmul_precision(precision)` holds."""
    before = _precision
    set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        set_float32_matmul_precision(before)
