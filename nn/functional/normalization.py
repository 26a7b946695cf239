"""Normalisation."""

from __future__ import annotations

import math

from ...engine import Tensor
from ...engine.grad_mode import no_grad
from ...engine.operations.batch_norm import BatchNorm
from ...engine.tensor import wrap
from .checks import check_tensor


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias for each channel of (N, C, ...).

    In training, mean and variance are the batch's, and the running ones move towards them by `momentum` (the
    variance with N - 1); else they are the running ones.
    """
    if check_tensor("batch_norm", "input", input).ndim < 2:
        raise ValueError(f"batch_norm: input must have the shape (N, C, ...), got {input.shape}")
    channels = input.shape[1]
    for name, vector in {
        "running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias,
    }.items():  # fmt: skip
        if vector is not None and check_tensor("batch_norm", name, vector).shape != (channels,):
            raise ValueError(f"batch_norm: {name} must have the shape ({channels},), got {vector.shape}")
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm: running_mean and running_var must be given both or neither")
    column = (-1, *(1,) * (input.ndim - 2))
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm: expected running_mean and running_var, or training=True")
        scale = (running_var + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -running_mean * scale if bias is None else bias - running_mean * scale
        return (input * scale.reshape(column) + shift.reshape(column)).to(input.dtype)
    count = math.prod(input.shape) // channels if channels else 0
    if count < 2:
        raise ValueError(f"batch_norm: expected more than one value per channel in training, got shape {input.shape}")
    result, mean, var = BatchNorm.apply(input, weight, bias, eps=eps)
    if running_mean is not None and running_var is not None:
        with no_grad():
            for running, new in (
                (running_mean, mean._data),
                (running_var, var._data * (count / (count - 1))),
            ):
                running.mul_(1 - momentum).add_(wrap(new * momentum).to(running.dtype))
    return result
