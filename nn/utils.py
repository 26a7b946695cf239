"""Limits on gradients before an optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import kernels
from ..engine import Tensor
from ..engine.backend import Device, device_of, transfer
from ..engine.grad_mode import mode
from ..engine.recorder import refuse
from ..engine.tensor import wrap

Tensors = Tensor | Iterable[Tensor]


def get_total_norm(tensors: Tensors, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> Tensor:
    """The norm of all elements of all tensors together; float64 if any tensor is, else float32.

    On a GPU nothing waits unless `error_if_nonfinite`.
    """
    arrays = [tensor._data for tensor in ([tensors] if isinstance(tensors, Tensor) else tensors)]
    return wrap(_total_norm("get_total_norm", arrays, norm_type, error_if_nonfinite))


def clip_grads_with_norm_(parameters: Tensors, max_norm: float, total_norm: Tensor) -> None:
    """Scale all gradients by max_norm / (total_norm + 1e-6) where that is less than 1."""
    gradients = _gradients(parameters)
    limit = float(max_norm)
    for device, same in _by_device(gradients).items():
        kernels.clip_grads([gradient._data for gradient in same], limit, transfer(total_norm._data, device))
    _count_changes(gradients)


def clip_grad_norm_(
    parameters: Tensors, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale all gradients so that their norm, taken together, is at most `max_norm`; returns the norm before.

    The norm of half types is float32. On a GPU nothing waits unless `error_if_nonfinite`.
    """
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    gradients = _gradients(tensors)
    arrays = [gradient._data for gradient in gradients]
    if not arrays or error_if_nonfinite or len(_by_device(gradients)) > 1:
        total = wrap(_total_norm("clip_grad_norm_", arrays, norm_type, error_if_nonfinite))
        clip_grads_with_norm_(tensors, max_norm, total)
        return total
    _check_order("clip_grad_norm_", norm_type)
    total = wrap(kernels.clip_grad_norm(arrays, float(max_norm), float(norm_type)))
    _count_changes(gradients)
    return total


def clip_grad_value_(parameters: Tensors, clip_value: float) -> None:
    """Limit each element of all gradients to ±clip_value."""
    limit = float(clip_value)
    if not limit >= 0:
        raise ValueError(f"clip_grad_value_: clip_value must be at least 0, got {clip_value}")
    gradients = _gradients(parameters)
    for same in _by_device(gradients).values():
        kernels.clamp_grads([gradient._data for gradient in same], limit)
    _count_changes(gradients)


def _gradients(parameters: Tensors) -> list[Tensor]:
    tensors = [parameters] if isinstance(parameters, Tensor) else parameters
    return [tensor.grad for tensor in tensors if tensor.grad is not None]


def _by_device(tensors: list[Tensor]) -> dict[Device, list[Tensor]]:
    found: dict[Device, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device, []).append(tensor)
    return found


def _total_norm(name: str, arrays: list[Any], norm_type: float, error_if_nonfinite: bool) -> Any:
    """The norm as a 0-d array on the first array's device."""
    _check_order(name, norm_type)
    if not arrays:
        return np.zeros((), np.float32)
    order = float(norm_type)
    devices: dict[Device, list[Any]] = {}
    for array in arrays:
        devices.setdefault(device_of(array), []).append(array)
    first = next(iter(devices))
    norms = [transfer(kernels.grad_norm(same, order), first) for same in devices.values()]
    total = norms[0] if len(norms) == 1 else kernels.grad_norm(norms, order)
    if error_if_nonfinite:
        refuse("look whether the norm is finite")
    if error_if_nonfinite and not math.isfinite(total.item()):
        raise RuntimeError(f"{name}: the norm of the gradients is {total.item()}; nothing was changed")
    return total


def _check_order(name: str, norm_type: float) -> None:
    if not float(norm_type) > 0:
        raise ValueError(f"{name}: norm_type must be positive, got {norm_type}")


def _count_changes(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        tensor._versions[0] += 1
        if mode.recorder is not None:
            mode.recorder.in_place(tensor)
