"""The CUDA optimizers, norms and clipping against plain formulas in float64, on every device there is."""

from __future__ import annotations

import math
import sys

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest
from optimizer_cases import ADAM, SGD, adam_by_hand, arrays, assert_close, norm_by_hand, sgd_by_hand

from adjoint.kernels import cpu, cuda
from adjoint.kernels.cuda import multi_tensor, optimizer
from cuda_on_host import HostLauncher, device_fixture, installed, needs_compiler, run_under_sanitizers, sanitizing

cuda_device = device_fixture()

DTYPES = ("float32", "float64", "float16", "bfloat16")


def put(device, lists):
    """Copies on the device: on the host `device.put` would share the memory that a kernel changes."""
    return [[device.put(array.copy()) for array in one] for one in lists]


def get(device, arrays):
    return [device.get(array) for array in arrays]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SGD)
def test_sgd(cuda_device, name, dtype):
    settings = SGD[name]
    for first in (True, False):
        host = [arrays(seed, dtype) for seed in range(3)]
        wanted_p, wanted_v = sgd_by_hand(*host, first, **settings)
        p, g, v = put(cuda_device, host)
        optimizer.sgd(p, g, v if "momentum" in settings else None, first, **settings)
        assert_close(get(cuda_device, p), wanted_p, dtype)
        assert_close(get(cuda_device, g), arrays(1, dtype), dtype)
        if "momentum" in settings:
            assert_close(get(cuda_device, v), wanted_v, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ADAM)
def test_adam(cuda_device, name, dtype):
    settings = dict(ADAM[name])
    amsgrad = settings.pop("amsgrad", False)
    host = [arrays(0, dtype), arrays(1, dtype), *(arrays(seed, dtype, positive=seed > 2) for seed in (2, 3, 4))]
    wanted = adam_by_hand(*host, 7, amsgrad, **settings)
    p, g, m, v, top = put(cuda_device, host)
    optimizer.adam(p, g, m, v, top if amsgrad else None, 7, **settings)
    for got, want in zip((p, m, v, top), wanted, strict=True):
        assert_close(get(cuda_device, got), want, dtype)
    assert_close(get(cuda_device, g), arrays(1, dtype), dtype)


def test_numbers_in_device_memory(cuda_device):
    for dtype in ("float32", "float64"):
        host = [arrays(seed, dtype, positive=seed > 2) for seed in range(4)]
        p, g, m, v = put(cuda_device, host)
        step, lr, scale, clean = (cuda_device.put(np.array(x, np.float32)) for x in (3, 0.5, 4, 0))
        wanted = adam_by_hand(*host, host[3], 3, False, 0.5, grad_scale=4.0, weight_decay=0.125, decoupled=True)
        optimizer.adam(
            p, g, m, v, None, step, lr, weight_decay=0.125, decoupled=True, grad_scale=scale, found_inf=clean
        )
        for got, want in zip((p, m, v), wanted, strict=False):
            assert_close(get(cuda_device, got), want, dtype)

        p, g, v = put(cuda_device, [arrays(seed, dtype) for seed in range(3)])
        wanted_p, wanted_v = sgd_by_hand(
            *(arrays(seed, dtype) for seed in range(3)), False, 0.5, 0.9, maximize=True, grad_scale=4.0
        )
        optimizer.sgd(p, g, v, False, lr, 0.9, maximize=True, grad_scale=scale)
        assert_close(get(cuda_device, p), wanted_p, dtype)
        assert_close(get(cuda_device, v), wanted_v, dtype)


def test_found_inf_changes_nothing(cuda_device):
    host = [arrays(seed, "float32") for seed in range(4)]
    p, g, m, v = put(cuda_device, [arrays(seed, "float32") for seed in range(4)])
    found = cuda_device.put(np.array(1, np.float32))
    optimizer.adam(p, g, m, v, None, 1, 0.1, found_inf=found)
    optimizer.sgd(p, g, m, False, 0.1, 0.9, found_inf=found)
    for got, want in zip((p, m, v), (host[0], host[2], host[3]), strict=True):
        for array, old in zip(get(cuda_device, got), want, strict=True):
            np.testing.assert_array_equal(array, old)


