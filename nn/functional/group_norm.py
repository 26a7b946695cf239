"""Group and instance normalisation; normalisation across channels, and to unit length."""

from __future__ import annotations

import math

from ...engine import Tensor
from ...engine.dtypes import is_floating
from ...engine.grad_mode import no_grad
from ...engine.inplace import check_may_change, record_change
from ...engine.operations.group_norm import GroupNorm
from ...engine.operations.joining import pad
from .checks import check_tensor, positive
from .normalization import batch_norm
from .pooling import avg_pool2d


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias for each of the groups of channels of each image of (N, C, ...).

    weight and bias are (C,) (Wu & He, 2018).
    """
    _check("group_norm", input, weight=weight, bias=bias)
    channels = input.shape[1]
    if channels % positive("group_norm", "num_groups", num_groups):
        raise ValueError(f"group_norm: num_groups must divide the {channels} channels, got {num_groups}")
    if math.prod(input.shape) == num_groups:
        raise ValueError(f"group_norm: expected more than one value per channel, got shape {input.shape}")
    return GroupNorm.apply(input, weight, bias, groups=num_groups, eps=eps)[0]


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias for each channel of each image of (N, C, ...).

    The running mean and variance (C,) move by `momentum` towards the means over the batch (the variance with L - 1, L
    the elements of a channel). Without `use_input_stats` they take the place of the input's (Ulyanov et al., 2016).
    """
    name = "instance_norm"
    running = {"running_mean": running_mean, "running_var": running_var}
    _check(name, input, weight=weight, bias=bias, **running)
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{name}: running_mean and running_var must be given both or neither")
    if not use_input_stats:
        if running_mean is None:
            raise ValueError(f"{name}: expected running_mean and running_var, or use_input_stats=True")
        return batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
    length = math.prod(input.shape[2:])
    if length == 1:
        raise ValueError(f"{name}: expected more than one element per channel, got shape {input.shape}")
    changed = [tensor for tensor in running.values() if tensor is not None]
    with no_grad():
        for tensor in changed:
            check_may_change(tensor, name)
    channels = max(input.shape[1], 1)
    result, mean, rstd = GroupNorm.apply(input, weight, bias, groups=channels, eps=eps)
    if changed and result._data.size:
        var = (1 / (rstd._data * rstd._data) - eps) * (length / (length - 1))
        with no_grad():
            for tensor, values in zip(changed, (mean._data, var), strict=True):
                tensor._data[...] = (1 - momentum) * tensor._data + momentum * values.mean(axis=0)
                record_change(tensor, None)
    return result


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """x / (k + alpha · mean of x² over `size` neighbouring channels)^beta for (N, C, ...) (Krizhevsky et al., 2012).

    Channels beyond the first and the last count as zeros.
    """
    name = "local_response_norm"
    if check_tensor(name, "input", input).ndim < 3:
        raise ValueError(f"{name}: input must have the shape (N, C, ...) with 3 dimensions or more, got {input.shape}")
    if not math.prod(input.shape):
        return input
    positive(name, "size", size)
    # Channels as rows of one image, padded so that each one's neighbours are size // 2 before and the rest after.
    planes = (input * input).reshape(input.shape[0], 1, input.shape[1], -1)
    before, after = size // 2, (size - 1) // 2
    means = avg_pool2d(pad(planes, (0, 0, before, after)), (size, 1), stride=1).reshape(input.shape)
    return input / (means * alpha + k) ** beta


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x divided by its p-norm along `dim`, or by eps where the norm is smaller."""
    return input / check_tensor("normalize", "input", input).norm(p, dim, keepdim=True).clamp(min=eps)


def _check(operation: str, input: Tensor, **vectors: Tensor | None) -> None:
    if not is_floating(check_tensor(operation, "input", input).dtype):
        raise TypeError(f"{operation}: input must have a floating dtype, got {input.dtype}")
    if input.ndim < 2:
        raise ValueError(f"{operation}: input must have the shape (N, C, ...), got {input.shape}")
    for name, vector in vectors.items():
        if vector is not None and check_tensor(operation, name, vector).shape != (input.shape[1],):
            raise ValueError(f"{operation}: {name} must have the shape ({input.shape[1]},), got {vector.shape}")
