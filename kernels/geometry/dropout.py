"""Settings of dropout, and the numbers that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

# −λα of SELU: what an element of very negative input becomes.
_SATURATED = -1.7580993408473766


def dropout(operation: str, shape: Sequence[int], p: float, kept_shape: Sequence[int] | None = None) -> None:
    """Check the probability of a dropout, and the shape of the mask where there is one."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{operation}: p must be at least 0 and below 1, got {p!r}")
    if kept_shape is not None and tuple(kept_shape) != tuple(shape):
        raise ValueError(f"{operation}: kept must have the shape {tuple(shape)} of dy, got {tuple(kept_shape)}")


def dropout_factors(p: float, alpha: bool) -> tuple[float, float, float]:
    """The factor of what is kept, and what is then added to what is kept and to what is not.

    Alpha dropout sets elements to SELU's saturated value and keeps mean 0 and variance 1 (Klambauer et al., 2017).
    """
    if not alpha:
        return 1 / (1 - p), 0.0, 0.0
    a = 1 / math.sqrt((_SATURATED**2 * p + 1) * (1 - p))
    shift = -a * p * _SATURATED
    return a, shift, a * _SATURATED + shift