def test_more_arrays_than_one_launch_takes(cuda_device):
    shapes = [(i % 5,) for i in range(2 * multi_tensor.most_arrays(4) + 3)]
    host = [arrays(seed, "float32", positive=seed > 2, shapes=shapes) for seed in range(4)]
    wanted = adam_by_hand(*host, host[3], 2, False, 0.1)
    lists = put(cuda_device, host)
    optimizer.adam(*lists, None, 2, 0.1)
    for got, want in zip((lists[0], lists[2], lists[3]), wanted, strict=False):
        assert_close(get(cuda_device, got), want, "float32")
    shapes = [(i % 3,) for i in range(2 * multi_tensor.most_arrays(1) + 3)]
    grads = arrays(0, "float32", shapes=shapes)
    total = cuda.grad_norm([cuda_device.put(array) for array in grads])
    assert float(cuda_device.get(total)) == pytest.approx(norm_by_hand(grads, 2.0), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "view",
    [lambda a: a[1:], lambda a: a[::-1], lambda a: a[::2], lambda a: a[3:-2]],
    ids=["misaligned", "reversed", "strided", "inside"],
)
def test_views_keep_what_is_around_them(cuda_device, view, dtype):
    host = [np.random.default_rng(seed).random(4200).astype(dtype) for seed in range(4)]
    wanted = adam_by_hand(*([view(array)] for array in host), [view(host[3])], 3, False, 0.1)
    memory = [cuda_device.put(array.copy()) for array in host]
    optimizer.adam(*([view(array)] for array in memory), None, 3, 0.1)
    outside = np.ones(4200, bool)
    view(outside)[...] = False
    for k, want in ((0, wanted[0]), (2, wanted[1]), (3, wanted[2])):
        got = cuda_device.get(memory[k])
        assert_close([view(got)], want, dtype)
        np.testing.assert_array_equal(got[outside], host[k][outside])


def test_only_some_arrays_are_aligned(cuda_device):
    host = [arrays(seed, "float32", shapes=[(41,), (40,)]) for seed in range(3)]
    wanted, _ = sgd_by_hand([host[0][0][1:], host[0][1]], [host[1][0][:40], host[1][1]], host[2], False, 0.5)
    p, g, _ = put(cuda_device, host)
    p[0], g[0] = p[0][1:], g[0][:40]
    optimizer.sgd(p, g, None, False, 0.5)
    assert_close(get(cuda_device, p), wanted, "float32")


# ---- norms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [1.0, 2.0, 3.5, 0.5, math.inf])
def test_grad_norm(cuda_device, order, dtype):
    grads = arrays(5, dtype)
    total = cuda_device.get(cuda.grad_norm([cuda_device.put(array) for array in grads], order))
    assert total.shape == () and total.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert float(total) == pytest.approx(norm_by_hand(grads, order), rel=1e-12 if dtype == "float64" else 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [2.0, math.inf])
