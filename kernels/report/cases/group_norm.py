"""Group and instance normalisation of feature maps, fewer images of them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ... import cuda
from ..case import Case, itemsize, normal


def _norm(shape: tuple[int, ...], groups: int, of: str, dtype: str, backward: bool) -> Case:
    channels = shape[1]

    def prepare() -> Callable[[], object]:
        x, dy = (normal(shape, dtype, seed) for seed in range(2))
        weight, bias = (normal((channels,), dtype, seed) for seed in range(2))
        if not backward:
            return lambda: cuda.group_norm(x, weight, bias, groups)
        _, mean, rstd = cuda.group_norm(x, weight, bias, groups)
        return lambda: cuda.group_norm_grad(dy, x, weight, mean, rstd, groups)

    return Case(
        operation=f"group_norm{' backward' if backward else ''}",
        shape=of,
        dtype=dtype,
        prepare=prepare,
        needed=(3 if backward else 2) * prod(shape) * itemsize(dtype)
        + 8 * shape[0] * groups
        + (3 if backward else 2) * itemsize(dtype) * channels,
    )


CASES = [
    case
    for backward in (False, True)
    for case in (
        # 64 groups in all: from these on, a group has a block of its own.
        _norm((32, 16, 56, 56), 2, "32x256x56x56 g32", "float32", backward),
        _norm((64, 8, 56, 56), 1, "32x256x56x56 g32", "bfloat16", backward),
        _norm((32, 2, 64, 64), 2, "instances, 32x64x112x112", "float32", backward),
    )
]
