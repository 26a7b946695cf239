"""Dropout as a module."""

from __future__ import annotations

from ...engine import Tensor
from .. import functional as F
from ..functional.checks import check_probability
from .module import Module


class Dropout(Module):
    """In training, sets each element to zero with probability `p` and divides the others by 1 - p."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        check_probability("Dropout", p)
        self.p = p
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"
