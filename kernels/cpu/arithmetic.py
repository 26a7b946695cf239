"""The type in which a dtype is computed."""

from __future__ import annotations

import numpy as np


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """float32 for the half types, which are rounded once at the end; any other type itself."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype
