"""Dropout: a few rows of a Transformer's hidden layer stand for all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ... import cuda
from ...cuda.random import Philox
from ..case import Case, itemsize, normal

_SHAPE = (32, 4096)


def _case(backward: bool, dtype: str) -> Case:
    def prepare() -> Callable[[], object]:
        x, random = normal(_SHAPE, dtype), Philox(np.zeros(2, np.int64))
        if not backward:
            return lambda: cuda.dropout(x, 0.1, random)
        y, kept = cuda.dropout(x, 0.1, random)
        return lambda: cuda.dropout_grad(y, 0.1, kept)

    return Case(
        operation="dropout backward" if backward else "dropout",
        shape="8192x4096",
        dtype=dtype,
        prepare=prepare,
        needed=2 * _SHAPE[0] * _SHAPE[1] * itemsize(dtype),
    )


CASES = [_case(backward, dtype) for dtype in ("float32", "bfloat16") for backward in (False, True)]
