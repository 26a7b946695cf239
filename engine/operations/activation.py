"""Activations that are more than a formula of `elementwise`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..operation import Operation
from ..tensor import Tensor


class LogSigmoid(Operation):
    """log(1 / (1 + exp(-x))) without overflow."""

    def forward(ctx, x: Any) -> Any:
        ctx.save_inputs(0)
        return np.minimum(x, x.dtype.type(0)) - np.log1p(np.exp(-np.abs(x)))

    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * (-ctx.saved[0]).sigmoid()
