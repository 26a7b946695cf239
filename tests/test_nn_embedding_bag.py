"""functional.embedding_bag and the module against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn.functional as F
from adjoint.engine.gradcheck import gradcheck, gradgradcheck

rng = np.random.default_rng(3)
WEIGHT = rng.standard_normal((7, 5))
ROWS = np.array([[0, 6, 3], [3, 3, 1]])
FLAT, OFFSETS = np.array([0, 6, 3, 3, 1, 2, 2]), np.array([0, 2, 2, 6])
WEIGHTS = rng.standard_normal(7)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


CALLS: dict[str, dict[str, Any]] = {
    "rows": {"input": ROWS},
    "offsets": {"input": FLAT, "offsets": OFFSETS},
    "last offset": {"input": FLAT, "offsets": np.append(OFFSETS, 7), "include_last_offset": True},
    "padding": {"input": FLAT, "offsets": OFFSETS, "padding_idx": 3},
    "only padding": {"input": np.array([[3, 3], [1, 3]]), "padding_idx": -4},
    "max_norm": {"input": ROWS, "max_norm": 1.5},
    "no bags": {"input": FLAT[:0], "offsets": OFFSETS[:0]},
    "empty bags": {"input": FLAT[:0], "offsets": OFFSETS[:1]},
}


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("call", CALLS)
def test_values_and_gradients_are_pytorchs(torch, call, mode):
    settings = CALLS[call] | {"mode": mode}
    results = []
    for library, array in ((ad, ad.tensor), (torch, torch.tensor)):
        weight = array(WEIGHT, requires_grad=True)
        given = {name: array(value) if isinstance(value, np.ndarray) else value for name, value in settings.items()}
        y = library.nn.functional.embedding_bag(given.pop("input"), weight, **given)
        direction = np.random.default_rng(0).standard_normal(tuple(y.shape))
        (grad,) = library.autograd.grad(y, weight, array(direction))
        results.append([np.asarray(tensor.detach().numpy()) for tensor in (y, grad)])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_gradient_by_frequency(mode):
    """Each row's own count; PyTorch 2.13 takes those of other rows on the CPU."""
    grads = []
    for by_frequency in (False, True):
        weight = ad.tensor(WEIGHT, requires_grad=True)
        y = F.embedding_bag(ad.tensor(FLAT), weight, ad.tensor(OFFSETS), mode=mode, scale_grad_by_freq=by_frequency)
        grads.append(ad.autograd.grad(y.exp().sum(), weight)[0].numpy())
    counts = np.maximum(np.bincount(FLAT, minlength=7), 1)
    np.testing.assert_allclose(grads[1], grads[0] / counts[:, None], rtol=1e-12)


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_weights_of_samples_are_pytorchs(torch, padding_idx):
    results = []
    for library, array in ((ad, ad.tensor), (torch, torch.tensor)):
        weight, weights = array(WEIGHT, requires_grad=True), array(WEIGHTS, requires_grad=True)
        y = library.nn.functional.embedding_bag(
            array(FLAT), weight, array(OFFSETS), mode="sum", per_sample_weights=weights, padding_idx=padding_idx
        )
        grads = library.autograd.grad((y * y).sum(), (weight, weights))
        results.append([np.asarray(tensor.detach().numpy()) for tensor in (y, *grads)])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_derivatives_of_any_order(mode):
    def function(weight):
        return F.embedding_bag(ad.tensor(FLAT), weight, ad.tensor(OFFSETS), mode=mode).pow(2)

    weight = ad.tensor(WEIGHT, requires_grad=True)
    gradcheck(function, (weight,))
    gradgradcheck(function, (weight,))


def test_the_module(torch):
    ad.manual_seed(0)
    layer = ad.nn.EmbeddingBag(100, 20, padding_idx=-3, mode="sum")
    assert layer.padding_idx == 97 and not layer.weight.detach().numpy()[97].any()
    assert list(layer.state_dict()) == ["weight"]
    weight = layer.weight.detach().numpy()
    np.testing.assert_allclose(layer(ad.tensor([[1, 2, 97]])).detach().numpy()[0], weight[1] + weight[2], rtol=1e-6)
    for settings in ({}, {"padding_idx": 2}, {"max_norm": 1.0, "norm_type": 1.0, "mode": "sum"}):
        assert repr(ad.nn.EmbeddingBag(5, 4, **settings)) == repr(torch.nn.EmbeddingBag(5, 4, **settings))
    frozen = ad.nn.EmbeddingBag.from_pretrained(ad.tensor(WEIGHT), mode="max")
    assert not frozen.weight.requires_grad
    np.testing.assert_array_equal(frozen(ad.tensor(ROWS)).numpy(), WEIGHT[ROWS].max(1))


def test_wrong_arguments():
    weight, rows, flat, offsets = ad.tensor(WEIGHT), ad.tensor(ROWS), ad.tensor(FLAT), ad.tensor(OFFSETS)
    wrong: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((rows, weight), {"mode": "median"}, 'mode must be "sum", "mean" or "max", got \'median\''),
        ((rows, weight, offsets), {}, "offsets are for input of one dimension"),
        ((flat, weight), {}, r"input \(7,\) needs offsets"),
        ((flat, weight, offsets + 1), {}, "offsets must begin with 0, ascend, and not be above 7"),
        ((flat, weight, offsets * 2), {}, "offsets must begin with 0, ascend, and not be above 7"),
        ((flat, weight, weight), {}, "offsets must be integers of one dimension"),
        ((rows, weight), {"per_sample_weights": rows}, 'per_sample_weights are for mode "sum"'),
        ((rows, weight), {"per_sample_weights": weight, "mode": "sum"}, "must have the input's shape"),
        ((rows, weight), {"sparse": True}, "there are no sparse gradients"),
    ]
    for args, settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            F.embedding_bag(*args, **settings)
    with pytest.raises(ValueError, match="EmbeddingBag: mode must be"):
        ad.nn.EmbeddingBag(3, 4, mode="median")
