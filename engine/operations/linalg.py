"""Products of vectors and matrices, and einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import array_module, is_array
from ..dtypes import is_half
from ..operation import Operation
from ..promotion import on_one_device
from ..tensor import Tensor
from .arithmetic import add, mul
from .define import public
from .shape import expand, permute, reshape


def _wide(x: Any) -> Any:
    """`x` in the dtype in which its products accumulate."""
    return x.astype(np.float32) if is_half(x.dtype) else x


def _narrow(product: Any, dtype: np.dtype) -> Any:
    return product if product.dtype == dtype else product.astype(dtype)


class Matmul(Operation):
    """Matrices in the last two dims, the others broadcast; a vector counts as a row or column."""

    def forward(ctx, a: Any, b: Any) -> Any:
        a, b = _checked("matmul", a, b)
        if not a.ndim or not b.ndim:
            raise ValueError(f"matmul: expected tensors of at least 1 dimension, got shapes {a.shape} and {b.shape}")
        if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
            raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit: {_inner(a, b)}")
        ctx.save_inputs(0, 1)
        dtype = a.dtype
        wide_a, wide_b = (a, b) if dtype.itemsize > 2 else (_wide(a), _wide(b))
        if a.ndim > 2 and b.ndim == 2:  # one large product instead of many small ones
            rows = wide_a.reshape(-1, a.shape[-1]) if a.size else wide_a.reshape(_count(a.shape[:-1]), a.shape[-1])
            return _narrow((rows @ wide_b).reshape(*a.shape[:-1], b.shape[-1]), dtype)
        try:
            product = wide_a @ wide_b
        except ValueError:
            raise ValueError(f"matmul: the leading dims of {a.shape} and {b.shape} do not broadcast") from None
        return _narrow(product, dtype)

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


def _checked(name: str, *arrays: Any) -> Sequence[Any]:
    """`arrays`, all of one dtype and on one device."""
    first, *others = arrays
    if type(first) is np.ndarray and all(type(x) is np.ndarray and x.dtype is first.dtype for x in others):
        return arrays
    if not all(is_array(x) for x in arrays):
        raise TypeError(f"{name}: expected tensors, got {', '.join(type(x).__name__ for x in arrays)}")
    if any(x.dtype != first.dtype for x in others):
        raise TypeError(f"{name}: expected tensors of one dtype, got {', '.join(str(x.dtype) for x in arrays)}")
    return on_one_device(name, list(arrays))


def _inner(a: Any, b: Any) -> str:
    return f"the first has {a.shape[-1]} columns, the second {b.shape[-2 if b.ndim > 1 else 0]} rows"


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
    product = mm(mat1, mat2)
    return add(product if alpha == 1 else product * alpha, input if beta == 1 else input * beta)


@public(inplace=True)
def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * input + alpha * bmm(batch1, batch2)."""
    product = bmm(batch1, batch2)
    return add(product if alpha == 1 else product * alpha, input if beta == 1 else input * beta)


