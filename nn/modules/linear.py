"""Fully connected layers."""

from __future__ import annotations

import math
from typing import Any

from ...engine import Tensor
from ...engine.operations.creation import empty
from .. import functional as F
from .. import init
from ..functional.checks import positive
from ..parameter import Parameter
from .module import Module


class Identity(Module):
    """Returns its input; arguments are ignored."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return input


class Linear(Module):
    """y = x Wᵀ + b. Shapes: (..., in_features) gives (..., out_features)."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.in_features = positive("Linear", "in_features", in_features, least=0)
        self.out_features = positive("Linear", "out_features", out_features, least=0)
        self.weight = Parameter(empty((out_features, in_features), dtype=dtype, device=device))
        size = (out_features,)
        self.register_parameter("bias", Parameter(empty(size, dtype=dtype, device=device)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly from ±1 / sqrt(in_features), as PyTorch does."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
