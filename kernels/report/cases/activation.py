"""Activations, alone and after a bias: rows of a Transformer's feed-forward and planes of a ResNet's first stage."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ... import cuda
from ..case import Case, itemsize, normal

_ROWS = (32, 4096)
_PLANES = (2, 16, 56, 56)


def _activation(kind: str, backward: bool, dtype: str) -> Case:
    def prepare() -> Callable[[], object]:
        x, dy = normal(_ROWS, dtype), normal(_ROWS, dtype, 1)
        if backward:
            return lambda: cuda.activation_input_grad(dy, x, kind)
        return lambda: cuda.activation(x, kind)

    return Case(
        operation=f"{kind} backward" if backward else kind,
        shape="8192x4096",
        dtype=dtype,
        prepare=prepare,
        needed=(3 if backward else 2) * prod(_ROWS) * itemsize(dtype),
    )


def _bias_activation(shape: tuple[int, ...], name: str, backward: bool, dtype: str) -> Case:
    def prepare() -> Callable[[], object]:
        x, dy, bias = normal(shape, dtype), normal(shape, dtype, 1), normal(shape[1:2], dtype, 2)
        if backward:
            return lambda: cuda.bias_activation_grad(dy, x, bias, "gelu", 1)
        return lambda: cuda.bias_activation(x, bias, "gelu", 1)

    return Case(
        operation="bias + gelu backward" if backward else "bias + gelu",
        shape=name,
        dtype=dtype,
        prepare=prepare,
        # Backward reads dy, x and the bias, and writes their gradients.
        needed=((3 if backward else 2) * prod(shape) + (2 if backward else 1) * shape[1]) * itemsize(dtype),
    )


def _glu(backward: bool, dtype: str) -> Case:
    def prepare() -> Callable[[], object]:
        x, dy = normal(_ROWS, dtype), normal((_ROWS[0], _ROWS[1] // 2), dtype, 1)
        return (lambda: cuda.glu_input_grad(dy, x, 1)) if backward else (lambda: cuda.glu(x, 1))

    return Case(
        operation="glu backward" if backward else "glu",
        shape="8192x4096",
        dtype=dtype,
        prepare=prepare,
        needed=(5 if backward else 3) * prod(_ROWS) // 2 * itemsize(dtype),
    )


CASES = [
    case
    for dtype in ("float32", "bfloat16")
    for backward in (False, True)
    for case in (
        _activation("relu", backward, dtype),
        _bias_activation(_ROWS, "8192x4096", backward, dtype),
        _bias_activation(_PLANES, "64x256x56x56", backward, dtype),
        _glu(backward, dtype),
    )
]