@pytest.mark.parametrize("limit", [0.5, 1e4])
def test_clip_grad_norm(cuda_device, dtype, order, limit):
    host = arrays(6, dtype)
    norm = norm_by_hand(host, order)
    wanted = [array.astype(np.float64) * min(1.0, limit / (norm + 1e-6)) for array in host]
    first, second = put(cuda_device, [arrays(6, dtype), arrays(6, dtype)])
    total = cuda.clip_grad_norm(first, limit, order)
    cuda.clip_grads(second, limit, total)
    assert float(cuda_device.get(total)) == pytest.approx(norm, rel=1e-6)
    assert_close(get(cuda_device, first), wanted, dtype)
    for one, other in zip(get(cuda_device, first), get(cuda_device, second), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clamp_grads(cuda_device, dtype):
    host = [*arrays(7, dtype), np.array([np.nan, np.inf, -np.inf, -0.0]).astype(dtype)]
    wanted = [np.clip(array.astype(np.float64), -0.5, 0.5) for array in host]
    (grads,) = put(cuda_device, [host])
    cuda.clamp_grads([*grads[:-1], grads[-1][::-1]], 0.5)
    for array, want in zip(get(cuda_device, grads), wanted, strict=True):
        np.testing.assert_array_equal(array.astype(np.float64), want)


def test_more_chunks_than_blocks(cuda_device, monkeypatch):
    monkeypatch.setattr(sys.modules["adjoint.kernels.cuda.grad_norm"], "_MOST_BLOCKS", 2)
    host = arrays(8, "float32", shapes=[(3 * 4096 + 5,), (7,), (4097,)])
    (grads,) = put(cuda_device, [host])
    total = cuda.clip_grad_norm(grads, 1.0)
    assert float(cuda_device.get(total)) == pytest.approx(norm_by_hand(host, 2.0), rel=1e-6)
    assert_close(get(cuda_device, grads), [np.float64(array) / norm_by_hand(host, 2.0) for array in host], "float32")


def test_norms_that_are_not_finite(cuda_device):
    for values, order, clipped in (
        ([1.0, np.nan], 2.0, [np.nan, np.nan]),
        ([1.0, np.nan, np.inf], math.inf, [np.nan] * 3),
        ([1.0, np.inf], 2.0, [0.0, np.nan]),
        ([1.0, -np.inf], math.inf, [0.0, np.nan]),
    ):
        grads = [cuda_device.put(np.array(values, np.float32))]
        total = cuda.clip_grad_norm(grads, 1.0, order)
        assert not np.isfinite(cuda_device.get(total))
        np.testing.assert_array_equal(cuda_device.get(grads[0]), np.array(clipped, np.float32))


def test_gradients_of_several_dtypes_and_of_none(cuda_device):
    grads = [np.full(5, 3, np.float16), np.full(5, 4, np.float32), np.full((1, 1), 2, np.float64)]
    grads = [cuda_device.put(array) for array in grads]
    total = cuda_device.get(cuda.clip_grad_norm(grads, 1.0))
    assert total.dtype == np.float64 and float(total) == pytest.approx(math.sqrt(45 + 80 + 4))
    np.testing.assert_allclose(cuda_device.get(grads[1]), 4 / math.sqrt(129), rtol=1e-6)
    empty = [cuda_device.put(np.ones((0, 3), np.float32))]
    assert cuda_device.get(cuda.clip_grad_norm(empty, 1.0)) == 0
    optimizer.adam(empty, empty, empty, empty, None, 1, 0.1)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="counts launches, which the sanitizers' build does alike")
def test_launches():
    """A step is one launch, clipping two; with numbers in device memory one more."""
    host = HostLauncher()
    with installed(host):
        p, g, m, v = (arrays(seed, "float32", positive=True) for seed in range(4))
        optimizer.adam(p, g, m, v, None, 1, 0.1)
        optimizer.adam(p, g, m, v, None, 1, np.array(0.1))
        cuda.clip_grad_norm(g, 1.0)
    names = [kernel.name.partition("<")[0] for kernel in host.launches]
    assert names == ["adam", "adam_numbers", "adam", "grad_norm_partials", "grad_norm_clip"]


def test_both_sides_agree(cuda_device):
    host = [arrays(seed, "float32", positive=seed == 3) for seed in range(4)]
    p, g, m, v = put(cuda_device, [arrays(seed, "float32", positive=seed == 3) for seed in range(4)])
    for step in range(1, 4):
        optimizer.adam(p, g, m, v, None, step, 0.01, weight_decay=0.1)
        cpu.adam(*host, None, step, 0.01, weight_decay=0.1)
    for got, want in zip(get(cuda_device, p), host[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="needs more address space than the sanitizers leave")
def test_the_end_of_an_array_beyond_2_31_elements():
    count = 2**31 + 5000
    p, g, small = np.empty(count, np.float16), np.empty(count, np.float16), np.ones(3, np.float16)
    p[-904:], g[-904:] = 1, np.arange(904)
    with installed(HostLauncher(ends_only=1)):
        optimizer.sgd([small, p], [small, g], None, False, 0.5)
    np.testing.assert_array_equal(small, 0.5)
    np.testing.assert_allclose(p[-904:].astype(float), 1 - 0.5 * np.arange(904), rtol=1e-3)


def test_arrays_on_several_devices_are_refused(monkeypatch):
    p, g = arrays(0, "float32"), arrays(1, "float32")
    launcher = HostLauncher()
    monkeypatch.setattr(launcher, "device", lambda array: "second" if array is g[3] else "first")
    with installed(launcher), pytest.raises(ValueError, match="arrays are on different devices: first, second"):
        optimizer.sgd(p, g, None, True, 0.1)
    np.testing.assert_array_equal(p[3], arrays(0, "float32")[3])


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the process that this is")
def test_under_sanitizers():
    result = run_under_sanitizers(__file__)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
