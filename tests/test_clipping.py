"""Norms and clipping of gradients against PyTorch's and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn as nn
from adjoint.nn.utils import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm

SHAPES = [(3, 4), (70_001,), ()]


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


def gradients() -> list[np.ndarray]:
    return [np.asarray(np.random.default_rng(1).standard_normal(shape) / 10) for shape in SHAPES]


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(np.random.default_rng(9).standard_normal(shape)) for shape in SHAPES]


@pytest.mark.parametrize("order", [2.0, 1.0, 3.0, float("inf")])
@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clip_grad_norm_is_pytorchs(torch: Any, order: float, limit: float) -> None:
    mine = parameters()
    theirs = [torch.nn.Parameter(torch.tensor(p.detach().numpy())) for p in mine]
    for p, q, g in zip(mine, theirs, gradients(), strict=True):
        p.grad, q.grad = ad.Tensor(g), torch.tensor(g)
    mine.append(nn.Parameter(ad.ones(1)))  # without a gradient
    total = clip_grad_norm_(mine, limit, order)
    expected = torch.nn.utils.clip_grad_norm_(theirs, limit, order)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    for p, q in zip(mine, theirs, strict=False):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12)


def test_clip_grad_norm_by_hand() -> None:
    p = nn.Parameter(ad.zeros(2))
    p.grad = ad.tensor([3.0, 4.0])
    assert clip_grad_norm_(p, 1.0).item() == 5
    np.testing.assert_allclose(p.grad.numpy(), [0.6, 0.8], rtol=1e-6)
    p.grad = ad.tensor([float("inf"), 4.0])
    with pytest.raises(RuntimeError, match="the norm of the gradients is inf"):
        clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
    assert p.grad.numpy()[1] == 4
    half = nn.Parameter(ad.zeros(2).half())
    half.grad = (ad.ones(2) * 60000).half()  # its square is beyond float16
    assert clip_grad_norm_([half], 2.0).item() == pytest.approx(60000 * np.sqrt(2), rel=1e-3)
    np.testing.assert_allclose(half.grad.float().numpy(), np.sqrt([2, 2]), rtol=1e-3)
    assert clip_grad_norm_([], 1.0).item() == 0
    with pytest.raises(ValueError, match="norm_type must be positive"):
        clip_grad_norm_([p], 1.0, 0)


def test_clip_grad_value() -> None:
    p = nn.Parameter(ad.zeros(3))
    p.grad = ad.tensor([-3.0, 0.5, 4.0])
    clip_grad_value_([p], 1.0)
    np.testing.assert_array_equal(p.grad.numpy(), [-1, 0.5, 1])


def test_get_total_norm_and_clip_grads_with_norm_are_pytorchs(torch: Any) -> None:
    mine, theirs = parameters(), [torch.nn.Parameter(torch.tensor(p.detach().numpy())) for p in parameters()]
    for p, q, g in zip(mine, theirs, gradients(), strict=True):
        p.grad, q.grad = ad.Tensor(g), torch.tensor(g)
    for order in (1.0, 2.0, 3.0, float("inf")):
        total = get_total_norm([p.grad for p in mine], order)
        assert total.item() == pytest.approx(torch.nn.utils.get_total_norm([q.grad for q in theirs], order).item())
    versions = [p.grad._version for p in mine]
    clip_grads_with_norm_(mine, 2.0, total)
    torch.nn.utils.clip_grads_with_norm_(theirs, 2.0, torch.tensor(total.item(), dtype=torch.float64))
    for p, q, version in zip(mine, theirs, versions, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12)
        assert p.grad._version > version
    assert get_total_norm([]).item() == 0 and get_total_norm(mine[0].detach()).dtype == np.float64


def test_nothing_is_changed_by_an_error() -> None:
    p = nn.Parameter(ad.zeros(2))
    p.grad = ad.tensor([float("nan"), 4.0])
    for function in (
        lambda: get_total_norm([p.grad], error_if_nonfinite=True),
        lambda: clip_grad_norm_([p], 1.0, error_if_nonfinite=True),
    ):
        with pytest.raises(RuntimeError, match="the norm of the gradients is nan"):
            function()
    with pytest.raises(ValueError, match="get_total_norm: norm_type must be positive, got -1"):
        get_total_norm([p.grad], -1)
    assert p.grad.numpy()[1] == 4
    clip_grad_norm_([p], 1.0)
    assert np.isnan(p.grad.numpy()).all()
