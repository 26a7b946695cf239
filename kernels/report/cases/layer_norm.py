"""Layer and RMS normalisation of rows as in Transformers, fewer of them."""

from __future__ import annotations

from collections.abc import Callable

from ... import cuda
from ..case import Case, itemsize, normal

_PARTIALS = (
    "the blocks' sums for weight and bias are written and read: of 8,192 rows 32 share a block's, here 4 or 8; "
    "then it is 4 % of the traffic in float32"
)


def _norm(rows: int, size: int, of: str, dtype: str, backward: bool, rms: bool = False) -> Case:
    """`rms`: without mean and bias."""

    def prepare() -> Callable[[], object]:
        x, dy = (normal((rows, size), dtype, seed) for seed in range(2))
        weight, bias = (normal((size,), dtype, seed) for seed in range(2))
        if not backward:
            return (lambda: cuda.rms_norm(x, weight)) if rms else (lambda: cuda.layer_norm(x, weight, bias))
        if rms:
            _, rstd = cuda.rms_norm(x, weight)
            return lambda: cuda.rms_norm_grad(dy, x, weight, rstd)
        _, mean, rstd = cuda.layer_norm(x, weight, bias)
        return lambda: cuda.layer_norm_grad(dy, x, weight, mean, rstd)

    statistics, vectors = (1, 1) if rms else (2, 2)
    vectors += backward  # the weight, and the gradients
    return Case(
        operation=f"{'rms' if rms else 'layer'}_norm{' backward' if backward else ''}",
        shape=of,
        dtype=dtype,
        prepare=prepare,
        needed=(3 if backward else 2) * rows * size * itemsize(dtype)
        + 4 * statistics * rows
        + itemsize(dtype) * vectors * size,
        most_bytes=1.7 if backward else 1.1,
        why=_PARTIALS if backward else "",
    )


CASES = [
    case
    for backward in (False, True)
    for case in (
        _norm(256, 768, "8192x768", "float32", backward),
        _norm(256, 768, "8192x768", "bfloat16", backward),
        _norm(64, 4096, "8192x4096", "float32", backward),
        _norm(256, 1024, "32768x1024", "bfloat16", backward, rms=True),
    )
]