class Linear(Operation):
    """x @ weight.T + bias in one node: the layer on the hot path of every network."""

    def forward(ctx, x: Any, weight: Any, bias: Any = None) -> Any:
        arrays = _checked("linear", x, weight) if bias is None else _checked("linear", x, weight, bias)
        x, weight = arrays[0], arrays[1]
        if weight.ndim != 2 or not x.ndim or x.shape[-1] != weight.shape[1]:
            raise ValueError(
                "linear: expected input (..., in_features) and weight (out_features, in_features), got "
                f"shapes {x.shape} and {weight.shape}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"linear: expected a bias of shape ({weight.shape[0]},), got {bias.shape}")
        ctx.save_inputs(0, 1)
        dtype, half = x.dtype, x.dtype.itemsize == 2
        rows = x if x.ndim == 2 else x.reshape(_count(x.shape[:-1]), x.shape[-1])
        result = _wide(rows) @ _wide(weight).T if half else rows @ weight.T
        if bias is not None:
            result += _wide(arrays[2]) if half else arrays[2]
        if half:
            result = result.astype(dtype)
        return result if x.ndim == 2 else result.reshape(*x.shape[:-1], weight.shape[0])

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved
        need = ctx.needs_input_grad
        rows = grad if grad.ndim == 2 else _rows(grad)
        by_x = Matmul.apply(grad, weight) if need[0] else None
        by_weight = Matmul.apply(rows.t(), x if x.ndim == 2 else _rows(x)) if need[1] else None
        if len(ctx.edges) == 2:
            return by_x, by_weight
        return by_x, by_weight, rows.sum(0) if need[2] else None


@public(method=False)
def linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    """input @ weight.T + bias. Shapes: (..., in), (out, in) and (out,) give (..., out)."""
    return Linear.apply(input, weight) if bias is None else Linear.apply(input, weight, bias)


class Einsum(Operation):
    """A sum of products over labels, each of which stands in the output or in two operands."""

    def forward(ctx, *arrays: Any) -> Any:
        arrays = tuple(_checked("einsum", *arrays))
        ctx.save_inputs(*range(len(arrays)))
        dtype = arrays[0].dtype
        equation = f"{','.join(ctx.terms)}->{ctx.output}"
        module = array_module(arrays[0])
        return _narrow(module.einsum(equation, *[_wide(x) for x in arrays], optimize=len(arrays) > 1), dtype)

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        operands, terms = ctx.saved, ctx.terms
        grads: list[Tensor | None] = []
        for i, term in enumerate(terms):
            if not ctx.needs_input_grad[i]:
                grads.append(None)
                continue
            others = (ctx.output, *terms[:i], *terms[i + 1 :])
            grads.append(Einsum.apply(grad, *operands[:i], *operands[i + 1 :], terms=others, output=term))
        return tuple(grads)


@public(method=False)
def einsum(equation: str, *operands: Any) -> Tensor:
    """Einstein's summation: `einsum("bij,bjk->bik", a, b)`; "..." stands for dims that broadcast.

    Without "->" the result has the labels that occur once, in alphabetical order.
    """
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    terms, output = _labels(equation, operands)
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for label, size in zip(term, operand.shape, strict=True):
            known = sizes.get(label, 1)
            if 1 not in (known, size) and known != size:
                raise ValueError(f'einsum: label {label!r} in "{equation}" stands for sizes {known} and {size}')
            sizes[label] = size if known == 1 else known
    prepared = []
    for i, (term, operand) in enumerate(zip(terms, operands, strict=True)):
        operand = expand(operand, tuple(sizes[label] for label in term))
        term, operand = _diagonals(term, operand)
        rest = "".join(terms[:i] + terms[i + 1 :]) + output
        alone = [d for d, label in enumerate(term) if label not in rest]
        if alone:
            operand = operand.sum(alone)
            term = "".join(label for label in term if label in rest)
        prepared.append((term, operand))
    if len(prepared) == 1:
        term, operand = prepared[0]
        return permute(operand, tuple(term.index(label) for label in output))
    return Einsum.apply(*[x for _, x in prepared], terms=tuple(term for term, _ in prepared), output=output)


def _labels(equation: str, operands: Sequence[Any]) -> tuple[list[str], str]:
    """The labels of each operand and of the result, "..." replaced by letters."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ValueError(f'einsum: "{equation}" names {len(terms)} operands, got {len(operands)}')
    for text in (*terms, output):
        if text.count("...") > 1 or not set(text.replace("...", "")) <= set(string.ascii_letters):
            raise ValueError(f'einsum: expected letters and at most one "..." in each term, got "{equation}"')
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    extras = [x.ndim - len(term.replace("...", "")) for term, x in zip(terms, operands, strict=True)]
    for term, operand, extra in zip(terms, operands, extras, strict=True):
        if extra < 0 or (extra and "..." not in term):
            raise ValueError(f'einsum: "{term}" in "{equation}" does not fit a tensor of shape {tuple(operand.shape)}')
    dots = "".join(spare[: max(extras, default=0)])
    full = [term.replace("...", dots[len(dots) - extra :]) for term, extra in zip(terms, extras, strict=True)]
    if not arrow:
        once = sorted(c for c in set(left) if c in string.ascii_letters and left.count(c) == 1)
        return full, dots + "".join(once)
    output = output.replace("...", dots)
    if len(set(output)) != len(output) or not set(output) <= set("".join(full)):
        raise ValueError(f'einsum: the result of "{equation}" must name labels of the operands, each once')
    return full, output


def _diagonals(term: str, operand: Tensor) -> tuple[str, Tensor]:
    """Dims with the same label as their diagonal."""
    for label in dict.fromkeys(term):
        while term.count(label) > 1:
            first, second = [d for d, other in enumerate(term) if other == label][:2]
            operand = operand.diagonal(0, first, second)
            term = term[:first] + term[first + 1 : second] + term[second + 1 :] + label
    return term, operand
