"""What an operation costs before it computes anything: tiny tensors, an empty optimizer step, the import."""

from __future__ import annotations

import numpy as np

from ..case import Counted, Goal, Step, Suite, Timed
from ..library import Library

LENGTH = 1000
SIZE = 16


def _operands(library: Library, dtype: str, requires_grad: bool) -> tuple:
    rng = np.random.default_rng(0)
    small = library.tensor(0.01 * rng.standard_normal(SIZE).astype(np.float32), dtype, requires_grad)
    near_one = library.tensor(1 + 0.01 * rng.standard_normal(SIZE).astype(np.float32), dtype, requires_grad)
    return small, near_one


def chain(operands_need_grad: bool) -> Timed:
    """x + a, times b, plus a, …: each operation waits for the one before."""

    def make(library: Library, dtype: str) -> Step:
        x = library.tensor(np.ones(SIZE, np.float32), dtype, requires_grad=True)
        a, b = _operands(library, dtype, operands_need_grad)
        upstream = library.tensor(np.ones(SIZE, np.float32), dtype)
        wanted = (x, a, b) if operands_need_grad else (x,)

        def step() -> tuple:
            y = x
            for _ in range(LENGTH // 2):
                y = (y + a) * b
            return (y, *library.grad(y, wanted, upstream))

        return step

    what = "all need gradients" if operands_need_grad else "only x needs one"
    return Timed("chain of 1,000", f"({SIZE},) {what}", make)


def one_operation() -> Timed:
    """x · y and both gradients, through `backward` into `.grad`."""

    def make(library: Library, dtype: str) -> Step:
        x, y = _operands(library, dtype, requires_grad=True)
        upstream = library.tensor(np.ones(SIZE, np.float32), dtype)

        def step() -> tuple:
            x.grad = y.grad = None
            product = x * y
            product.backward(upstream)
            return product, x.grad, y.grad

        return step

    return Timed("one multiply", f"({SIZE},)", make)


def optimizer_step(name: str, with_gradients: bool) -> Timed:
    """The update of ten small parameters, or nothing to do as no parameter has a gradient."""
    settings = {"lr": 0.01, "momentum": 0.9} if name == "SGD" else {"lr": 0.001}

    def make(library: Library, dtype: str) -> Step:
        arrays = np.random.default_rng(0).standard_normal((10, 4, SIZE)).astype(np.float32)
        parameters = [library.tensor(array, dtype, requires_grad=True) for array in arrays]
        if with_gradients:
            for parameter in parameters:
                parameter.grad = library.tensor(np.ones((4, SIZE), np.float32), dtype)
        optimizer = getattr(library.optim, name)(parameters, **settings)

        def step() -> list:
            optimizer.step()
            return parameters

        return step

    what = f"10 of (4,{SIZE})" if with_gradients else "no gradients"
    return Timed(f"{name}.step", what, make)


TIMED = (
    *(chain(operands_need_grad) for operands_need_grad in (True, False)),
    one_operation(),
    *(optimizer_step(name, with_gradients) for name in ("SGD", "Adam") for with_gradients in (False, True)),
)
IMPORT_SECONDS = "import time; start = time.perf_counter(); import {library}; print(time.perf_counter() - start)"

SUITE = Suite(
    "overhead",
    cpu=[*TIMED, Counted("import", "fresh process", ("-c", IMPORT_SECONDS), "s")],
    cuda=TIMED,
    goals=[Goal("chain of 1,000", ratio=2.5), Goal("import", value=0.3)],
)
