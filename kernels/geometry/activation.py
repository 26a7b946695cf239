"""The kinds of activations, what backward needs of each, and the checks of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Shape = tuple[int, ...]


class Kind(NamedTuple):
    """One kind: its number in src/activation.cuh, and what its slope is computed from."""

    code: int
    # From the output where that costs no accuracy: the input can then be freed, or changed in place.
    from_output: bool


# The parameters a and b, where a kind has any, are named behind it.
KINDS = {
    "relu": Kind(0, True),
    "leaky_relu": Kind(1, True),  # a: negative_slope
    "elu": Kind(2, False),  # a: alpha
    "selu": Kind(3, False),
    "celu": Kind(4, False),  # a: alpha
    "gelu": Kind(5, False),
    "gelu_tanh": Kind(6, False),
    "silu": Kind(7, False),
    "mish": Kind(8, False),
    "softplus": Kind(9, False),  # a: beta, b: threshold
    "hardtanh": Kind(10, True),  # a: min_val, b: max_val
    "hardsigmoid": Kind(11, False),
    "hardswish": Kind(12, False),
    "sigmoid": Kind(13, True),
    "tanh": Kind(14, True),
    "logsigmoid": Kind(15, True),
    "softsign": Kind(16, False),
    "softshrink": Kind(17, False),  # a: lambd
    "hardshrink": Kind(18, False),  # a: lambd
    "tanhshrink": Kind(19, False),
    "threshold": Kind(20, False),  # a: threshold, b: value
}


def slope_from_output(kind: str, a: float) -> bool:
    """Whether the slope is computed from the output, not from the input."""
    # With a negative slope the output's sign does not tell the input's.
    return KINDS[kind].from_output and not (kind == "leaky_relu" and a < 0)


def activation(operation: str, kind: str) -> None:
    """Check that there is such a kind."""
    if kind not in KINDS:
        raise ValueError(f"{operation}: kind must be one of {', '.join(KINDS)}, got {kind!r}")


def activation_grad(operation: str, kind: str, dy_shape: Shape, saved_shape: Shape) -> None:
    """Check the kind, and that the gradient of the output has the shape of what was saved."""
    activation(operation, kind)
    same_shape(operation, dy_shape, saved_shape)


def same_shape(operation: str, dy_shape: Shape, x_shape: Shape) -> None:
    """Check that the gradient of the output has the shape of the input."""
    if dy_shape != x_shape:
        raise ValueError(f"{operation}: dy must have the shape of the input, {x_shape}, got {dy_shape}")


def channels(operation: str, name: str, shape: Shape, vector_shape: Shape, dim: int) -> None:
    """Check a vector with one number for each position along a dimension."""
    if not 0 <= dim < len(shape):
        raise ValueError(f"{operation}: dim must be from 0 to {len(shape) - 1} for the shape {shape}, got {dim}")
    if vector_shape != (shape[dim],):
        wanted = f"({shape[dim]},) for dimension {dim} of {shape}"
        raise ValueError(f"{operation}: {name} must have the shape {wanted}, got {vector_shape}")


def prelu(operation: str, shape: Shape, weight_shape: Shape) -> None:
    """Check a weight that is for all elements, or has one number for each position along dimension 1."""
    if weight_shape == (1,):
        return
    if len(shape) < 2:
        raise ValueError(f"{operation}: weight must have the shape (1,) for an input of {shape}, got {weight_shape}")
    channels(operation, "weight", shape, weight_shape, 1)


def glu(operation: str, shape: Shape, dim: int) -> Shape:
    """The shape with `dim` halved."""
    if not 0 <= dim < len(shape):
        raise ValueError(f"{operation}: dim must be from 0 to {len(shape) - 1} for the shape {shape}, got {dim}")
    if shape[dim] % 2:
        raise ValueError(f"{operation}: the size of dimension {dim} must be even, got the shape {shape}")
    return (*shape[:dim], shape[dim] // 2, *shape[dim + 1 :])


def glu_grad(operation: str, dy_shape: Shape, shape: Shape, dim: int) -> None:
    """Check that the gradient of the output has the shape of the input with `dim` halved."""
    wanted = glu(operation, shape, dim)
    if dy_shape != wanted:
        raise ValueError(f"{operation}: dy must have the shape {wanted} for an input of {shape}, got {dy_shape}")


def planes(shape: Sequence[int], dim: int) -> tuple[int, int, int]:
    """The shape as (outer, size of dim, inner)."""
    outer = inner = 1
    for size in shape[:dim]:
        outer *= size
    for size in shape[dim + 1 :]:
        inner *= size
    return outer, shape[dim], inner
