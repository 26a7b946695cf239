"""Group normalisation (Wu & He, 2018); with as many groups as channels, instance normalisation."""

from __future__ import annotations

from .. import geometry
from .checks import Array, check_arrays, check_vectors, side

Optional = Array | None


def group_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, groups: int = 1, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(var + eps) * weight + bias for each group of channels of each image of x (N, C, ...).

    weight and bias are (C,). Returns also the mean and 1 / sqrt(var + eps) with the biased variance, (N, groups), in
    float32 for half types. Vectors have the dtype of x, or float32 beside a half type.
    """
    operation = "group_norm"
    check_arrays(operation, x=x)
    check_vectors(operation, x, weight=weight, bias=bias)
    shapes = {name: None if vector is None else vector.shape for name, vector in (("weight", weight), ("bias", bias))}
    geometry.group_norm(operation, x.shape, groups, shapes)
    return side(x).group_norm(x, weight, bias, groups, eps)


def group_norm_grad(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    rstd: Array,
    groups: int,
    with_weight: bool = True,
    with_bias: bool = True,
) -> tuple[Array, Optional, Optional]:
    """The gradients of x, weight and bias, from what `group_norm` returned; the last two only where asked for.

    Those of weight and bias have the dtype of `weight`, or of x where there is none.
    """
    operation = "group_norm_grad"
    check_arrays(operation, dy=dy, x=x)
    check_vectors(operation, x, weight=weight)
    check_arrays(operation, mean=mean, rstd=rstd)
    statistics = {"mean": mean.shape, "rstd": rstd.shape}
    weight_shape = None if weight is None else weight.shape
    geometry.group_norm_grad(operation, x.shape, dy.shape, weight_shape, groups, statistics)
    return side(x).group_norm_grad(dy, x, weight, mean, rstd, groups, with_weight, with_bias)
