"""functional.embedding and the module against PyTorch, with derivatives of any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn.functional as F
from adjoint.engine.gradcheck import gradcheck, gradgradcheck
from adjoint.engine.operations.embedding import EmbeddingWeightGrad

rng = np.random.default_rng(3)
WEIGHT = rng.standard_normal((7, 5))
INDICES = np.array([[0, 6, 3], [3, 3, 1]])
SETTINGS: list[dict[str, Any]] = [
    {},
    {"padding_idx": 3},
    {"padding_idx": -4},
    {"scale_grad_by_freq": True},
    {"padding_idx": 0, "scale_grad_by_freq": True},
    {"max_norm": 1.5},
    {"max_norm": 1.5, "norm_type": 1.0, "padding_idx": 3},
]


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_values_and_gradients_are_pytorchs(torch, settings):
    direction = rng.standard_normal((2, 3, 5))
    results = []
    for library, array in ((ad, ad.tensor), (torch, torch.tensor)):
        weight = array(WEIGHT, requires_grad=True)
        y = library.nn.functional.embedding(array(INDICES), weight, **settings)
        (grad,) = library.autograd.grad(y, weight, array(direction))
        results.append([np.asarray(tensor.detach().numpy()) for tensor in (y, grad, weight)])
    for mine, other in zip(*results, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12)


def test_derivatives_of_any_order():
    def function(weight):
        return F.embedding(ad.tensor(INDICES), weight)

    weight = ad.tensor(WEIGHT, requires_grad=True)
    gradcheck(function, (weight,))
    gradgradcheck(lambda weight: function(weight).square(), (weight,))
    gradgradcheck(
        lambda weight: ad.autograd.grad(function(weight).pow(3).sum(), weight, create_graph=True)[0], (weight,)
    )


@pytest.mark.parametrize("padding_idx", [-1, 3])
@pytest.mark.parametrize("scale_grad_by_freq", [False, True])
def test_derivatives_of_the_gradient(padding_idx, scale_grad_by_freq):
    settings = {"num_embeddings": 7, "padding_idx": padding_idx, "scale_grad_by_freq": scale_grad_by_freq}
    dy = ad.tensor(rng.standard_normal((2, 3, 5)), requires_grad=True)
    gradcheck(lambda dy: EmbeddingWeightGrad.apply(dy, ad.tensor(INDICES), **settings), (dy,))
    gradgradcheck(lambda dy: EmbeddingWeightGrad.apply(dy, ad.tensor(INDICES), **settings).square(), (dy,))


@pytest.mark.parametrize("settings", SETTINGS[:3], ids=str)
def test_second_derivatives_are_pytorchs(torch, settings):
    results = []
    for library, array in ((ad, ad.tensor), (torch, torch.tensor)):
        weight = array(WEIGHT, requires_grad=True)
        y = library.nn.functional.embedding(array(INDICES), weight, **settings)
        (first,) = library.autograd.grad((y * y * y).sum(), weight, create_graph=True)
        (second,) = library.autograd.grad((first * array(WEIGHT)).sum(), weight)
        results.append(np.asarray(second.detach().numpy()))
    np.testing.assert_allclose(*results, rtol=1e-12)


def test_the_module(torch):
    ad.manual_seed(0)
    layer = ad.nn.Embedding(1000, 20, padding_idx=-3)
    weight = layer.weight.detach().numpy()
    assert layer.padding_idx == 997 and not weight[997].any()
    assert abs(weight.mean()) < 0.03 and abs(weight.std() - 1) < 0.03
    assert list(layer.state_dict()) == ["weight"]
    assert layer(ad.tensor([[1, 2]])).shape == (1, 2, 20)
    for settings in ({}, {"padding_idx": 2}, {"max_norm": 1.0, "norm_type": 1.0}, {"scale_grad_by_freq": True}):
        assert repr(ad.nn.Embedding(5, 4, **settings)) == repr(torch.nn.Embedding(5, 4, **settings))


def test_from_pretrained():
    table = ad.tensor(WEIGHT)
    layer = ad.nn.Embedding.from_pretrained(table)
    assert not layer.weight.requires_grad and layer.weight.data is table.data
    assert (layer.num_embeddings, layer.embedding_dim) == (7, 5)
    np.testing.assert_array_equal(layer(ad.tensor(INDICES)).numpy(), WEIGHT[INDICES])
    learns = ad.nn.Embedding.from_pretrained(table, freeze=False, padding_idx=1)
    assert learns.weight.requires_grad and learns.padding_idx == 1
    with pytest.raises(ValueError, match=r"from_pretrained: embeddings must have the shape \(V, D\), got \(7,\)"):
        ad.nn.Embedding.from_pretrained(table[:, 0])
    with pytest.raises(ValueError, match=r"Embedding: _weight must have the shape \(7, 4\), got \(7, 5\)"):
        ad.nn.Embedding(7, 4, _weight=table)


def test_max_norm_counts_as_a_change():
    weight = ad.tensor(WEIGHT, requires_grad=True)
    early = weight.exp()
    saved = weight.square().sum()
    F.embedding(ad.tensor(INDICES), weight, max_norm=1.0)
    assert weight._version == 1 and early.shape == weight.shape
    with pytest.raises(RuntimeError, match="changed in place"):
        saved.backward()


def test_a_change_of_the_indices_is_noticed():
    weight, indices = ad.tensor(WEIGHT, requires_grad=True), ad.tensor(INDICES)
    y = F.embedding(indices, weight)
    indices.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_wrong_arguments():
    weight, indices = ad.tensor(WEIGHT), ad.tensor(INDICES)
    with pytest.raises(TypeError, match="embedding: input must hold integer indices, got dtype float64"):
        F.embedding(weight, weight)
    with pytest.raises(TypeError, match="embedding: input must be a Tensor, got ndarray"):
        F.embedding(INDICES, weight)
    with pytest.raises(ValueError, match=r"embedding: weight must have the shape \(V, D\), got \(7,\)"):
        F.embedding(indices, weight[:, 0])
    for build in (lambda: F.embedding(indices, weight, sparse=True), lambda: ad.nn.Embedding(5, 4, sparse=True)):
        with pytest.raises(ValueError, match=r"mbedding: there are no sparse gradients; leave sparse=True out"):
            build()
    for wrong in (7, -8):
        with pytest.raises(ValueError, match=f"padding_idx {wrong} is out of range for 7 embeddings"):
            F.embedding(indices, weight, padding_idx=wrong)
        with pytest.raises(ValueError, match=f"padding_idx {wrong} is out of range for 7 embeddings"):
            ad.nn.Embedding(7, 4, padding_idx=wrong)
    with pytest.raises(TypeError, match="padding_idx must be an integer, got float"):
        F.embedding(indices, weight, padding_idx=1.0)
    with pytest.raises(ValueError, match=r"embedding: index 7 at \(0,\) is out of range for 7 rows"):
        F.embedding(ad.tensor([7]), weight)
