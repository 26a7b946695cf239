"""The norm of all gradients together, and clipping by it."""

from __future__ import annotations

from collections.abc import Sequence

from .. import geometry
from .checks import Array, check_arrays, same_kind, side
from .lists import check_each, check_writeable


def grad_norm(grads: Sequence[Array], norm_type: float = 2.0) -> Array:
    """The `norm_type`-norm of all elements of at least one array: 0-d, float64 if any array is, else float32."""
    _check("grad_norm", grads)
    geometry.grad_norm("grad_norm", norm_type)
    return side(grads[0]).grad_norm(grads, norm_type)


def clip_grads(grads: Sequence[Array], max_norm: float, total_norm: Array) -> None:
    """Multiply all arrays in place by max_norm / (total_norm + 1e-6) where that is less than 1.

    A total norm of NaN makes all elements NaN, as in PyTorch.
    """
    _check("clip_grads", grads)
    same_kind("clip_grads", grads=grads[0], total_norm=total_norm)
    check_arrays("clip_grads", total_norm=total_norm)
    if total_norm.shape != ():
        raise ValueError(f"clip_grads: total_norm must be a 0-d array, got the shape {total_norm.shape}")
    check_writeable("clip_grads", grads=grads)
    side(grads[0]).clip_grads(grads, max_norm, total_norm)


def clip_grad_norm(grads: Sequence[Array], max_norm: float, norm_type: float = 2.0) -> Array:
    """`grad_norm`, then `clip_grads` by it; on CUDA in two launches for each dtype. Returns the norm before."""
    _check("clip_grad_norm", grads)
    geometry.grad_norm("clip_grad_norm", norm_type)
    check_writeable("clip_grad_norm", grads=grads)
    return side(grads[0]).clip_grad_norm(grads, max_norm, norm_type)


def clamp_grads(grads: Sequence[Array], limit: float) -> None:
    """Limit all elements of all arrays to ±limit, in place; NaN stays."""
    _check("clamp_grads", grads)
    if not limit >= 0:
        raise ValueError(f"clamp_grads: limit must be at least 0, got {limit!r}")
    check_writeable("clamp_grads", grads=grads)
    side(grads[0]).clamp_grads(grads, limit)


def _check(operation: str, grads: Sequence[Array]) -> None:
    if not grads:
        raise ValueError(f"{operation}: grads must be at least one array")
    check_each(operation, "grads", grads)
