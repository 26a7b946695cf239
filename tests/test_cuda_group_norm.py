"""CUDA group and instance normalisation against the definition in float64 and the NumPy kernels."""

from __future__ import annotations

from importlib import import_module

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest
from norm_by_definition import gradients, normalized

from adjoint.kernels import cpu
from adjoint.kernels.cuda import group_norm, group_norm_grad
from cuda_on_host import (
    HostLauncher,
    device_fixture,
    installed,
    needs_compiler,
    run_under_sanitizers,
    sanitizing,
)

module = import_module("adjoint.kernels.cuda.group_norm")

cuda_device = device_fixture()

ALL = ("float32", "float64", "float16", "bfloat16")
# (relative, absolute)
TOLERANCE = {
    "float32": (2e-5, 4e-6),
    "float64": (1e-12, 1e-12),
    "float16": (1e-3, 2e-4),
    "bfloat16": (8e-3, 2e-3),
}
EPS = 1e-5
# Shapes and groups. Channels that share a warp, that have one, and several; channels in turns; in vectors and not.
SHAPES = {
    ((3, 6, 5, 5), 2): ALL,
    ((2, 8, 4, 4), 4): ("float32", "bfloat16"),
    ((4, 12), 2): ("float32",),
    ((70, 4, 3), 1): ("float32", "float16"),
    ((3, 5, 7), 5): ALL,
    ((40, 6, 2, 2), 3): ("float32",),
    ((2, 3, 500), 3): ALL,
    ((1, 12, 33, 9), 2): ALL,
    ((2, 70, 8), 1): ("float32", "float64"),
    ((1, 600), 2): ("float32",),
    ((1, 16, 24, 32), 2): ALL,
    ((1, 3, 90, 90), 1): ALL,
    ((1, 2, 151, 151), 1): ("float32",),
    ((1, 1, 192, 192), 1): ALL,
    ((1, 2200, 4), 1): ("float32",),
}
PARITY = [
    pytest.param(shape, groups, dtype, id=f"{'x'.join(map(str, shape))}-{groups}-{dtype}")
    for (shape, groups), dtypes in SHAPES.items()
    for dtype in dtypes
]


@pytest.fixture(params=["whole", "split"])
def way(request, monkeypatch):
    """Rows by one block each, or split over blocks as far as they can be."""
    monkeypatch.setattr(module, "_FEW_ROWS", 0 if request.param == "whole" else 10**6)
    monkeypatch.setattr(module, "_LEAST_SPLIT", 512)
    return request.param


def inputs_of(shape, dtype, vectors=None, seed=0):
    """x, dy, weight and bias."""
    rng = np.random.default_rng(seed)
    x = (1.5 * rng.standard_normal(shape) + 0.7).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    weight, bias = (rng.uniform(0.5, 2, shape[1]).astype(vectors or dtype) for _ in range(2))
    return x, dy, weight, bias


def results(device, groups, x, dy, weight, bias):
    """All results from `device`, as NumPy arrays: y, mean, rstd; dx, and the gradients of weight and bias."""
    x, dy, weight, bias = (None if a is None else device.put(a) for a in (x, dy, weight, bias))
    y, mean, rstd = group_norm(x, weight, bias, groups, EPS)
    found = y, mean, rstd, *group_norm_grad(dy, x, weight, mean, rstd, groups)
    return [device.get(a) for a in found]


def expected_results(groups, x, dy, weight, bias):
    n, channels = x.shape[:2]
    length = int(np.prod(x.shape[2:]))

    def rows(a):
        return a.reshape(n, groups, -1)

    def elements(vector):
        return None if vector is None else np.repeat(vector, length).reshape(groups, -1)

    y, mean, rstd = normalized(rows(x), elements(weight), elements(bias), EPS)
    dx, by_weight, by_bias = gradients(rows(dy), rows(x), elements(weight), EPS)
    sums = [part.reshape(n, channels, length).sum((0, 2)) for part in (by_weight, by_bias)]
    return [y.reshape(x.shape), mean, rstd, dx.reshape(x.shape), *sums]


