"""Matrix products, alone or with what follows them in a layer."""

from __future__ import annotations

import numpy as np

from ..geometry.matmul import matmul as check
from .checks import Array, check_arrays, side


def matmul(a: Array, b: Array, bias: Array | None = None, activation: str | None = None) -> Array:
    """activation(a @ b + bias): (..., n, k) and (..., k, m) give (..., n, m).

    Leading dims broadcast; a vector counts as a row (a) or a column (b). `bias` is (m,), a number for each column, or
    (n, 1), one for each row; `activation` is None, "relu", "gelu", "gelu_tanh" or "silu". Halves are summed in float32
    and rounded once. Transposed and strided operands are read where they lie if their rows or their columns are dense.

    A 1×1 convolution is `matmul(weight, x)` with weight (K, C) and x (N, C, pixels), its bias (K, 1): N products that
    share the weight. Its gradients are `matmul(weight.T, dy)` for x, and for the weight the sum over N of
    `matmul(dy, x.transpose(0, 2, 1))`. None of them copies an operand.
    """
    # Small products are frequent: what all arrays have in common is seen faster here than `check_arrays` could.
    dtype = a.dtype if type(a) is type(b) is np.ndarray else None
    usual = dtype is not None and dtype is b.dtype and dtype.char in "fd"
    if not usual or (bias is not None and not (type(bias) is np.ndarray and bias.dtype is dtype)):
        check_arrays("matmul", a=a, b=b, bias=bias)
    check(a.shape, b.shape, None if bias is None else bias.shape, activation)
    return side(a).matmul(a, b, bias, activation)
