"""The shapes of matrix products, and how operands lie in memory: what BLAS and our kernels take without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Shape = tuple[int, ...]

# What may follow a product, all with their default parameters.
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")


def matmul(a: Shape, b: Shape, bias: Shape | None, activation: str | None) -> Shape:
    """The shape of a @ b, where a vector counts as a row (a) or a column (b); checks bias and activation too."""
    if len(a) == 2 == len(b) and a[1] == b[0]:
        shape: Shape = (a[0], b[1])
    else:
        shape = _product(a, b)
    if bias is not None and (bias != shape[-1:] or len(a) < 2 or len(b) < 2):
        _check_other_bias(a, b, bias, shape)
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"matmul: activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return shape


def _check_other_bias(a: Shape, b: Shape, bias: Shape, shape: Shape) -> None:
    if min(len(a), len(b)) < 2:
        raise ValueError(f"matmul: with a bias both arrays must have 2 dimensions or more, got shapes {a} and {b}")
    if bias != (shape[-2], 1):
        wanted = f"{shape[-1:]} or {(shape[-2], 1)}"
        raise ValueError(f"matmul: for the result {shape} the bias must have the shape {wanted}, got {bias}")


def _product(a: Shape, b: Shape) -> Shape:
    if not a or not b:
        raise ValueError(f"matmul: expected arrays of at least 1 dimension, got shapes {a} and {b}")
    rows = b[-2 if len(b) > 1 else 0]
    if a[-1] != rows:
        raise ValueError(
            f"matmul: shapes {a} and {b} do not fit: the first has {a[-1]} columns, the second {rows} rows"
        )
    if len(a) == len(b) > 1 and a[:-2] == b[:-2]:
        return a[:-1] + b[-1:]
    return (*_broadcast(a, b), *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def _broadcast(a: Shape, b: Shape) -> Shape:
    first, second = a[:-2], b[:-2]
    longest = max(len(first), len(second))
    pairs = zip((1,) * (longest - len(first)) + first, (1,) * (longest - len(second)) + second, strict=True)
    leading = []
    for size, other in pairs:
        if size != other and 1 not in (size, other):
            raise ValueError(f"matmul: the leading dims of {a} and {b} do not broadcast")
        leading.append(other if size == 1 else size)
    return tuple(leading)


class Lines(NamedTuple):
    """How a matrix lies: its rows one after the other, or its columns where `transposed`, `pitch` elements apart."""

    transposed: bool
    pitch: int


def lines(shape: Sequence[int], strides: Sequence[int]) -> Lines | None:
    """How a matrix of these strides, in elements, lies; None where neither its rows nor its columns are dense lines."""
    (rows, columns), (down, across) = shape, strides
    if (across == 1 or columns == 1) and (rows == 1 or down >= columns):
        return Lines(False, down if rows > 1 else max(columns, 1))
    if (down == 1 or rows == 1) and (columns == 1 or across >= rows):
        return Lines(True, across if columns > 1 else max(rows, 1))
    return None


class Batch(NamedTuple):
    """`times` products whose operands lie `a`, `b` and `out` elements apart; 0 for one that all of them share."""

    times: int
    a: int
    b: int
    out: int


def batches(leading: Shape, a: Shape, b: Shape, out: Shape) -> list[Batch]:
    """The leading dims with their strides, outermost first; neighbours that are one run in all arrays are one."""
    found: list[Batch] = []
    for dim in map(Batch, leading, a, b, out):
        if dim.times == 1:
            continue
        if found and all(outer == dim.times * inner for outer, inner in zip(found[-1][1:], dim[1:], strict=True)):
            dim = dim._replace(times=dim.times * found.pop().times)
        found.append(dim)
    return found