def assert_close(found, expected, dtype, vectors=None):
    wide = "float64" if dtype == "float64" else "float32"
    for actual, wanted, kind in zip(
        found, expected, [dtype, wide, wide, dtype, vectors or dtype, vectors or dtype], strict=True
    ):
        assert actual.dtype == np.dtype(kind)
        assert actual.shape == wanted.shape
        rtol, atol = TOLERANCE[kind]
        scale = max(1.0, float(np.abs(wanted).max(initial=0))) if wanted.ndim == 1 else 1.0
        np.testing.assert_allclose(actual.astype(np.float64), wanted, rtol=rtol, atol=atol * scale)


@pytest.mark.parametrize("shape, groups, dtype", PARITY)
def test_parity(cuda_device, way, shape, groups, dtype):
    given = inputs_of(shape, dtype)
    copies = [a.copy() for a in given]
    found = results(cuda_device, groups, *given)
    assert_close(found, expected_results(groups, *given), dtype)
    x, dy, weight, bias = given
    y, mean, rstd = cpu.group_norm(x, weight, bias, groups, EPS)
    on_cpu = y, mean, rstd, *cpu.group_norm_grad(dy, x, weight, mean, rstd, groups)
    assert_close(found, [a.astype(np.float64) for a in on_cpu], dtype)
    for array, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape, groups", [((3, 6, 5, 5), 2), ((1, 4, 40, 40), 2)])
def test_parity_of_float32_vectors_beside_halves(cuda_device, way, shape, groups, dtype):
    given = inputs_of(shape, dtype, "float32")
    assert_close(results(cuda_device, groups, *given), expected_results(groups, *given), dtype, "float32")


@pytest.mark.parametrize("shape, groups", [((3, 6, 5, 5), 2), ((1, 4, 40, 40), 2)])
def test_parity_without_vectors(cuda_device, way, shape, groups):
    x, dy, weight, bias = inputs_of(shape, "float32")
    put, get = cuda_device.put, cuda_device.get
    for w, b in ((None, None), (weight, None), (None, bias)):
        assert_close(results(cuda_device, groups, x, dy, w, b), expected_results(groups, x, dy, w, b), "float32")
    _, mean, rstd = group_norm(put(x), put(weight), None, groups, EPS)
    full = group_norm_grad(put(dy), put(x), put(weight), mean, rstd, groups)
    for wants in ((False, False), (True, False), (False, True)):
        parts = group_norm_grad(put(dy), put(x), put(weight), mean, rstd, groups, *wants)
        for part, whole, wanted in zip(parts, full, (True, *wants), strict=True):
            assert (part is not None) == wanted
            if wanted:
                np.testing.assert_array_equal(get(part), get(whole))


def test_parity_of_views(cuda_device, way):
    """Other strides, and addresses that are no multiple of a vector's size."""
    given = inputs_of((2, 4, 16, 20), "float32")
    expected = expected_results(2, *given)
    x, dy, weight, bias = map(cuda_device.put, given)

    def shifted(a):
        longer = a.ravel().repeat(2)[: a.size + 1]
        longer[1:] = a.ravel()
        return longer[1:].reshape(a.shape)

    for change in (
        lambda a: a.repeat(2, axis=-1)[..., ::2],
        lambda a: a[..., ::-1].copy()[..., ::-1],
        lambda a: a.T.copy().T,
        shifted,
    ):
        y, mean, rstd = group_norm(change(x), change(weight), change(bias), 2, EPS)
        found = y, mean, rstd, *group_norm_grad(change(dy), change(x), change(weight), mean, rstd, 2)
        assert_close([cuda_device.get(a) for a in found], expected, "float32")


@pytest.mark.parametrize("shape, groups", [((0, 4, 3), 2), ((3, 4, 0), 2), ((2, 0, 3), 1)])
def test_parity_of_nothing(cuda_device, shape, groups):
    y, mean, rstd, dx, by_weight, by_bias = results(cuda_device, groups, *inputs_of(shape, "float32"))
    assert y.shape == dx.shape == shape
    assert mean.shape == rstd.shape == (shape[0], groups)
    for grad in (by_weight, by_bias):
        np.testing.assert_array_equal(grad, np.zeros(shape[1]))


