"""Limits on gradients before an optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..engine import Tensor
from ..engine.backend import array_module, transfer
from ..engine.dtypes import is_half
from ..engine.tensor import wrap


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    tensors = [parameters] if isinstance(parameters, Tensor) else parameters
    return [tensor.grad for tensor in tensors if tensor.grad is not None]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients so that their norm, taken together, is at most `max_norm`; returns the norm before.

    The norm of half types is float32. On a GPU nothing waits unless `error_if_nonfinite`.
    """
    order = float(norm_type)
    if not order > 0:
        raise ValueError(f"clip_grad_norm_: norm_type must be positive, got {norm_type}")
    gradients = _gradients(parameters)
    if not gradients:
        return wrap(np.zeros((), np.float32))
    module, device = array_module(gradients[0]._data), gradients[0].device
    norms = module.stack([transfer(_norm(module, gradient._data, order), device) for gradient in gradients])
    total = _norm(module, norms, order)
    if error_if_nonfinite and not math.isfinite(total.item()):
        raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {total.item()}; nothing was changed")
    factor = np.minimum(float(max_norm) / (total + 1e-6), 1.0)
    for gradient in gradients:
        array = gradient._data
        np.multiply(array, transfer(module.asarray(factor), gradient.device), out=array, casting="unsafe")
        gradient._versions[0] += 1
    return wrap(total)


def _norm(module: Any, array: Any, order: float) -> Any:
    """The norm of all elements as a 0-d array; halves in float32."""
    flat = (array.astype(np.float32) if is_half(array.dtype) else array).reshape(-1)
    if order == 2:
        return module.asarray(module.sqrt(module.dot(flat, flat)))
    flat = abs(flat)
    if order == math.inf:
        return module.asarray(flat.max() if flat.size else flat.sum())
    return module.asarray((flat**order).sum() ** (1 / order))


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limit each element of all gradients to ±clip_value."""
    limit = float(clip_value)
    for gradient in _gradients(parameters):
        array = gradient._data
        array[...] = np.clip(array, array.dtype.type(-limit), array.dtype.type(limit))
        gradient._versions[0] += 1
