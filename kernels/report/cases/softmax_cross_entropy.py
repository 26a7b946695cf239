"""Softmax-cross-entropy with its gradient: a few rows stand for all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ... import cuda
from ..case import Case, itemsize, normal


def _case(rows: int, classes: int, shape: str, dtype: str, with_grad: bool) -> Case:
    def prepare() -> Callable[[], object]:
        logits = normal((rows, classes), dtype)
        target = np.arange(rows) * 7 % classes
        return lambda: cuda.softmax_cross_entropy(logits, target, with_grad=with_grad)

    passes = 2 if with_grad else 1
    return Case(
        operation="softmax_cross_entropy with gradient" if with_grad else "softmax_cross_entropy",
        shape=shape,
        dtype=dtype,
        prepare=prepare,
        needed=passes * rows * classes * itemsize(dtype) + rows * 8,
    )


CASES = [
    _case(rows, classes, shape, dtype, with_grad)
    for rows, classes, shape in (
        (128, 1000, "8192x1000"),
        (8, 32000, "4096x32000"),
        (3, 128256, "4096x128256"),
    )
    for dtype in ("float32", "bfloat16")
    for with_grad in (True, False)
    if with_grad or classes == 32000
]
