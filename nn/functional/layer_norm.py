"""Layer and RMS normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine import Tensor
from ...engine.dtypes import is_floating
from ...engine.operations.layer_norm import LayerNorm
from .checks import check_tensor, positive


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimensions, which have the shape `normalized_shape`.

    weight and bias have that shape (Ba, Kiros & Hinton, 2016).
    """
    shape = checked_shape("layer_norm", normalized_shape)
    _check("layer_norm", input, shape, weight=weight, bias=bias)
    return LayerNorm.apply(input, weight, bias, dims=len(shape), centred=True, eps=eps)


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimensions, which have the shape `normalized_shape`.

    weight has that shape; eps None is the distance from 1 to the next number of the type that is computed in, which for
    half types is float32 (Zhang & Sennrich, 2019).
    """
    shape = checked_shape("rms_norm", normalized_shape)
    _check("rms_norm", input, shape, weight=weight)
    if eps is None:
        eps = 2.0**-52 if input.dtype.itemsize == 8 else 2.0**-23
    return LayerNorm.apply(input, weight, None, dims=len(shape), centred=False, eps=eps)


def checked_shape(operation: str, shape: Any) -> tuple[int, ...]:
    """`normalized_shape`, an integer or a sequence of them, as a tuple."""
    if isinstance(shape, Sequence) and not isinstance(shape, str):
        sizes = tuple(positive(operation, "normalized_shape", size, least=0) for size in shape)
        if not sizes:
            raise ValueError(f"{operation}: normalized_shape must have at least one dimension, got {shape!r}")
        return sizes
    return (positive(operation, "normalized_shape", shape, least=0),)


def _check(operation: str, input: Tensor, shape: tuple[int, ...], **vectors: Tensor | None) -> None:
    if not is_floating(check_tensor(operation, "input", input).dtype):
        raise TypeError(f"{operation}: input must have a floating dtype, got {input.dtype}")
    if input.shape[-len(shape) :] != shape:
        raise ValueError(f"{operation}: input must have the shape (*, {_listed(shape)}), got {input.shape}")
    for name, vector in vectors.items():
        if vector is not None and check_tensor(operation, name, vector).shape != shape:
            raise ValueError(f"{operation}: {name} must have the shape {shape}, got {vector.shape}")


def _listed(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
