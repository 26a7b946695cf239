"""Dropout."""

from __future__ import annotations

from typing import Any

from .. import geometry
from .checks import Array, check_arrays, same_kind, side


def dropout(x: Array, p: float, random: Any, alpha: bool = False) -> tuple[Array, Array]:
    """Each element zero with probability `p`, else x / (1 − p); and what tells which were kept, for `dropout_grad`.

    `random` is what draws: a NumPy generator over PCG64, on CUDA a `kernels.cuda.random.Philox`. `alpha`: alpha
    dropout, which keeps the mean 0 and the variance 1 (Klambauer et al., 2017).
    """
    check_arrays("dropout", x=x)
    geometry.dropout("dropout", x.shape, p)
    return side(x).dropout(x, p, random, alpha)


def dropout_grad(dy: Array, p: float, kept: Array, alpha: bool = False) -> Array:
    """The gradient of `dropout`, and its own: dy where an element was kept, times its factor, else zero."""
    check_arrays("dropout_grad", dy=dy)
    same_kind("dropout_grad", dy=dy, kept=kept)
    geometry.dropout("dropout_grad", dy.shape, p, kept.shape if kept.dtype == bool else None)
    return side(dy).dropout_grad(dy, p, kept, alpha)
