"""The dtype of results: PyTorch's, for every pair of dtypes, tensors, 0-d tensors and numbers."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from adjoint.engine import Tensor
from adjoint.engine.dtypes import result_type
from adjoint.engine.operations.define import functions

torch = pytest.importorskip("torch", reason="the reference is PyTorch (extra `peers`)")

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
NUMBERS = [True, 2, 2.0]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def ours(dtype: str, shape: tuple[int, ...]) -> Any:
    return Tensor(np.ones(shape, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype))


def theirs(dtype: str, shape: tuple[int, ...]) -> Any:
    return torch.ones(shape, dtype=getattr(torch, dtype))


OPERANDS = [(dtype, shape) for dtype in DTYPES for shape in ((2, 3), ())]
PAIRS = list(itertools.product(OPERANDS, OPERANDS))
WITH_NUMBER = list(itertools.product(OPERANDS, NUMBERS))
OPERATIONS = ["add", "mul", "sub", "div", "pow", "eq", "lt", "where", "maximum", "remainder"]


def result(module: Any, name: str, a: Any, b: Any) -> Any:
    """The dtype and shape of an operation's result, or that it refuses."""
    try:
        if name == "where":
            mask = torch.ones(3, dtype=torch.bool) if module is torch else Tensor(np.ones(3, bool))
            value = module.where(mask, a, b)
        else:
            value = getattr(module, name)(a, b)
    except (RuntimeError, TypeError):
        return "refused"
    return str(value.dtype).removeprefix("torch."), tuple(value.shape), float(value.reshape(-1)[0])


class Ours:
    """The registered functions as attributes."""

    def __getattr__(self, name: str) -> Any:
        return functions[name]


def without_kernel(name: str, *dtypes: str) -> bool:
    """What PyTorch's CPU build does not have, or refuses where NumPy and adjoint have an answer."""
    return ("bool" in dtypes and name == "sub") or (set(dtypes) == {"bool"} and name in ("remainder", "pow"))


@pytest.mark.parametrize("name", OPERATIONS)
def test_two_tensors(name: str) -> None:
    for (first, a), (second, b) in PAIRS:
        if without_kernel(name, first, second):
            continue
        expected = result(torch, name, theirs(first, a), theirs(second, b))
        assert result(Ours(), name, ours(first, a), ours(second, b)) == expected, (first, a, second, b)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_tensor_and_a_number(name: str) -> None:
    for (dtype, shape), number in WITH_NUMBER:
        if name == "maximum" or without_kernel(name, dtype, type(number).__name__):
            continue
        expected = result(torch, name, theirs(dtype, shape), number)
        assert result(Ours(), name, ours(dtype, shape), number) == expected, (dtype, shape, number)
        if name in ("add", "mul", "div"):
            apply = {"add": operator.add, "mul": operator.mul, "div": operator.truediv}[name]
            expected = str(apply(number, theirs(dtype, shape)).dtype).removeprefix("torch.")
            assert str(apply(number, ours(dtype, shape)).dtype) == expected, (dtype, shape, number)


def test_result_type() -> None:
    for (first, a), (second, b) in PAIRS:
        expected = str(torch.result_type(theirs(first, a), theirs(second, b))).removeprefix("torch.")
        assert str(result_type(ours(first, a).data, ours(second, b).data)) == expected
    for (dtype, shape), number in WITH_NUMBER:
        expected = str(torch.result_type(theirs(dtype, shape), number)).removeprefix("torch.")
        assert str(result_type(ours(dtype, shape).data, number)) == expected


@pytest.mark.parametrize(
    "name", ["sum", "prod", "cumsum", "mean", "var", "softmax", "exp", "floor", "sign", "abs", "square"]
)
def test_reductions_and_functions_of_one_tensor(name: str) -> None:
    for dtype in DTYPES:
        arguments = (0,) if name in ("cumsum", "softmax") else ()
        if dtype == "bool" and name in ("floor", "sign", "abs", "square"):
            continue
        expected = (
            result(torch, name, theirs(dtype, (4,)), *arguments) if arguments else one(torch, name, theirs(dtype, (4,)))
        )
        got = result(Ours(), name, ours(dtype, (4,)), *arguments) if arguments else one(Ours(), name, ours(dtype, (4,)))
        assert got == expected, dtype


def one(module: Any, name: str, a: Any) -> Any:
    try:
        value = getattr(module, name)(a)
    except (RuntimeError, TypeError):
        return "refused"
    return str(value.dtype).removeprefix("torch."), tuple(value.shape)


def test_in_place_keeps_the_dtype_or_refuses() -> None:
    for (first, shape), (second, _) in PAIRS:
        if without_kernel("add", first, second) or shape == ():
            continue
        mine, other = ours(first, shape), theirs(first, shape)
        try:
            other.add_(theirs(second, shape))
        except RuntimeError:
            with pytest.raises(RuntimeError, match="add_: a result of dtype"):
                mine.add_(ours(second, shape))
        else:
            mine.add_(ours(second, shape))
            assert str(mine.dtype) == str(other.dtype).removeprefix("torch.")
            assert mine.tolist() == other.tolist()


def test_a_gradient_has_the_dtype_of_its_tensor() -> None:
    for first, second in itertools.product(("float16", "bfloat16", "float32", "float64"), repeat=2):
        a, b = ours(first, (2, 3)).requires_grad_(), ours(second, (3,)).requires_grad_()
        (a * b).sum().backward()
        assert (str(a.grad.dtype), str(b.grad.dtype)) == (first, second)
        assert a.grad.shape == (2, 3) and b.grad.shape == (3,)
