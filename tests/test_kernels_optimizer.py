"""Kernels of optimizers and gradient norms on NumPy against their formulas in float64, element by element."""

from __future__ import annotations

import math

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest
from optimizer_cases import (
    ADAM,
    SGD,
    adam_by_hand,
    arrays,
    assert_close,
    norm_by_hand,
    sgd_by_hand,
)

from adjoint import kernels
from adjoint.kernels.cpu import parallel, pieces

DTYPES = ("float32", "float64", "float16", "bfloat16")


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def small_pieces(request, monkeypatch):
    """Pieces of a few elements, so that all arrays are cut, on one thread or two."""
    before = parallel.threads()
    parallel.set_threads(request.param)
    for name, value in (("_PIECE", 16), ("_SHARED_PIECE", 8), ("_SHARED", 20)):
        monkeypatch.setattr(pieces, name, value)
    yield
    parallel.set_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SGD)
def test_sgd(name, dtype, small_pieces):
    settings = SGD[name]
    p, g, v = (arrays(seed, dtype) for seed in range(3))
    for first in (True, False):
        buffers = v if settings.get("momentum") else None
        wanted_p, wanted_v = sgd_by_hand(p, g, v, first, **settings)
        kernels.sgd(p, g, buffers, first, **settings)
        assert_close(p, wanted_p, dtype)
        if buffers:
            assert_close(v, wanted_v, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ADAM)
def test_adam(name, dtype, small_pieces):
    settings = dict(ADAM[name])
    amsgrad = settings.pop("amsgrad", False)
    lists = [arrays(0, dtype), arrays(1, dtype), *(arrays(seed, dtype, positive=seed > 2) for seed in (2, 3, 4))]
    for step in (1, 7):
        wanted = adam_by_hand(*lists, step, amsgrad, **settings)
        kernels.adam(*lists[:4], lists[4] if amsgrad else None, step, **settings)
        for got, want in zip((lists[0], *lists[2:]), wanted, strict=True):
            assert_close(got, want, dtype)


def test_gradients_stay_as_they_are():
    p, g, m, v = (arrays(seed, "float32", positive=True) for seed in range(4))
    before = [array.copy() for array in g]
    kernels.adam(p, g, m, v, None, 1, 0.1, maximize=True, weight_decay=0.1)
    kernels.sgd(p, g, m, False, 0.1, 0.9, maximize=True, weight_decay=0.1)
    for array, old in zip(g, before, strict=True):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[::-1], lambda a: a[:, ::2], lambda a: a[1:, 1:]])
def test_views_keep_what_is_around_them(view, small_pieces):
    memory = [np.random.default_rng(seed).random((12, 14)) for seed in range(4)]
    plain = [[view(array).copy()] for array in memory]
    kernels.adam(*([view(array)] for array in memory), None, 3, 0.1)
    kernels.adam(*plain, None, 3, 0.1)
    outside = np.ones((12, 14), bool)
    view(outside)[...] = False
    for seed, (array, (alone,)) in enumerate(zip(memory, plain, strict=True)):
        np.testing.assert_array_equal(view(array), alone)
        np.testing.assert_array_equal(array[outside], np.random.default_rng(seed).random((12, 14))[outside])


def test_a_misaligned_parameter():
    memory = np.zeros(4 * 40 + 1, np.uint8)
    p = memory[1:].view(np.float32)
    assert not p.flags.aligned
    kernels.sgd([p], [np.ones(40, np.float32)], None, True, 0.5)
    np.testing.assert_array_equal(p, -0.5)


def test_numbers_in_arrays():
    for number in (float, np.float32, lambda x: np.array(x, np.float32), lambda x: np.array(x)):
        p, g, m, v = (arrays(seed, "float64", positive=seed == 3) for seed in range(4))
        wanted, _, _, _ = adam_by_hand(p, [array / 4 for array in g], m, v, v, 3, False, 0.5)
        kernels.adam(p, g, m, v, None, number(3), number(0.5), grad_scale=number(4))
        assert_close(p, wanted, "float64")


