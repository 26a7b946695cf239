"""Dropout on NumPy: what it keeps, in which share, and what it makes of it."""

from __future__ import annotations

import math

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest

from adjoint import kernels
from adjoint.kernels.cpu import parallel

DTYPES = ("float32", "float64", "float16", "bfloat16")


def stream(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [False, True], ids=["plain", "alpha"])
def test_values(dtype, alpha):
    x = (np.random.default_rng(1).random((70, 1001)) + 1).astype(dtype)
    y, kept = kernels.dropout(x, 0.3, stream(), alpha)
    assert y.dtype == x.dtype and y.flags.c_contiguous and kept.shape == x.shape
    wide, tolerance = x.astype(np.float64), {"float32": 1e-6, "float64": 1e-15}.get(dtype, 1e-2)
    if alpha:  # Klambauer et al.: a (x d + α' (1 - d)) + b
        saturated = -1.7580993408473766
        a = (0.7 + saturated**2 * 0.3 * 0.7) ** -0.5
        b = -a * 0.3 * saturated
        wanted = a * np.where(kept, wide, saturated) + b
        factor = np.where(kept, a, 0)
    else:
        wanted, factor = np.where(kept, wide / 0.7, 0), np.where(kept, 1 / 0.7, 0)
    np.testing.assert_allclose(y.astype(np.float64), wanted, rtol=tolerance, atol=tolerance)
    grad = kernels.dropout_grad(x, 0.3, kept, alpha)
    assert grad.dtype == x.dtype
    np.testing.assert_allclose(grad.astype(np.float64), wide * factor, rtol=tolerance)


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1, 0.25, 0.5, 1 / 3, 0.999, 1 - 1e-9])
def test_the_share_that_is_kept(p):
    count = 1 << 21
    _, kept = kernels.dropout(np.ones(count, np.float32), p, stream(7))
    dropped, deviation = count - kept.sum(), math.sqrt(count * p * (1 - p))
    assert abs(dropped - count * p) <= 5 * deviation + (p > 0)


def test_elements_are_independent():
    _, kept = kernels.dropout(np.ones(1 << 20, np.float32), 0.5, stream(3))
    signs = 2.0 * kept - 1
    for lag in (1, 2, 3, 4, 7, 64, 1 << 16, (1 << 16) + 1):
        assert abs((signs[lag:] * signs[:-lag]).mean()) < 5 / math.sqrt(len(signs) - lag)


def test_each_call_draws_anew_and_a_seed_repeats():
    x, random = np.ones(200_000, np.float32), stream(5)
    first, second = kernels.dropout(x, 0.5, random)[1], kernels.dropout(x, 0.5, random)[1]
    assert 0.49 < (first == second).mean() < 0.51
    random = stream(5)
    np.testing.assert_array_equal(first, kernels.dropout(x, 0.5, random)[1])
    np.testing.assert_array_equal(second, kernels.dropout(x, 0.5, random)[1])


def test_numbers_do_not_depend_on_threads():
    before, found = parallel.threads(), []
    for threads in (1, 2, 3):
        parallel.set_threads(threads)
        found.append(kernels.dropout(np.ones(300_000, np.float32), 0.1, stream(2))[1])
    parallel.set_threads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize(
    "view", [lambda a: a.T, lambda a: a[::-1], lambda a: a[:, ::3], lambda a: a[1:, 1:], lambda a: a[:0]]
)
def test_any_layout(view):
    x = np.random.default_rng(0).random((300, 400), np.float32)
    y, kept = kernels.dropout(view(x), 0.4, stream())
    plain, same = kernels.dropout(view(x).copy(), 0.4, stream())
    np.testing.assert_array_equal(y, plain)
    np.testing.assert_array_equal(kept, same)
    np.testing.assert_array_equal(kernels.dropout_grad(view(x), 0.4, kept), y)


def test_nan_and_infinities_show():
    y, _ = kernels.dropout(np.full(1000, np.inf, np.float32), 0.5, stream())
    assert set(np.unique(np.isnan(y))) == {False, True} and np.isinf(y[~np.isnan(y)]).all()


def test_bad_input():
    x = np.ones((2, 3), np.float32)
    for p in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=f"dropout: p must be at least 0 and below 1, got {p}"):
            kernels.dropout(x, p, stream())
    with pytest.raises(TypeError, match="random must be a NumPy generator over PCG64"):
        kernels.dropout(x, 0.5, np.random.Generator(np.random.MT19937(0)))
    with pytest.raises(ValueError, match=r"kept must have the shape \(2, 3\) of dy, got \(3,\)"):
        kernels.dropout_grad(x, 0.5, np.ones(3, bool))
    with pytest.raises(TypeError, match="x must be float32"):
        kernels.dropout(np.ones(3, int), 0.5, stream())
