"""Group normalisation, with derivatives of any order."""

from __future__ import annotations

from typing import Any

from ... import kernels
from ..operation import Operation
from ..tensor import Tensor
from .layer_norm import derivatives, spread, wide

Optional = Tensor | None


class GroupNorm(Operation):
    """(x - mean) / sqrt(var + eps) * weight + bias over each of the `groups` of channels of (N, C, ...); vectors (C,).

    Returns also the mean and 1 / sqrt(var + eps), (N, groups), as float32 for half types, which carry no gradient.
    """

    materializes_grads = False

    def forward(ctx, x: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
        y, mean, rstd = kernels.group_norm(x, weight, bias, ctx.groups, ctx.eps)
        ctx.save_inputs(0, 1)
        ctx.save_arrays(mean, rstd)
        return y, mean, rstd

    def backward(ctx, grad: Tensor, *_: Optional) -> tuple[Optional, Optional, Optional]:
        need_x, *needs = ctx.needs_input_grad
        x, weight, mean, rstd = ctx.saved
        settings = {"groups": ctx.groups, "eps": ctx.eps, "needs": needs}
        by_x, *rest = GroupNormGrad.apply(grad, x, weight, mean, rstd, **settings)
        return by_x if need_x else None, *spread(needs, rest)


class GroupNormGrad(Operation):
    """The gradient of x, and those of weight and bias that are in `needs`."""

    materializes_grads = False

    def forward(ctx, dy: Any, x: Any, weight: Any, mean: Any, rstd: Any) -> tuple[Any, ...]:
        ctx.save_inputs(0, 1, 2)
        grads = kernels.group_norm_grad(dy, x, weight, mean, rstd, ctx.groups, *ctx.needs)
        return tuple(grad for grad in grads if grad is not None)

    def backward(ctx, along_x: Optional, *rest: Optional) -> tuple[Optional, ...]:
        g, x, weight = map(wide, ctx.saved)
        n, channels = x.shape[:2]
        grouped = (n, ctx.groups, channels // ctx.groups, -1) if x.ndim > 2 else (n, ctx.groups, -1, 1)

        def by_group(t: Any) -> Any:
            return None if t is None else t.reshape(grouped)

        def column(vector: Any) -> Any:
            return None if vector is None else vector.reshape(1, ctx.groups, -1, 1)

        along_weight, along_bias = map(column, spread(ctx.needs, rest))
        along = by_group(along_x), along_weight, along_bias
        by_g, by_x, by_weight = derivatives(by_group(g), by_group(x), column(weight), (2, 3), ctx.eps, True, along)
        by_g, by_x = (None if t is None else t.reshape(x.shape) for t in (by_g, by_x))
        return by_g, by_x, None if by_weight is None else by_weight.sum((0, 3)).reshape(channels), None, None
