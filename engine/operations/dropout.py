"""Dropout. Its gradient is linear, so it is its own derivative."""

from __future__ import annotations

from typing import Any

from ... import kernels
from ..backend import device_of
from ..operation import Operation
from ..random import default_generator
from ..tensor import Tensor


class Dropout(Operation):
    """Elements dropped with probability `p`; `alpha` as in alpha dropout."""

    def forward(ctx, x: Any) -> Any:
        y, kept = kernels.dropout(x, ctx.p, default_generator(device_of(x)).stream, ctx.alpha)
        ctx.save_arrays(kept)
        return y

    def backward(ctx, grad: Tensor) -> Tensor:
        return DropoutGrad.apply(grad, ctx.saved[0], p=ctx.p, alpha=ctx.alpha)


class DropoutGrad(Operation):
    """The elements that `kept` names, times their factor; zero elsewhere."""

    def forward(ctx, grad: Any, kept: Any) -> Any:
        ctx.save_inputs(1)
        return kernels.dropout_grad(grad, ctx.p, kept, ctx.alpha)

    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return DropoutGrad.apply(grad, ctx.saved[0], p=ctx.p, alpha=ctx.alpha), None
