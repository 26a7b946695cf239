"""Dropout."""

from __future__ import annotations

from ...engine import Tensor
from .checks import check_probability, check_tensor


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In training, each element is zero with probability `p`, the others are divided by 1 - p."""
    check_tensor("dropout", "input", input)
    check_probability("dropout", p)
    if not input.is_floating_point():
        raise TypeError(f"dropout: expected a floating tensor, got dtype {input.dtype}")
    if not training or p == 0:
        return input
    mask = input.detach().bernoulli(1 - p)
    if p < 1:
        mask.mul_(1 / (1 - p))
    return input.mul_(mask) if inplace else input * mask
