"""Convolution of one, two or three axes: three operations that are each other's derivatives."""

from __future__ import annotations

from typing import Any

from ... import kernels
from ..operation import Operation
from ..tensor import Tensor
from .activation import ActivationGrad

Optional = Tensor | None


class _Convolution(Operation):
    """One of the three operations of a convolution, each of which is the derivative of the two others."""

    def geometry(ctx) -> dict[str, Any]:
        return {
            "stride": ctx.stride, "padding": ctx.padding, "dilation": ctx.dilation, "groups": ctx.groups,
        }  # fmt: skip

    def save_what_is_needed(ctx) -> None:
        """Each of the two inputs is needed for the gradient of the other."""
        by_first, by_second = ctx.needs_input_grad[:2]
        if by_second:
            ctx.save_inputs(0)
        if by_first:
            ctx.save_inputs(1)


class _Forward(_Convolution):
    def gradients(ctx, grad: Tensor, saved: list[Tensor]) -> tuple[Optional, Optional, Optional]:
        """Of x, weight and bias, from that of the sum."""
        by_x = by_weight = by_bias = None
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        if need_x:
            by_x = ConvolutionInputGrad.apply(grad, saved[-1], input_shape=ctx.input_shape, **ctx.geometry())
        if need_weight:
            by_weight = ConvolutionWeightGrad.apply(grad, saved[0], weight_shape=ctx.weight_shape, **ctx.geometry())
        if need_bias:
            by_bias = ConvolutionBiasGrad.apply(grad)
        return by_x, by_weight, by_bias


class Convolution(_Forward):
    """Images (N, C, *sizes), filters (K, C / groups, *taps) and a bias (K,) or None to (N, K, *outputs)."""

    def forward(ctx, x: Any, weight: Any, bias: Any) -> Any:
        ctx.save_what_is_needed()
        ctx.input_shape, ctx.weight_shape = x.shape, weight.shape
        return kernels.conv(x, weight, bias, **ctx.geometry())

    def backward(ctx, grad: Tensor) -> tuple[Optional, Optional, Optional]:
        return ctx.gradients(grad, ctx.saved)


class ConvolutionActivation(_Forward):
    """f(convolution + bias + residual), with a residual of the result's shape, or None.

    `kind` is None or an activation whose slope comes from its output: what others need is not computed here.
    """

    def forward(ctx, x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        ctx.save_what_is_needed()
        if ctx.kind is not None:
            ctx.save_outputs(0)
        ctx.input_shape, ctx.weight_shape = x.shape, weight.shape
        return kernels.conv(x, weight, bias, **ctx.geometry(), activation=ctx.kind, residual=residual)

    def backward(ctx, grad: Tensor) -> tuple[Optional, ...]:
        saved = ctx.saved
        if ctx.kind is not None:
            grad = ActivationGrad.apply(grad, saved.pop(), kind=ctx.kind, a=0.0, b=0.0, slope=None)
        return *ctx.gradients(grad, saved), grad if ctx.needs_input_grad[3] else None


class ConvolutionInputGrad(_Convolution):
    """The gradient of a convolution with respect to its images, from that of its result and the filters."""

    def forward(ctx, dy: Any, weight: Any) -> Any:
        ctx.save_what_is_needed()
        ctx.weight_shape = weight.shape
        return kernels.conv_input_grad(dy, weight, ctx.input_shape, **ctx.geometry())

    def backward(ctx, grad: Tensor) -> tuple[Optional, Optional]:
        by_dy = by_weight = None
        need_dy, need_weight = ctx.needs_input_grad
        saved = ctx.saved
        if need_dy:
            by_dy = Convolution.apply(grad, saved[-1], None, **ctx.geometry())
        if need_weight:
            by_weight = ConvolutionWeightGrad.apply(saved[0], grad, weight_shape=ctx.weight_shape, **ctx.geometry())
        return by_dy, by_weight


class ConvolutionWeightGrad(_Convolution):
    """The gradient of a convolution with respect to its filters, from that of its result and the images."""

    def forward(ctx, dy: Any, x: Any) -> Any:
        ctx.save_what_is_needed()
        ctx.input_shape = x.shape
        return kernels.conv_weight_grad(dy, x, ctx.weight_shape, **ctx.geometry())

    def backward(ctx, grad: Tensor) -> tuple[Optional, Optional]:
        by_dy = by_x = None
        need_dy, need_x = ctx.needs_input_grad
        saved = ctx.saved
        if need_dy:
            by_dy = Convolution.apply(saved[-1], grad, None, **ctx.geometry())
        if need_x:
            by_x = ConvolutionInputGrad.apply(saved[0], grad, input_shape=ctx.input_shape, **ctx.geometry())
        return by_dy, by_x


class ConvolutionBiasGrad(Operation):
    """The gradient of a convolution with respect to its bias (K,), from that of its result (N, K, *outputs)."""

    def forward(ctx, dy: Any) -> Any:
        ctx.shape = dy.shape
        return kernels.conv_bias_grad(dy)

    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.reshape(1, -1, *(1,) * (len(ctx.shape) - 2)).expand(ctx.shape)


class ChannelBias(Operation):
    """(N, K, *outputs) and a bias (K,) added to them."""

    def forward(ctx, x: Any, bias: Any) -> Any:
        return x + bias.reshape(-1, *(1,) * (x.ndim - 2))

    def backward(ctx, grad: Tensor) -> tuple[Tensor, Optional]:
        return grad, ConvolutionBiasGrad.apply(grad) if ctx.needs_input_grad[1] else None