def test_found_inf_changes_nothing():
    p, g, m = (arrays(seed, "float32") for seed in range(3))
    before = [array.copy() for array in p + m]
    kernels.sgd(p, g, m, False, 0.1, 0.9, found_inf=np.array(1, np.float32))
    kernels.adam(p, g, m, m, None, 1, 0.1, found_inf=np.array(1, np.float32))
    for array, old in zip(p + m, before, strict=True):
        np.testing.assert_array_equal(array, old)
    kernels.sgd(p, g, m, False, 0.1, 0.9, found_inf=np.array(0, np.float32))
    assert (p[0] != before[0]).any()


# ---- norms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [1.0, 2.0, 3.5, 0.5, math.inf])
def test_grad_norm(order, dtype, small_pieces):
    grads = arrays(5, dtype)
    total = kernels.grad_norm(grads, order)
    assert total.shape == () and total.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert float(total) == pytest.approx(norm_by_hand(grads, order), rel=1e-12 if dtype == "float64" else 1e-6)


def test_grad_norm_of_long_arrays_and_any_layout():
    grads = [np.random.default_rng(0).random((1100, 700), np.float32)[:, ::2], np.ones((30_001,), np.float32)]
    for order in (1.0, 2.0, math.inf):
        assert float(kernels.grad_norm(grads, order)) == pytest.approx(norm_by_hand(grads, order), rel=1e-6)


