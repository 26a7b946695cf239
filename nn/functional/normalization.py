"""Normalisation."""

from __future__ import annotations

import math

from ...engine import Tensor
from ...engine.grad_mode import mode
from ...engine.inplace import check_memory, count_change
from ...engine.operations.batch_norm import BatchNorm
from .checks import check_tensor

_TENSORS = ("input", "running_mean", "running_var", "weight", "bias", "residual", "num_batches_tracked")


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias for each channel of (N, C, ...), + residual, then ReLU with `relu`.

    In training, mean and variance are the batch's, and the running ones move towards them by `momentum` (the
    variance with N - 1); else they are the running ones. `num_batches_tracked`, 0-d int64, counts the batches of
    training; momentum=None stands for its reciprocal, which makes the running ones plain means over all batches.
    """
    tensors = (input, running_mean, running_var, weight, bias, residual, num_batches_tracked)
    for name, tensor in zip(_TENSORS, tensors, strict=True):
        if tensor is not None or name == "input":
            check_tensor("batch_norm", name, tensor)
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm: running_mean and running_var must be given both or neither")
    statistics = [t for t in (running_mean, running_var, num_batches_tracked) if t is not None]
    if not training:
        if running_mean is None:
            raise ValueError("batch_norm: expected running_mean and running_var, or training=True")
    elif len(shape := input.shape) > 1 and math.prod(shape) == shape[1] > 0:
        raise ValueError(f"batch_norm: expected more than one value per channel in training, got shape {shape}")
    if mode.recorder is not None:
        for tensor in statistics:
            mode.recorder.uses(tensor)
    changed = statistics if training else []
    for tensor in changed:
        check_memory(tensor._data, "batch_norm")
    result = BatchNorm.apply(
        input,
        weight,
        bias,
        residual,
        eps=eps,
        relu=relu,
        inference=not training,
        running_mean=None if running_mean is None else running_mean._data,
        running_var=None if running_var is None else running_var._data,
        momentum=momentum,
        num_batches_tracked=None if num_batches_tracked is None else num_batches_tracked._data,
    )
    for tensor in changed:
        count_change(tensor)
    return result
