"""Matrix products on NumPy arrays, by BLAS."""

from __future__ import annotations

import math

import numpy as np

from .activation import activation as activated
from .arithmetic import compute_dtype

Array = np.ndarray


def matmul(a: Array, b: Array, bias: Array | None = None, activation: str | None = None) -> Array:
    dtype, half = a.dtype, a.dtype.itemsize == 2
    if half:
        wide = compute_dtype(dtype)
        a, b, bias = a.astype(wide), b.astype(wide), None if bias is None else bias.astype(wide)
    product = a @ b if a.ndim == 2 == b.ndim else _product(a, b)
    if bias is not None:
        product += bias
    if activation is not None:
        product = activated(product, activation)
    return product.astype(dtype) if half else product


def _product(a: Array, b: Array) -> Array:
    if a.ndim > 2 and b.ndim == 2:  # one large product instead of many small ones
        rows = a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
        return (rows @ b).reshape(*a.shape[:-1], b.shape[-1])
    product = a @ b  # of two vectors a number, of operands with leading dims in another order not in C order
    return product if type(product) is np.ndarray and product.flags.c_contiguous else np.asarray(product, order="C")
