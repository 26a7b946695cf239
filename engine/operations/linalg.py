"""Products of vectors and matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import kernels
from ...kernels.geometry.matmul import matmul as check_shapes
from ..backend import is_array
from ..dtypes import is_floating
from ..grad_mode import mode
from ..operation import Operation
from ..promotion import on_one_device
from ..tensor import Tensor, wrap
from .arithmetic import add, mul
from .define import public
from .shape import reshape


def product(a: Any, b: Any, bias: Any = None) -> Any:
    """a @ b + bias of arrays, by the kernels; of integers by NumPy or CuPy, as no BLAS knows them."""
    if is_floating(a.dtype):
        return kernels.matmul(a, b, bias)
    check_shapes(a.shape, b.shape, None, None)
    return a @ b if bias is None else a @ b + bias


class Matmul(Operation):
    """Matrices in the last two dims, the others broadcast; a vector counts as a row or column."""

    def forward(ctx, a: Any, b: Any) -> Any:
        a, b = on_common_ground("matmul", a, b)
        ctx.save_inputs(0, 1)
        return product(a, b)

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved
        need_a, need_b = ctx.needs_input_grad
        if a.ndim == 1 and b.ndim == 1:
            return grad * b if need_a else None, grad * a if need_b else None
        if a.ndim == 1:
            by_a = matmul(b, grad.unsqueeze(-1)).squeeze(-1) if need_a else None
            return by_a, a.unsqueeze(-1) * grad.unsqueeze(-2) if need_b else None
        if b.ndim == 1:
            by_b = matmul(a.mT, grad.unsqueeze(-1)).squeeze(-1) if need_b else None
            return grad.unsqueeze(-1) * b if need_a else None, by_b
        by_a = matmul(grad, b.mT) if need_a else None
        if not need_b:
            return by_a, None
        if b.ndim == 2 and a.ndim > 2:
            return by_a, matmul(_rows(a).t(), _rows(grad))
        return by_a, matmul(a.mT, grad)


def on_common_ground(name: str, *arrays: Any) -> Sequence[Any]:
    """`arrays`, all of one dtype and on one device."""
    first, *others = arrays
    if type(first) is np.ndarray:
        for other in others:
            if type(other) is not np.ndarray or other.dtype is not first.dtype:
                break
        else:
            return arrays
    if not all(is_array(x) for x in arrays):
        raise TypeError(f"{name}: expected tensors, got {', '.join(type(x).__name__ for x in arrays)}")
    if any(x.dtype != first.dtype for x in others):
        raise TypeError(f"{name}: expected tensors of one dtype, got {', '.join(str(x.dtype) for x in arrays)}")
    return on_one_device(name, list(arrays))


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _rows(x: Tensor) -> Tensor:
    """The last dimension against all others as one."""
    return reshape(x, (_count(x.shape[:-1]), x.shape[-1]))


@public(operator="matmul")
def matmul(input: Any, other: Any) -> Tensor:
    """The matrix product; leading dims broadcast, a vector counts as a row (left) or a column (right).

    Shapes: (..., n, k) and (..., k, m) give (..., n, m). Halves accumulate in float32.
    """
    return Matmul.apply(input, other)


def _expect_dims(name: str, *wanted: tuple[Any, int]) -> None:
    if any(tensor.ndim != ndim for tensor, ndim in wanted):
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor, _ in wanted)
        dims = " and ".join(str(ndim) for _, ndim in wanted)
        raise ValueError(f"{name}: expected tensors of {dims} dimensions, got shapes {shapes}")


@public()
def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """The product of two matrices: (n, k) and (k, m) give (n, m)."""
    _expect_dims("mm", (input, 2), (mat2, 2))
    return Matmul.apply(input, mat2)


@public()
def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """The products of two batches of matrices: (b, n, k) and (b, k, m) give (b, n, m)."""
    _expect_dims("bmm", (input, 3), (mat2, 3))
    if input.shape[0] != mat2.shape[0]:
        raise ValueError(f"bmm: expected batches of one size, got shapes {input.shape} and {mat2.shape}")
    return Matmul.apply(input, mat2)


@public()
def mv(input: Tensor, vec: Tensor) -> Tensor:
    """The product of a matrix (n, k) and a vector (k,)."""
    _expect_dims("mv", (input, 2), (vec, 1))
    return Matmul.apply(input, vec)


@public()
def dot(input: Tensor, other: Tensor) -> Tensor:
    """The inner product of two vectors, a 0-d tensor."""
    _expect_dims("dot", (input, 1), (other, 1))
    return Matmul.apply(input, other)


@public()
def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """The products of each element of a vector (n,) with each of another (m,): (n, m)."""
    _expect_dims("outer", (input, 1), (vec2, 1))
    return mul(input.unsqueeze(1), vec2)


@public(inplace=True)
def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * input + alpha * (mat1 @ mat2)."""
    result = mm(mat1, mat2)
    return add(result if alpha == 1 else result * alpha, input if beta == 1 else input * beta)


@public(inplace=True)
def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * input + alpha * bmm(batch1, batch2)."""
    result = bmm(batch1, batch2)
    return add(result if alpha == 1 else result * alpha, input if beta == 1 else input * beta)


class Linear(Operation):
    """x @ weight.T + bias in one node: the layer on the hot path of every network."""

    def forward(ctx, x: Any, weight: Any, bias: Any = None) -> Any:
        if bias is None:
            x, weight = on_common_ground("linear", x, weight)
        else:
            x, weight, bias = on_common_ground("linear", x, weight, bias)
        if weight.ndim != 2 or not x.ndim or x.shape[-1] != weight.shape[1]:
            raise ValueError(
                "linear: expected input (..., in_features) and weight (out_features, in_features), got "
                f"shapes {x.shape} and {weight.shape}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"linear: expected a bias of shape ({weight.shape[0]},), got {bias.shape}")
        ctx.save_inputs(0, 1)
        return product(x, weight.T, bias) if x.ndim > 1 else product(x[None], weight.T, bias)[0]

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved
        need = ctx.needs_input_grad
        rows, inputs = (t if t.ndim == 2 else _rows(t) for t in (grad, x))
        by_x = by_weight = None
        if need[0]:
            by_x = Matmul.apply(grad, weight)
        if need[1] and mode.grad:
            by_weight = Matmul.apply(rows.t(), inputs)
        elif need[1]:
            by_weight = wrap(product(rows._data.T, inputs._data))
        if len(ctx.edges) == 2:
            return by_x, by_weight
        return by_x, by_weight, rows.sum(0) if need[2] else None


@public(method=False)
def linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    """input @ weight.T + bias. Shapes: (..., in), (out, in) and (out,) give (..., out)."""
    return Linear.apply(input, weight) if bias is None else Linear.apply(input, weight, bias)
