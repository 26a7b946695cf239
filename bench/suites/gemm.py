"""Products of matrices: alone, in batches, as a linear layer with its gradients, and by einsum."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ..case import FORMATS, Goal, Step, Suite, Timed, itemsize
from ..library import Library


class Product(NamedTuple):
    """(batch, m, k) times (batch, k, n), the second as it lies or `transposed` from (batch, n, k)."""

    m: int
    k: int
    n: int
    batch: int = 1
    transposed: bool = False

    def __str__(self) -> str:
        batch = f"{self.batch} of " if self.batch > 1 else ""
        return f"{batch}({self.m},{self.k})({self.k},{self.n}){'ᵀ' if self.transposed else ''}"


class Linear(NamedTuple):
    """`rows` of `into` numbers to as many of `out`."""

    rows: int
    into: int
    out: int

    def __str__(self) -> str:
        return f"({self.rows},{self.into})→{self.out}"


# Square ones, attention's scores and its sums over them, and what reading one row or a few of them takes.
CPU = (Product(1024, 1024, 1024), Product(128, 64, 128, 32, True), Product(128, 128, 64, 32), Product(1, 2048, 2048))
CUDA = (
    Product(4096, 4096, 4096),
    Product(4096, 4096, 4096, transposed=True),
    Product(512, 64, 512, 64, True),
    Product(512, 512, 64, 64),
    Product(1, 4096, 4096),
    Product(16, 4096, 4096, transposed=True),
    Product(4096, 4096, 16),
    Product(64, 65536, 64),
)
# An MLP's layers; a Transformer's projections, feed-forward and words.
LINEAR_CPU = (Linear(64, 784, 256), Linear(64, 256, 10), Linear(512, 512, 2048))
LINEAR_CUDA = (
    Linear(64, 784, 256),
    Linear(128, 784, 256),
    Linear(4096, 512, 1536),
    Linear(4096, 512, 2048),
    Linear(4096, 2048, 512),
    Linear(4096, 512, 32000),
)
EINSUM = "bqhd,bkhd->bhqk"  # scores of queries and keys as a projection leaves them


def matmul(product: Product, dtype: str = "float32", precision: str = "highest") -> Timed:
    """The product alone."""
    batch = (product.batch,) if product.batch > 1 else ()
    a_shape = (*batch, product.m, product.k)
    b_shape = (*batch, product.n, product.k) if product.transposed else (*batch, product.k, product.n)

    def make(library: Library, dtype: str) -> Step:
        a, b = library.normal(a_shape, dtype, 1), library.normal(b_shape, dtype, 2)
        b = b.transpose(-2, -1) if product.transposed else b
        return lambda: (library.module.matmul(a, b),)

    moved = product.m * product.k + product.k * product.n + product.m * product.n
    products = product.batch * product.m * product.k * product.n
    size = itemsize(dtype) * product.batch * moved
    return Timed("matmul", str(product), make, dtype, size, 2 * products, precision=precision)


def linear(layer: Linear, dtype: str = "float32", precision: str = "highest") -> Timed:
    """x·wᵀ + bias and all three gradients."""
    x_shape, w_shape, y_shape = (layer.rows, layer.into), (layer.out, layer.into), (layer.rows, layer.out)

    def make(library: Library, dtype: str) -> Step:
        x = library.normal(x_shape, dtype, 1, requires_grad=True)
        weight = library.normal(w_shape, dtype, 2, layer.into**-0.5, requires_grad=True)
        bias = library.normal((layer.out,), dtype, 3, requires_grad=True)
        upstream = library.normal(y_shape, dtype, 4)

        def step() -> tuple:
            y = library.functional.linear(x, weight, bias)
            return (y, *library.grad(y, (x, weight, bias), upstream))

        return step

    # Forward reads x and w and writes y; backward reads dy, x and w and writes dx and dw.
    moved = itemsize(dtype) * (3 * prod(x_shape) + 3 * prod(w_shape) + 2 * prod(y_shape))
    products = layer.rows * layer.into * layer.out
    return Timed("linear", str(layer), make, dtype, moved, 3 * 2 * products, precision=precision)


def scores(batch: int, length: int, heads: int, size: int, dtype: str = "float32", precision: str = "highest") -> Timed:
    """Attention's scores by einsum, and the gradients of queries and keys."""
    shape, result = (batch, length, heads, size), (batch, heads, length, length)

    def make(library: Library, dtype: str) -> Step:
        query, key = (library.normal(shape, dtype, seed, requires_grad=True) for seed in (1, 2))
        upstream = library.normal(result, dtype, 3)

        def step() -> tuple:
            y = library.module.einsum(EINSUM, query, key)
            return (y, *library.grad(y, (query, key), upstream))

        return step

    moved = itemsize(dtype) * (6 * prod(shape) + 2 * prod(result))
    text = f"{EINSUM} ({batch},{length},{heads},{size})"
    return Timed("einsum", text, make, dtype, moved, 3 * 2 * prod(result) * size, precision=precision)


SUITE = Suite(
    "gemm",
    cpu=[*map(matmul, CPU), *map(linear, LINEAR_CPU), scores(4, 128, 8, 64)],
    cuda=[
        case
        for given in FORMATS
        for case in (
            *(matmul(product, *given) for product in CUDA),
            *(linear(layer, *given) for layer in LINEAR_CUDA),
            scores(8, 512, 8, 64, *given),
        )
    ],
    cuda_goals=[
        Goal(operation, ratio=1.0, arithmetic=arithmetic)
        for operation in ("matmul", "linear", "einsum")
        for arithmetic in ("float32", "tf32", "bfloat16")
    ],
)
