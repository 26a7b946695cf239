"""Dropout functions and modules, and generators whose state lies on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn as nn
import adjoint.nn.functional as F
from adjoint.autograd import checkpoint, gradcheck, gradgradcheck
from adjoint.engine.backend import Device
from adjoint.engine.random import Generator, _generators
from cuda_on_host import HostLauncher, installed, needs_compiler

CHANNELS = {"dropout1d": (40, 50, 3), "dropout2d": (40, 50, 3, 2), "dropout3d": (40, 50, 2, 3, 2)}
ALL = ("dropout", "alpha_dropout", *CHANNELS, "feature_alpha_dropout")


def input_of(name: str, **settings: Any) -> ad.Tensor:
    return ad.rand(*CHANNELS.get(name, (40, 50, 6)), **settings) + 0.5


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_dropped_whole(name: str) -> None:
    ad.manual_seed(0)
    x = input_of(name)
    y = getattr(F, name)(x, 0.25).numpy().reshape(40, 50, -1)
    kept = (y != 0).any(axis=2)
    assert 0.7 < kept.mean() < 0.8
    np.testing.assert_allclose(y, x.numpy().reshape(y.shape) * kept[..., None] / 0.75, rtol=1e-6)


def test_inputs_without_a_batch() -> None:
    ad.manual_seed(1)
    y = F.dropout1d(ad.ones(500, 3)).numpy()
    assert (y.min(axis=1) == y.max(axis=1)).all() and 0.4 < (y != 0).mean() < 0.6
    y = F.dropout3d(ad.ones(500, 2, 2, 2)).numpy().reshape(500, -1)
    assert (y.min(axis=1) == y.max(axis=1)).all() and 0.4 < (y != 0).mean() < 0.6
    with pytest.warns(UserWarning, match=r"dropout2d: expected the shape \(N, C, H, W\), got \(500, 3, 2\)"):
        assert F.dropout2d(ad.ones(500, 3, 2)).shape == (500, 3, 2)


@pytest.mark.parametrize("name", ["alpha_dropout", "feature_alpha_dropout"])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_alpha_dropout_has_pytorchs_values(name: str, p: float) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    ones = np.ones((30, 40, 2))
    mine = np.unique(getattr(F, name)(ad.Tensor(ones), p, True).numpy())
    theirs = np.unique(getattr(torch.nn.functional, name)(torch.tensor(ones), p, True).numpy())
    np.testing.assert_allclose(mine, theirs, rtol=1e-12)


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    ad.manual_seed(2)
    y = F.alpha_dropout(ad.randn(400_000), 0.2, training=True).numpy()
    assert abs(y.mean()) < 0.01 and abs(y.var() - 1) < 0.01


@pytest.mark.parametrize("name", ALL)
def test_derivatives(name: str) -> None:
    def function(x: ad.Tensor) -> ad.Tensor:
        ad.manual_seed(3)  # the same elements each time
        return getattr(F, name)(x, 0.4, True)

    x = ad.rand(*CHANNELS.get(name, (4, 5, 6))[1:], dtype=ad.float64, requires_grad=True)
    x = x if name in ("dropout1d", "dropout3d") else ad.rand(3, *x.shape, dtype=ad.float64, requires_grad=True)
    assert gradcheck(function, (x,))
    assert gradgradcheck(function, (x,))


@pytest.mark.parametrize("name", ALL)
def test_settings(name: str) -> None:
    function, x = getattr(F, name), input_of(name, requires_grad=True)
    assert function(x, 0.5, training=False) is x and function(x, 0.0, training=True) is x
    nothing = function(x, 1.0, training=True)
    assert not nothing.detach().numpy().any()
    (grad,) = ad.autograd.grad(nothing.sum(), x)
    assert not grad.numpy().any()
    y = input_of(name)
    before = y.numpy().copy()
    assert function(y, 0.5, True, inplace=True) is y and (y.numpy() != before).any()
    with pytest.raises(ValueError, match=f"{name}: p must be between 0 and 1, got -0.5"):
        function(y, -0.5)
    with pytest.raises(TypeError, match=f"{name}: expected a floating tensor, got dtype int64"):
        function(y.long())
    with pytest.raises(TypeError, match=f"{name}: input must be a Tensor, got ndarray"):
        function(before)


def test_too_few_dimensions() -> None:
    with pytest.raises(ValueError, match=r"dropout1d: input must have the shape \(N, C, L\) or \(C, L\), got \(3,\)"):
        F.dropout1d(ad.ones(3))
    with pytest.raises(ValueError, match=r"feature_alpha_dropout: input must have at least two dimensions"):
        F.feature_alpha_dropout(ad.ones(3), 0.5, True)


def test_a_backward_in_place_and_of_two_layers() -> None:
    ad.manual_seed(4)
    x = ad.rand(1000, requires_grad=True)
    y = x * 1
    F.dropout(y, 0.5, inplace=True)
    F.dropout(y, 0.5, inplace=True)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), (y / x).detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]
)
def test_modules(name: str) -> None:
    layer = getattr(nn, name)(0.25, inplace=False)
    assert repr(layer) == f"{name}(p=0.25, inplace=False)" and not layer.state_dict()
    x = ad.ones(*CHANNELS.get(name.lower(), (40, 50, 6)))
    assert len(np.unique(layer(x).numpy())) == 2
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match=f"{name}: p must be between 0 and 1, got 2"):
        getattr(nn, name)(2)


def test_a_checkpoint_draws_the_same_numbers() -> None:
    x = ad.rand(1000, requires_grad=True)
    y = checkpoint(lambda x: F.dropout(x, 0.5) * x, x)
    (grad,) = ad.autograd.grad(y.sum(), x)
    np.testing.assert_allclose(grad.numpy(), 2 * (y / x).detach().numpy(), rtol=1e-5)


# ---- a GPU's generator, its state in an array of the host


@pytest.fixture
def gpu_generator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Generator]:
    for name, stand_in in {
        "as_device": Device,
        "on_device": lambda device: nullcontext(),
        "module_of": lambda device: np,
        "transfer": lambda array, device: array,
    }.items():
        monkeypatch.setattr(f"adjoint.engine.random.{name}", stand_in)
    with installed(HostLauncher()):
        yield Generator("cuda:0")


@needs_compiler
def test_the_state_of_a_gpus_generator(gpu_generator: Generator) -> None:
    def draw() -> np.ndarray:
        return gpu_generator.stream.random((5,), np.float32)

    place = gpu_generator.stream.place
    assert not np.array_equal(draw(), draw())
    gpu_generator.manual_seed(2**64 - 3)
    assert gpu_generator.initial_seed() == 2**64 - 3
    first, state, snapshot = draw(), gpu_generator.get_state(), gpu_generator.snapshot()
    assert state.dtype == np.uint8 and state.shape == (16,)
    second = draw()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(
        gpu_generator.manual_seed(-3).set_state(state).stream.random((5,), np.float32), second
    )
    gpu_generator.restore(snapshot)
    np.testing.assert_array_equal(draw(), second)
    gpu_generator.manual_seed(-3)  # as in PyTorch, negative seeds count from the end
    np.testing.assert_array_equal(draw(), first)
    assert gpu_generator.stream.place is place  # a captured graph reads and advances it there
    with pytest.raises(ValueError, match=r"set_state: expected a uint8 tensor of shape \(16,\)"):
        gpu_generator.set_state(ad.get_rng_state())


@needs_compiler
def test_the_functions_of_ad_cuda(gpu_generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adjoint.engine.cuda.as_device", Device)
    monkeypatch.setattr("adjoint.engine.cuda.is_available", lambda: True)
    monkeypatch.setattr("adjoint.engine.cuda.device_count", lambda: 1)
    monkeypatch.setitem(_generators, Device("cuda"), gpu_generator)
    monkeypatch.setitem(_generators, Device("cuda:0"), gpu_generator)
    for seed in (ad.cuda.manual_seed, ad.cuda.manual_seed_all):
        seed(7)
        assert ad.cuda.initial_seed() == 7
    state = ad.cuda.get_rng_state()
    first = gpu_generator.stream.standard_normal((3,), np.float32)
    ad.cuda.set_rng_state(state)
    np.testing.assert_array_equal(gpu_generator.stream.standard_normal((3,), np.float32), first)


def test_seeding_gpus_that_are_not_there_does_nothing() -> None:
    if ad.cuda.is_available():
        pytest.skip("there is a GPU")
    ad.cuda.manual_seed(3), ad.cuda.manual_seed_all(3)
    with pytest.raises(RuntimeError, match="the CUDA backend needs"):
        ad.cuda.get_rng_state()
