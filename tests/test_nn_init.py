"""nn.init: bounds, moments and defaults of the initial distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn as nn
from adjoint.nn import init


@pytest.fixture(autouse=True)
def seeded() -> None:
    ad.manual_seed(11)


def is_uniform(values: np.ndarray, low: float, high: float) -> None:
    """All of [low, high] is reached and nothing outside, with the moments of a uniform distribution."""
    width = high - low
    assert low <= values.min() < low + 0.01 * width and high - 0.01 * width < values.max() <= high
    assert abs(values.mean() - (low + high) / 2) < 0.02 * width
    assert values.std() == pytest.approx(width / math.sqrt(12), rel=0.02)
    quarters = np.histogram(values, 4, (low, high))[0] / values.size
    assert abs(quarters - 0.25).max() < 0.02


def is_normal(values: np.ndarray, mean: float, std: float) -> None:
    assert abs(values.mean() - mean) < 0.05 * std
    assert values.std() == pytest.approx(std, rel=0.03)
    assert np.mean(abs(values - mean) < std) == pytest.approx(0.6827, abs=0.02)
    assert np.mean(abs(values - mean) < 2 * std) == pytest.approx(0.9545, abs=0.01)


FANS = {"fan_in": 30 * 12, "fan_out": 40 * 12}
SHAPE = (40, 30, 3, 4)
RELU = math.sqrt(2)

DISTRIBUTIONS: dict[str, tuple[Callable[[Any], Any], Callable[..., None], tuple[float, float]]] = {
    "uniform": (lambda t: init.uniform_(t, -2, 3), is_uniform, (-2, 3)),
    "normal": (lambda t: init.normal_(t, 1, 0.5), is_normal, (1, 0.5)),
    "xavier_uniform": (
        lambda t: init.xavier_uniform_(t, gain=2),
        is_uniform,
        (-2 * math.sqrt(6 / 840), 2 * math.sqrt(6 / 840)),
    ),
    "xavier_normal": (init.xavier_normal_, is_normal, (0, math.sqrt(2 / 840))),
    "kaiming_uniform": (init.kaiming_uniform_, is_uniform, (-math.sqrt(6 / 360), math.sqrt(6 / 360))),
    "kaiming_uniform-slope": (
        lambda t: init.kaiming_uniform_(t, a=2.0, mode="fan_out"),
        is_uniform,
        (-math.sqrt(6 / 5 / 480), math.sqrt(6 / 5 / 480)),
    ),
    "kaiming_normal": (
        lambda t: init.kaiming_normal_(t, mode="fan_out", nonlinearity="relu"),
        is_normal,
        (0, RELU / math.sqrt(480)),
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distribution(name: str) -> None:
    function, check, limits = DISTRIBUTIONS[name]
    parameter = nn.Parameter(ad.zeros(SHAPE))
    assert function(parameter) is parameter
    check(parameter.detach().numpy().astype(np.float64), *limits)
    assert parameter.is_leaf and parameter.requires_grad and parameter._version > 0


def test_constants() -> None:
    tensor = nn.Parameter(ad.zeros(2, 3))
    np.testing.assert_array_equal(init.constant_(tensor, 2.5).detach().numpy(), np.full((2, 3), 2.5))
    np.testing.assert_array_equal(init.ones_(tensor).detach().numpy(), np.ones((2, 3)))
    np.testing.assert_array_equal(init.eye_(tensor).detach().numpy(), np.eye(2, 3))
    np.testing.assert_array_equal(init.zeros_(tensor).detach().numpy(), np.zeros((2, 3)))


@pytest.mark.parametrize(("mean", "std", "a", "b"), [(0, 1, -2, 2), (1, 2, 0, 1.5), (0, 0.02, -2, 2), (0, 1, 3, 4)])
def test_trunc_normal(mean: float, std: float, a: float, b: float) -> None:
    values = init.trunc_normal_(ad.empty(200, 250), mean, std, a, b).numpy().astype(np.float64)
    assert a <= values.min() and values.max() <= b

    def share(x: float) -> float:
        return 0.5 * math.erf((x - mean) / std / math.sqrt(2))

    low, high = max(a, mean - 8 * std), min(b, mean + 8 * std)
    for part in (0.1, 0.3, 0.6, 0.9):
        limit = low + part * (high - low)
        expected = (share(limit) - share(a)) / (share(b) - share(a))
        assert np.mean(values < limit) == pytest.approx(expected, abs=0.012)


def test_erfinv_inverts_erf() -> None:
    x = np.array([-0.999999, -0.99, -0.5, -1e-9, 0.0, 0.3, 0.9, 0.9999])
    np.testing.assert_allclose([math.erf(y) for y in init._erfinv(x)], x, rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (4, 2, 3)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    matrix = init.orthogonal_(ad.empty(shape, dtype=ad.float64), gain=2.0).numpy().reshape(shape[0], -1)
    product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-12)


def test_generators_repeat() -> None:
    first, second = (init.normal_(ad.empty(5), generator=ad.Generator().manual_seed(4)).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    ad.manual_seed(5)
    layer = nn.Linear(3, 3)
    ad.manual_seed(5)
    np.testing.assert_array_equal(nn.Linear(3, 3).weight.detach().numpy(), layer.weight.detach().numpy())


def test_layers_start_as_pytorchs_do() -> None:
    for layer, fan in ((nn.Linear(400, 300), 400), (nn.Conv2d(16, 300, (5, 5), groups=2), 8 * 25)):
        bound = 1 / math.sqrt(fan)
        is_uniform(layer.weight.detach().numpy().astype(np.float64), -bound, bound)
        bias = layer.bias.detach().numpy()
        assert abs(bias).max() <= bound and abs(bias).max() > 0.9 * bound
        assert bias.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    norm = nn.BatchNorm2d(3)
    assert (norm.weight.detach().numpy() == 1).all() and not norm.bias.detach().numpy().any()


@pytest.mark.parametrize("name", ["linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"])
def test_gains_are_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))
    if name == "leaky_relu":
        assert init.calculate_gain(name, 0.3) == pytest.approx(torch.nn.init.calculate_gain(name, 0.3))


def test_bad_settings() -> None:
    vector, matrix = ad.empty(3), ad.zeros(3, 3)
    for call, message in (
        (lambda: init.xavier_uniform_(vector), r"xavier_uniform_: .*at least 2 dimensions, got shape \(3,\)"),
        (lambda: init.kaiming_normal_(vector), "kaiming_normal_: .*at least 2"),
        (
            lambda: init.kaiming_uniform_(matrix, mode="fan"),
            'mode must be "fan_in" or "fan_out", got \'fan\'',
        ),
        (
            lambda: init.kaiming_uniform_(matrix, nonlinearity="gelu"),
            "calculate_gain: expected one of .*'gelu'",
        ),
        (lambda: init.eye_(vector), "eye_: expected a matrix"),
        (lambda: init.orthogonal_(vector), "orthogonal_: expected at least 2"),
        (lambda: init.trunc_normal_(matrix, a=2, b=1), "trunc_normal_: expected .*a < b"),
        (lambda: init.uniform_(matrix, 2, 1), "uniform_: expected a <= b"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not matrix.numpy().any()
