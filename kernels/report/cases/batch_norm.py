"""Batch normalisation in training: channels as in ResNet-50's maps, fewer of them and fewer images."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from ... import cuda
from ..case import Case, itemsize, normal

_SHORT_RUNS = (
    "runs of 49 elements begin and end within sectors, which the blocks of neighbouring channels read from the L2"
)


def _batch_norm(
    shape: tuple[int, ...], of: str, dtype: str, backward: bool, passes: tuple[int, int] = (3, 5), fused: bool = False
) -> Case:
    """`passes` over the data that are needed, forward and backward; `fused` with a residual and ReLU."""
    channels = shape[1]
    short = shape[-1] == 7

    def prepare() -> Callable[[], object]:
        x, dy, added = (normal(shape, dtype, seed) for seed in range(3))
        weight, bias, mean, var = (normal((channels,), "float32", seed) ** 2 for seed in range(4))
        residual = added if fused else None

        def forward() -> Any:
            return cuda.batch_norm(x, weight, bias, 1e-5, residual, fused, mean, var)

        if not backward:
            return forward
        y, saved_mean, inverse_std = forward()
        mask = y if fused else None
        return lambda: cuda.batch_norm_grad(dy, x, weight, bias, saved_mean, inverse_std, mask, fused)

    vectors = 6 if backward else 8  # weight, bias, two saved; gradients, or running statistics read and written
    return Case(
        operation=f"batch_norm{' + residual + relu' if fused else ''}{' backward' if backward else ''}",
        shape=of,
        dtype=dtype,
        prepare=prepare,
        needed=passes[backward] * prod(shape) * itemsize(dtype) + vectors * 4 * channels,
        most_sectors=1.8 if short else 1.25,
        why=_SHORT_RUNS if short else "",
    )


CASES = [
    case
    for backward in (False, True)
    for case in (
        _batch_norm((4, 2, 112, 112), "64x64x112x112", "float32", backward),
        _batch_norm((16, 4, 28, 28), "64x512x28x28", "bfloat16", backward),
        # The gradient of the residual is written, and read in the place of dy and y.
        _batch_norm((16, 2, 56, 56), "64x256x56x56", "bfloat16", backward, passes=(4, 7), fused=True),
        # A channel stays in the registers of a block.
        *(
            _batch_norm((64, 64, 7, 7), "64x2048x7x7", dtype, backward, passes=(2, 3))
            for dtype in ("float32", "bfloat16")
        ),
    )
]
