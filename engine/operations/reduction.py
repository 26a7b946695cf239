"""Sums, means, extremes and other ways to make many elements one."""

from __future__ import annotations

import builtins
import math
from typing import Any, NamedTuple

import numpy as np

from ..backend import array_module
from ..dtypes import as_dtype, get_default_dtype, int64, is_floating, is_half
from ..operation import Operation
from ..tensor import Tensor
from .arithmetic import where
from .define import public
from .dims import Dims, kept_shape, normalize_dim, normalize_dims
from .joining import cat


class Sum(Operation):
    def forward(ctx, x: Any) -> Any:
        ctx.shape = x.shape
        dtype = ctx.dtype
        if dtype is None and not is_floating(x.dtype):
            dtype = int64
        wide = np.float32 if is_half(x.dtype if dtype is None else dtype) else dtype
        result = x.sum(axis=ctx.dims, keepdims=ctx.keepdim, dtype=wide)
        return result.astype(x.dtype if dtype is None else dtype) if wide is np.float32 else result

    def backward(ctx, grad: Tensor) -> Tensor:
        if not ctx.keepdim:
            grad = grad.reshape(kept_shape(ctx.shape, ctx.dims))
        return grad.expand(ctx.shape)


@public()
def sum(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The sum over `dim` (all by default). Integers and bools sum to int64; halves accumulate in float32."""
    dims = normalize_dims("sum", dim, input.ndim)
    return Sum.apply(input, dims=dims, keepdim=keepdim, dtype=None if dtype is None else as_dtype(dtype))


@public()
def mean(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The mean over `dim` (all by default) of a floating tensor."""
    if not is_floating(input.dtype if dtype is None else as_dtype(dtype)):
        raise TypeError(f"mean: expected a floating tensor or dtype, got {input.dtype}")
    count = math.prod(input.shape[d] for d in normalize_dims("mean", dim, input.ndim))
    kind = input.dtype if dtype is None else as_dtype(dtype)
    # A sum of halves could overflow, so it stays in float32 until it is divided.
    total = sum(input, dim, keepdim, dtype=np.float32 if is_half(kind) else dtype)
    result = total * (1.0 / count) if count else total / 0.0
    return result.to(kind) if is_half(kind) else result


@public()
def var(
    input: Tensor,
    dim: Dims = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float = 1,
) -> Tensor:
    """The variance over `dim`: squares about the mean, divided by N - correction (unbiased=False: by N)."""
    if not is_floating(input.dtype):
        raise TypeError(f"var: expected a floating tensor, got {input.dtype}")
    if is_half(input.dtype):
        return var(input.to(np.float32), dim, unbiased, keepdim, correction=correction).to(input.dtype)
    correction = correction if unbiased is None else int(unbiased)
    count = math.prod(input.shape[d] for d in normalize_dims("var", dim, input.ndim))
    centred = input - mean(input, dim, keepdim=True)
    total = sum(centred * centred, dim, keepdim)
    divisor = builtins.max(count - correction, 0)
    return total * (1.0 / divisor) if divisor else total / 0.0


@public()
def std(
    input: Tensor,
    dim: Dims = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float = 1,
) -> Tensor:
    """The square root of `var`; where it is 0 its gradient is taken to be 0."""
    if is_half(input.dtype):
        return std(input.to(np.float32), dim, unbiased, keepdim, correction=correction).to(input.dtype)
    return FlatSqrt.apply(var(input, dim, unbiased, keepdim, correction=correction))


class FlatSqrt(Operation):
    """The square root with derivative 0 at 0."""

    def forward(ctx, x: Any) -> Any:
        ctx.save_outputs(0)
        return np.sqrt(x)

    def backward(ctx, grad: Tensor) -> Tensor:
        (y,) = ctx.saved
        return where(y == 0, 0.0, grad / (where(y == 0, 1.0, y) * 2))


@public()
def var_mean(
    input: Tensor,
    dim: Dims = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float = 1,
) -> tuple[Tensor, Tensor]:
    """The pair (variance, mean) over `dim`."""
    return var(input, dim, unbiased, keepdim, correction=correction), mean(input, dim, keepdim)


@public()
def std_mean(
    input: Tensor,
    dim: Dims = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float = 1,
) -> tuple[Tensor, Tensor]:
    """The pair (standard deviation, mean) over `dim`."""
    return std(input, dim, unbiased, keepdim, correction=correction), mean(input, dim, keepdim)


class Prod(Operation):
    def forward(ctx, x: Any) -> Any:
        ctx.save_inputs(0)
        wide = np.float32 if is_half(x.dtype) else x.dtype if is_floating(x.dtype) else np.int64
        result = x.prod(axis=ctx.dim, keepdims=ctx.keepdim, dtype=wide)
        return result.astype(x.dtype) if is_half(x.dtype) else result

    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved
        if not ctx.keepdim:
            grad = grad.unsqueeze(ctx.dim)
        size = x.shape[ctx.dim]
        if not size:
            return grad.expand(x.shape)
        # The product of all others, from both sides, so that zeros need no division.
        ones = x.narrow(ctx.dim, 0, 1).detach() * 0 + 1
        left, right = [ones], [ones]
        for i in range(size - 1):
            left.append(left[-1] * x.narrow(ctx.dim, i, 1))
            right.append(right[-1] * x.narrow(ctx.dim, size - 1 - i, 1))
        return grad * cat(left, ctx.dim) * cat(right[::-1], ctx.dim)


@public()
def prod(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The product over `dim`, or of all elements."""
    if dim is None or not input.ndim:
        return prod(input.reshape(-1), 0)
    return Prod.apply(input, dim=normalize_dim("prod", dim, input.ndim), keepdim=keepdim)


class Values(NamedTuple):
    """What an extreme along a dimension returns: the elements and where they were."""

    values: Tensor
    indices: Tensor


class _ExtremeOfAll(Operation):
    """Ties share the gradient equally."""

    pick: str

    def forward(ctx, x: Any) -> Any:
        if not x.size and 0 in [x.shape[d] for d in ctx.dims]:
            raise ValueError(f"{ctx.name.lower()}: a reduced dim of shape {x.shape} has no elements")
        ctx.save_inputs(0)
        ctx.save_outputs(0)
        return getattr(x, ctx.pick)(axis=ctx.dims, keepdims=ctx.keepdim)

    def backward(ctx, grad: Tensor) -> Tensor:
        x, y = ctx.saved
        if not ctx.keepdim:
            shape = kept_shape(x.shape, ctx.dims)
            grad, y = grad.reshape(shape), y.reshape(shape)
        chosen = ((x == y) | ((x != x) & (y != y))).to(grad.dtype)
        return grad * (chosen / chosen.sum(ctx.dims, keepdim=True))


class Amax(_ExtremeOfAll):
    pick = "max"


class Amin(_ExtremeOfAll):
    pick = "min"


@public()
def amax(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The largest element over `dim` (all by default); equal ones share the gradient."""
    return Amax.apply(input, dims=normalize_dims("amax", dim, input.ndim), keepdim=keepdim)


@public()
def amin(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The smallest element over `dim` (all by default); equal ones share the gradient."""
    return Amin.apply(input, dims=normalize_dims("amin", dim, input.ndim), keepdim=keepdim)


def _extreme(input: Tensor, dim: Any, keepdim: bool, of_all: Any, of_two: str, find: Any) -> Any:
    if dim is None:
        return of_all(input)
    if isinstance(dim, Tensor):
        return getattr(input, of_two)(dim)
    indices = find(input, dim, keepdim=True)
    values = input.gather(dim, indices) if input.ndim else input.reshape(input.shape)
    if not keepdim and input.ndim:
        values, indices = values.squeeze(dim), indices.squeeze(dim)
    return Values(values, indices)


@public()
def max(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest element; along `dim` a pair (values, indices); with a second tensor, `maximum`."""
    return _extreme(input, dim, keepdim, amax, "maximum", argmax)


@public()
def min(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest element; along `dim` a pair (values, indices); with a second tensor, `minimum`."""
    return _extreme(input, dim, keepdim, amin, "minimum", argmin)


class _Search(Operation):
    """An index along a dimension, of the first where several are equal."""

    differentiable = False
    pick: str

    def forward(ctx, x: Any) -> Any:
        if ctx.dim is None:
            return getattr(x, ctx.pick)().astype(int64)
        if x.ndim and not x.shape[ctx.dim]:
            raise IndexError(f"{ctx.pick}: dim {ctx.dim} of shape {x.shape} has no elements")
        found = getattr(array_module(x), ctx.pick)(x, axis=ctx.dim if x.ndim else None, keepdims=ctx.keepdim)
        return array_module(x).asarray(found, dtype=int64)


class Argmax(_Search):
    pick = "argmax"


class Argmin(_Search):
    pick = "argmin"


@public()
def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The int64 index of the largest element, along `dim` or of the flattened tensor."""
    return Argmax.apply(input, dim=None if dim is None else normalize_dim("argmax", dim, input.ndim), keepdim=keepdim)


@public()
def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The int64 index of the smallest element, along `dim` or of the flattened tensor."""
    return Argmin.apply(input, dim=None if dim is None else normalize_dim("argmin", dim, input.ndim), keepdim=keepdim)


class _Truth(Operation):
    differentiable = False
    pick: str

    def forward(ctx, x: Any) -> Any:
        return getattr(x.astype(bool), ctx.pick)(axis=ctx.dims, keepdims=ctx.keepdim)


class All(_Truth):
    pick = "all"


class Any_(_Truth):
    pick = "any"


@public()
def all(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether all elements are true, over `dim` or altogether."""
    return All.apply(input, dims=normalize_dims("all", dim, input.ndim), keepdim=keepdim)


@public()
def any(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether any element is true, over `dim` or altogether."""
    return Any_.apply(input, dims=normalize_dims("any", dim, input.ndim), keepdim=keepdim)


class Cumsum(Operation):
    def forward(ctx, x: Any) -> Any:
        if not x.ndim:
            return x.copy()
        dtype = x.dtype if is_floating(x.dtype) else int64
        wide = np.float32 if is_half(x.dtype) else dtype
        return x.cumsum(axis=ctx.dim, dtype=wide).astype(dtype, copy=False)

    def backward(ctx, grad: Tensor) -> Tensor:
        return cumsum(grad.flip(ctx.dim), ctx.dim).flip(ctx.dim) if grad.ndim else grad


@public(inplace=True)
def cumsum(input: Tensor, dim: int) -> Tensor:
    """The sums of the elements up to each along `dim`."""
    return Cumsum.apply(input, dim=normalize_dim("cumsum", dim, input.ndim))


@public()
def logsumexp(input: Tensor, dim: Dims, keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))) over `dim`, without overflow."""
    dims = normalize_dims("logsumexp", dim, input.ndim)
    if is_half(input.dtype):
        return logsumexp(input.to(np.float32), dim, keepdim).to(input.dtype)
    if not is_floating(input.dtype):
        input = input.to(get_default_dtype())
    highest = amax(input.detach(), dims, keepdim=True)
    highest = where(highest.isfinite(), highest, 0.0)
    result = sum((input - highest).exp(), dims, keepdim=True).log() + highest
    return result if keepdim else result.reshape(tuple(n for i, n in enumerate(input.shape) if i not in dims))


@public()
def norm(input: Tensor, p: float | str = 2, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The p-norm over `dim` (all by default): (sum |x|^p)^(1/p); "fro" means 2, inf the largest |x|."""
    if p in ("fro", 2):
        return Norm.apply(input, dims=normalize_dims("norm", dim, input.ndim), keepdim=keepdim)
    if p == math.inf:
        return amax(input.abs(), dim, keepdim)
    if p == -math.inf:
        return amin(input.abs(), dim, keepdim)
    if isinstance(p, str):
        raise ValueError(f'norm: p must be a number or "fro", got {p!r}')
    if p == 0:
        return sum((input != 0).to(input.dtype), dim, keepdim)
    return sum(input.abs() ** p, dim, keepdim) ** (1 / p)


class Norm(Operation):
    def forward(ctx, x: Any) -> Any:
        ctx.save_inputs(0)
        ctx.save_outputs(0)
        wide = x.astype(np.float32) if is_half(x.dtype) else x
        return np.sqrt((wide * wide).sum(axis=ctx.dims, keepdims=ctx.keepdim)).astype(x.dtype)

    def backward(ctx, grad: Tensor) -> Tensor:
        x, y = ctx.saved
        shape = kept_shape(x.shape, ctx.dims)
        grad, y = grad.reshape(shape), y.reshape(shape)
        return where(y == 0, 0.0, grad / where(y == 0, 1.0, y)) * x  # flat at the origin, as in PyTorch