@pytest.mark.parametrize("shape", [(2, 4, 9), (1, 2, 64, 40), (1, 2, 160, 160)])
def test_parity_of_means_far_from_zero(cuda_device, way, shape):
    """Far from 0 by 1000 standard deviations, results are as exact as near it."""
    x = (1000 + np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    y, mean, rstd = (cuda_device.get(a) for a in group_norm(cuda_device.put(x), None, None, 2, EPS))
    expected = expected_results(2, x, x, None, None)
    np.testing.assert_allclose(y, expected[0], atol=2e-6)
    np.testing.assert_allclose(mean, expected[1], rtol=2e-7)
    np.testing.assert_allclose(rstd, expected[2], rtol=1e-6)


def test_parity_of_blocks_that_take_several_rows(cuda_device, monkeypatch):
    monkeypatch.setattr(module, "_FEW_ROWS", 0)
    monkeypatch.setattr(module, "_GRAD_BLOCKS", 2)
    for shape, groups in (((700, 12), 2), ((23, 6, 4), 2), ((90, 3, 5), 3), ((9, 4, 600), 2), ((5, 2, 70, 70), 1)):
        given = inputs_of(shape, "float32")
        assert_close(results(cuda_device, groups, *given), expected_results(groups, *given), "float32")


@needs_compiler
@pytest.mark.parametrize("shape, groups", [((20, 6, 4), 3), ((3, 4, 30, 30), 2)])
def test_results_are_the_same_bits_in_every_order(way, shape, groups):
    x, dy, weight, bias = inputs_of(shape, "float32")
    found = set()
    for seed in (None, None, 1, 2):
        with installed(HostLauncher(seed=seed)):
            y, mean, rstd = group_norm(x, weight, bias, groups, EPS)
            grads = group_norm_grad(dy, x, weight, mean, rstd, groups)
        found.add(b"".join(a.tobytes() for a in (y, mean, rstd, *grads)))
    assert len(found) == 1


@pytest.mark.parametrize("scalar, vector", [("float", 4), ("double", 2), ("float16", 8)])
def test_every_choice_covers_its_rows(scalar, vector):
    """Steps and threads suffice for all channels, within what a thread keeps; and every variant is chosen somewhere."""
    seen = set()
    for depth in (1, 2, 3, 7, 8, 32, 100, 700):
        for length in (1, 3, 49, 196, 784, 1000, 3136, 12544, 50176):
            shape = module._Shape(100, 2, depth, length)
            for choice in (module._choice(scalar, vector, shape), module._grad_choice(scalar, vector, shape, 8)):
                if choice is None:
                    continue
                kernel, layout = choice
                slots = layout.threads // layout.lanes
                assert layout.lanes * vector * layout.per_channel >= length
                turns = layout.steps // layout.per_channel
                assert turns * layout.per_channel == layout.steps
                assert turns * slots >= depth
                long = "long" in kernel.name or kernel.name.endswith(" 0>")
                assert layout.threads == 1024 if long else layout.threads <= 512
                if not long:
                    assert layout.steps * vector <= int(kernel.name.split()[-1].rstrip(">"))
                seen.add(kernel)
    wanted = [
        k
        for k in module.VARIANTS
        if k.name.partition("<")[2].rstrip(">").split(",")[0] == scalar and k.source == "group_norm.cu"
    ]
    assert seen == set(wanted)


def test_too_large_a_group_is_an_error():
    x = np.broadcast_to(np.float32(0), (0, 2, 2**30))
    message = "group_norm: on CUDA a group may have 1073741824 elements, got 2147483648"
    with installed(HostLauncher()), pytest.raises(ValueError, match=message):
        group_norm(x, groups=1)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="needs memory that is not touched")
def test_ends_of_more_than_2_31_elements():
    """The first and the last groups of more than 2^31 elements, forward; the others are never touched."""
    shape = 2**15 + 1, 64, 32, 33
    x = np.empty(shape, np.float16)
    rng = np.random.default_rng(0)
    for image in (0, -1):
        x[image] = rng.standard_normal(shape[1:])
    with installed(HostLauncher(ends_only=2)):
        y, mean, rstd = group_norm(x, None, None, 16, EPS)
    for image, known in ((0, slice(0, 2)), (-1, slice(-2, None))):
        rows = x[image].reshape(16, -1)[known]
        expected = normalized(rows, None, None, EPS)
        np.testing.assert_allclose(
            y[image].reshape(16, -1)[known].astype(np.float64), expected[0], rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(mean[image][known], expected[1], atol=1e-6)
        np.testing.assert_allclose(rstd[image][known], expected[2], rtol=1e-5)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    result = run_under_sanitizers(
        __file__, "-k", "parity and not float64 and not bfloat16 and not 5000x4 and not 192x192"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
