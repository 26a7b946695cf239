"""What follows a sum: the activation of it and of what is added to it."""

from __future__ import annotations

import numpy as np

from .activation import activation as activate
from .arithmetic import compute_dtype


def finish(y: np.ndarray, activation: str | None, residual: np.ndarray | None) -> np.ndarray:
    """activation(y + residual); y belongs to the caller alone and may be changed."""
    if residual is not None:
        wide = compute_dtype(y.dtype)
        y = np.add(y, residual, out=y if wide == y.dtype else None, dtype=wide).astype(y.dtype, copy=False)
    return y if activation is None else activate(y, activation)
