"""How tensors print: as in PyTorch."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from adjoint.engine import Tensor
from adjoint.engine.operations.define import functions

FLOATS: list[Any] = [
    1.0, 1e-10, [1, 2], [1.5, -2], [1e-5, 1], [1e10, 1], [np.nan, np.inf, 1.5], [np.inf, np.nan],
    [np.nan, np.inf, 1], [0, np.inf], [100000.0, 1, 2.5], [1e-4, 1e-3], [12345678.0, 2],
    [], [[], []], list(range(40)),
]  # fmt: skip
ARRAYS = [
    *(np.array(values, np.float32) for values in FLOATS),
    np.array(3), np.array(True), np.array([-1, 100]), np.array([True, False]), np.array([1.0, 2.0]),
    np.array([1, 2.5], np.float16), np.array([1, 2], np.uint8), np.arange(24).reshape(2, 3, 4),
    np.arange(2000), np.arange(1500.0).reshape(50, 30),
    np.linspace(1, 2, 3000, dtype=np.float32).reshape(10, 3, 100),
]  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
def test_is_what_pytorch_prints(array: np.ndarray) -> None:
    torch = pytest.importorskip("torch", reason="the reference is PyTorch (extra `peers`)")
    assert repr(Tensor(np.asarray(array))) == repr(torch.tensor(array)).replace("torch.", "")


def test_says_where_the_gradient_goes() -> None:
    x = Tensor(np.array([1, 2], np.float32), requires_grad=True)
    assert repr(x) == "tensor([1., 2.], requires_grad=True)"
    assert repr(x * 2) == "tensor([2., 4.], grad_fn=<Mul>)"
    assert repr((x * 2).detach()) == "tensor([2., 4.])"
    assert repr(Tensor(np.array([1.5], ml_dtypes.bfloat16))) == "tensor([1.5000], dtype=bfloat16)"


def test_large_tensors_are_shortened_before_anything_is_formatted() -> None:
    text = repr(functions["zeros"](2000, 3000))
    assert text.count("0.") == 36 and len(text.splitlines()) == 7
    assert str(functions["ones"](())) == "tensor(1.)"
    assert f"{Tensor(np.float64(1.23456)):.2f}" == "1.23"
