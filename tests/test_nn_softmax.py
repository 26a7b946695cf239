"""Softmax modules and functions against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn.functional as F
from adjoint.engine.gradcheck import gradcheck, gradgradcheck

rng = np.random.default_rng(2)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5)], ids=str)
def test_softmax2d(torch, shape):
    x = rng.standard_normal(shape)
    assert repr(ad.nn.Softmax2d()) == repr(torch.nn.Softmax2d())
    np.testing.assert_allclose(
        ad.nn.Softmax2d()(ad.tensor(x)).numpy(), torch.nn.Softmax2d()(torch.tensor(x)), rtol=1e-13
    )


def test_softmax2d_of_another_shape():
    with pytest.raises(ValueError, match=r"Softmax2d: input must have the shape \(N, C, H, W\) or \(C, H, W\), got"):
        ad.nn.Softmax2d()(ad.tensor(np.zeros((3, 4))))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_dtype_converts_first(torch, name):
    x = rng.standard_normal((3, 4)).astype(np.float16)
    mine = getattr(F, name)(ad.tensor(x), 1, dtype=ad.float32)
    assert mine.dtype == np.float32
    np.testing.assert_allclose(mine.numpy(), getattr(torch, name)(torch.tensor(x), 1, dtype=torch.float32), rtol=1e-6)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_third_derivatives(name, dim):
    function = getattr(F, name)
    x = ad.tensor(rng.standard_normal((2, 3, 4)), requires_grad=True)

    def gradient(x):
        return ad.autograd.grad(function(x, dim).pow(3).sum(), x, create_graph=True)[0]

    gradcheck(gradient, (x,))
    gradgradcheck(gradient, (x,))