def test_norms_do_not_depend_on_threads():
    grads = [np.random.default_rng(seed).random(300_000, np.float32) for seed in range(3)]
    before, found = parallel.threads(), []
    for threads in (1, 2, 3):
        parallel.set_threads(threads)
        found.append(float(kernels.grad_norm(grads)))
    parallel.set_threads(before)
    assert len(set(found)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_grad_norm(dtype, small_pieces):
    for limit in (0.5, 1e4):
        grads = arrays(6, dtype)
        wanted = [array.astype(np.float64) for array in grads]
        norm = norm_by_hand(grads, 2.0)
        total = kernels.clip_grad_norm(grads, limit)
        assert float(total) == pytest.approx(norm, rel=1e-6)
        assert_close(grads, [array * min(1.0, limit / (norm + 1e-6)) for array in wanted], dtype)


def test_clip_grads_by_a_norm_that_is_not_finite():
    for norm, wanted in ((np.nan, [np.nan, np.nan]), (np.inf, [0.0, np.nan])):
        grads = [np.array([1.0, np.inf], np.float32)]
        kernels.clip_grads(grads, 1.0, np.array(norm, np.float32))
        np.testing.assert_array_equal(grads[0], np.float32(wanted))
    assert math.isnan(kernels.grad_norm([np.array([1, np.nan, np.inf])], math.inf))


@pytest.mark.parametrize("dtype", DTYPES)
def test_clamp_grads(dtype, small_pieces):
    grads = [*arrays(7, dtype), np.array([np.nan, np.inf, -np.inf, -0.0]).astype(dtype), arrays(8, dtype)[4][..., ::-2]]
    wanted = [np.clip(array.astype(np.float64), -0.5, 0.5) for array in grads]
    kernels.clamp_grads(grads, 0.5)
    for array, want in zip(grads, wanted, strict=True):
        np.testing.assert_array_equal(array.astype(np.float64), want)


def test_gradients_of_several_dtypes():
    grads = [np.full(5, 3, np.float16), np.full(5, 4, np.float32), np.full((1, 1), 2, np.float64)]
    total = kernels.clip_grad_norm(grads, 1.0)
    assert total.dtype == np.float64 and float(total) == pytest.approx(math.sqrt(45 + 80 + 4))
    np.testing.assert_allclose(grads[1], 4 / math.sqrt(129), rtol=1e-6)


# ---- bad input

ONES = [np.ones((2, 3), np.float32)]
BAD = {
    "length": (lambda: kernels.sgd(ONES, [], None, True, 0.1), "grads must be as many arrays as params, 1, got 0"),
    "shape": (
        lambda: kernels.sgd(ONES, [np.ones(6, np.float32)], None, True, 0.1),
        r"grads\[0\] must have the shape \(2, 3\) of params\[0\], got \(6,\)",
    ),
    "buffers": (
        lambda: kernels.sgd(ONES, ONES, None, True, 0.1, 0.9),
        "momentum_buffers must be given with a momentum",
    ),
    "nesterov": (lambda: kernels.sgd(ONES, ONES, None, True, 0.1, nesterov=True), "nesterov needs a momentum above 0"),
    "lr": (lambda: kernels.sgd(ONES, ONES, None, True, -1.0), "sgd: lr must be at least 0, got -1.0"),
    "step": (
        lambda: kernels.adam(ONES, ONES, ONES, ONES, None, 0, 0.1),
        "adam: step must be a whole number of at least 1",
    ),
    "beta": (lambda: kernels.adam(ONES, ONES, ONES, ONES, None, 1, 0.1, 1.0), "beta1 must be at least 0 and below 1"),
    "scale": (lambda: kernels.sgd(ONES, ONES, None, True, 0.1, grad_scale=0), "grad_scale must be above 0, got 0"),
    "lr-shape": (lambda: kernels.sgd(ONES, ONES, None, True, np.ones(1)), r"lr must be a number or a 0-d array"),
    "order": (lambda: kernels.grad_norm(ONES, 0), "grad_norm: norm_type must be positive, got 0"),
    "no-grads": (lambda: kernels.grad_norm([]), "grad_norm: grads must be at least one array"),
    "limit": (lambda: kernels.clamp_grads(ONES, -1.0), "clamp_grads: limit must be at least 0, got -1.0"),
    "norm-shape": (lambda: kernels.clip_grads(ONES, 1.0, np.ones(1)), "total_norm must be a 0-d array"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
    np.testing.assert_array_equal(ONES[0], 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.sgd(ONES, [np.ones((2, 3))], None, True, 0.1), "all arrays must have one dtype"),
        (
            lambda: kernels.sgd([[1.0]], [[1.0]], None, True, 0.1),
            r"params\[0\] must be a NumPy or CuPy array, got list",
        ),
        (lambda: kernels.sgd([np.ones(2, int)], [np.ones(2, int)], None, True, 0.1), "must be float32, float64"),
        (lambda: kernels.sgd(ONES, ONES, None, True, "0.1"), "lr must be a NumPy or CuPy array, got str"),
        (lambda: kernels.grad_norm([np.ones(2, int)]), r"grad_norm: grads\[0\] must be float32"),
    ],
)
def test_bad_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_arrays_that_are_read_only():
    good, fixed = np.ones(3, np.float32), np.broadcast_to(np.float32(1), 3)
    lists = [good, good.copy()], [good.copy(), fixed]
    for call in (
        lambda: kernels.sgd(lists[1], lists[0], None, True, 0.1),
        lambda: kernels.sgd(lists[0], lists[0], lists[1], True, 0.1, 0.9),
        lambda: kernels.adam(lists[0], lists[0], lists[0], lists[1], None, 1, 0.1),
        lambda: kernels.clip_grad_norm(lists[1], 0.1),
        lambda: kernels.clip_grads(lists[1], 0.1, np.array(1, np.float32)),
        lambda: kernels.clamp_grads(lists[1], 0.1),
    ):
        with pytest.raises(ValueError, match=r"\[1\] is read-only"):
            call()
    np.testing.assert_array_equal(lists, 1)
    kernels.sgd(lists[0], lists[1], None, True, 0.5)


def test_nothing_to_do():
    kernels.sgd([], [], None, True, 0.1)
    empty = [np.ones((0, 3), np.float32)]
    kernels.adam(empty, empty, empty, empty, None, 1, 0.1)
    assert kernels.clip_grad_norm(empty, 1.0) == 0
