"""Steps of optimizers and clipping: one block of a ResNet-50 stands for all of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ... import cuda
from ..case import Case, itemsize, normal

_CONVOLUTIONS = ((64, 64, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1), (256, 64, 1, 1))
_SHAPES = [shape for taps in _CONVOLUTIONS for shape in (taps, taps[:1], taps[:1])]
_ELEMENTS = sum(map(prod, _SHAPES))

# How often each parameter's bytes must move: read and written, the gradient read.
_PASSES = {"sgd": 3, "sgd with momentum": 5, "adam": 7, "clip_grad_norm": 3}


def _case(operation: str, dtype: str) -> Case:
    def prepare() -> Callable[[], object]:
        p, g, m, v = ([normal(shape, dtype, seed) ** 2 for shape in _SHAPES] for seed in range(4))
        calls: dict[str, Callable[[], object]] = {
            "sgd": lambda: cuda.sgd(p, g, None, False, 0.1),
            "sgd with momentum": lambda: cuda.sgd(p, g, m, False, 0.1, 0.9),
            "adam": lambda: cuda.adam(p, g, m, v, None, 2, 0.001),
            "clip_grad_norm": lambda: cuda.clip_grad_norm(g, 1.0),
        }
        return calls[operation]

    return Case(
        operation=operation,
        shape="ResNet-50",
        dtype=dtype,
        prepare=prepare,
        needed=_PASSES[operation] * _ELEMENTS * itemsize(dtype),
    )


CASES = [_case(operation, dtype) for operation in _PASSES for dtype in ("float32", "bfloat16")]
