"""Dropout of elements and of whole channels."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from ...engine import Tensor
from ...engine.backend import module_of, on_device
from ...engine.inplace import overwrite
from ...engine.operations.dropout import Dropout
from ...engine.tensor import wrap
from ...kernels.geometry import dropout_factors
from .checks import check_probability, check_tensor


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In training, each element is zero with probability `p`, the others are divided by 1 − p."""
    return _dropout("dropout", input, p, training, inplace)


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Dropout for SELU: dropped elements become its saturated value; mean 0 and variance 1 stay.

    G. Klambauer et al., Self-normalizing neural networks, 2017.
    """
    return _dropout("alpha_dropout", input, p, training, inplace, alpha=True)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels of (N, C, L) or (C, L)."""
    check_tensor("dropout1d", "input", input)
    if input.ndim not in (2, 3):
        raise ValueError(f"dropout1d: input must have the shape (N, C, L) or (C, L), got {input.shape}")
    return _channels("dropout1d", input, p, training, inplace, batched=input.ndim == 3)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels of (N, C, H, W). Three dimensions are (N, C, L), with a warning, as in PyTorch."""
    _expect("dropout2d", input, (4,), "(N, C, H, W)")
    return _channels("dropout2d", input, p, training, inplace, batched=True)


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout of whole channels of (N, C, D, H, W) or (C, D, H, W)."""
    _expect("dropout3d", input, (4, 5), "(N, C, D, H, W) or (C, D, H, W)")
    return _channels("dropout3d", input, p, training, inplace, batched=input.ndim == 5)


def feature_alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """Alpha dropout of whole channels of (N, C, …)."""
    return _channels("feature_alpha_dropout", input, p, training, inplace, batched=True, alpha=True)


def _dropout(name: str, input: Tensor, p: float, training: bool, inplace: bool, alpha: bool = False) -> Tensor:
    _check(name, input, p)
    if not training or p == 0 or not input.numel():
        return input

    def result(input: Tensor) -> Tensor:
        return input * 0.0 if p == 1 else Dropout.apply(input, p=p, alpha=alpha)

    return _result(name, result, input, inplace)


def _channels(
    name: str, input: Tensor, p: float, training: bool, inplace: bool, batched: bool, alpha: bool = False
) -> Tensor:
    """One decision for each channel: dropout of ones, broadcast over the input."""
    _check(name, input, p)
    if batched and input.ndim < 2:
        raise ValueError(f"{name}: input must have at least two dimensions (N, C, …), got {input.shape}")
    if not training or p == 0 or not input.numel():
        return input
    first = 2 if batched else 1
    shape = (*input.shape[:first], *(1,) * (input.ndim - first))

    def result(input: Tensor) -> Tensor:
        if p == 1:
            return input * 0.0
        with on_device(input.device):
            ones = wrap(module_of(input.device).ones(shape, input.dtype))
        noise = Dropout.apply(ones, p=p, alpha=False)
        if not alpha:
            return input * noise
        kept = (noise != 0).to(input.dtype)
        scale, kept_shift, dropped_shift = dropout_factors(p, alpha=True)
        return input * (kept * scale) + (kept * (kept_shift - dropped_shift) + dropped_shift)

    return _result(name, result, input, inplace)


def _result(name: str, function: Callable[[Tensor], Tensor], input: Tensor, inplace: bool) -> Tensor:
    if not inplace:
        return function(input)
    function.__name__ = name
    return overwrite(input, function, (), {})


def _check(name: str, input: Tensor, p: float) -> None:
    check_tensor(name, "input", input)
    check_probability(name, p)
    if not input.is_floating_point():
        raise TypeError(f"{name}: expected a floating tensor, got dtype {input.dtype}")


def _expect(name: str, input: Tensor, dims: tuple[int, ...], shape: str) -> None:
    check_tensor(name, "input", input)
    if input.ndim not in dims:
        warnings.warn(f"{name}: expected the shape {shape}, got {input.shape}", stacklevel=3)
