"""Fully connected layers."""

from __future__ import annotations

from ...engine import Tensor
from ...engine.operations import linalg
from .checks import check_tensor


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias. Shapes: (..., in), (out, in) and (out,) give (..., out)."""
    check_tensor("linear", "input", input)
    check_tensor("linear", "weight", weight)
    return linalg.linear(input, weight, bias)
