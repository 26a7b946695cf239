"""Einstein's summation, as matrix products."""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..operation import Operation
from ..tensor import Tensor
from .define import public
from .linalg import on_common_ground, product
from .shape import expand, permute


class Einsum(Operation):
    """A sum of products over labels, each of which stands in the output or in two operands."""

    def forward(ctx, *arrays: Any) -> Any:
        arrays = tuple(on_common_ground("einsum", *arrays))
        ctx.save_inputs(*range(len(arrays)))
        left = list(zip(ctx.terms, arrays, strict=True))
        for chosen in _order(ctx.terms, ctx.output, arrays):
            (term, array), *others = [left.pop(i) for i in sorted(chosen, reverse=True)]
            while others:
                other_term, other = others.pop()
                needed = "".join([ctx.output, *(t for t, _ in left), *(t for t, _ in others)])
                both = "".join(dict.fromkeys(term + other_term))
                result = "".join(label for label in both if label in needed)
                term, array = result, _pair(term, array, other_term, other, result)
            left.append((term, array))
        ((term, array),) = left
        return array.transpose([term.index(label) for label in ctx.output])

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


def _order(terms: Sequence[str], output: str, arrays: Sequence[Any]) -> Iterator[Sequence[int]]:
    """Which operands to multiply next, those left being numbered anew, each result as the last one."""
    if len(arrays) < 3:
        yield range(len(arrays))
        return
    empty = [np.broadcast_to(np.float32(0), array.shape) for array in arrays]  # only shapes matter
    yield from np.einsum_path(f"{','.join(terms)}->{output}", *empty, optimize="greedy")[0][1:]


def _pair(a_term: str, a: Any, b_term: str, b: Any, output: str) -> Any:
    """Two operands as a batch of matrix products; labels that are in one of them only stand in the output."""
    shared = [label for label in a_term if label in b_term]
    batch, summed = ([label for label in shared if (label in output) is kept] for kept in (True, False))
    rows = [label for label in a_term if label not in b_term]
    columns = [label for label in b_term if label not in a_term]
    a = a.transpose([a_term.index(label) for label in (*batch, *rows, *summed)])
    b = b.transpose([b_term.index(label) for label in (*batch, *summed, *columns)])
    leading, inner = a.shape[: len(batch)], a.shape[len(batch) + len(rows) :]
    down, across = a.shape[len(batch) :][: len(rows)], b.shape[len(shared) :]
    if summed:
        depth = math.prod(inner)
        matrices = a.reshape(*leading, math.prod(down), depth), b.reshape(*leading, depth, math.prod(across))
        result = product(*matrices).reshape(leading + down + across)
    else:
        result = a.reshape(a.shape + (1,) * len(columns)) * b.reshape(leading + (1,) * len(rows) + across)
    order = [*batch, *rows, *columns]
    return result.transpose([order.index(label) for label in output])


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
