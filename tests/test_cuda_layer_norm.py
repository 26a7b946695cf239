"""CUDA layer and RMS normalisation against the definition in float64, the NumPy kernels and PyTorch."""

from __future__ import annotations

from importlib import import_module

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest
from norm_by_definition import gradients, normalized

from adjoint.kernels import cpu
from adjoint.kernels.cuda import layer_norm, layer_norm_grad, rms_norm, rms_norm_grad
from cuda_on_host import (
    HostLauncher,
    device_fixture,
    installed,
    needs_compiler,
    run_under_sanitizers,
    sanitizing,
)

module = import_module("adjoint.kernels.cuda.layer_norm")

cuda_device = device_fixture()

ALL = ("float32", "float64", "float16", "bfloat16")
# (relative, absolute)
TOLERANCE = {
    "float32": (2e-5, 4e-6),
    "float64": (1e-12, 1e-12),
    "float16": (1e-3, 1e-4),
    "bfloat16": (8e-3, 1e-3),
}
EPS = 1e-5
# Part of a warp for a row, several rows a block, whole warps, one row a block, rows read twice; in vectors and not.
SHAPES = {
    (5, 8): ALL,
    (3, 1): ("float32",),
    (70, 3): ALL,
    (9, 48): ("float32", "bfloat16"),
    (11, 100): ("float32",),
    (300, 16): ("float32", "float16"),
    (7, 257): ALL,
    (5, 768): ALL,
    (5, 1000): ("float32",),
    (3, 3001): ("float32", "float16"),
    (3, 4096): ALL,
    (3, 8192): ("float32",),
    (3, 9000): ALL,
    (2, 20000): ("float32", "bfloat16"),
    (3, 33001): ALL,
}
PARITY = [
    pytest.param(shape, dtype, id=f"{shape[0]}x{shape[1]}-{dtype}") for shape, ds in SHAPES.items() for dtype in ds
]


def inputs_of(shape, dtype, vectors=None, seed=0):
    """x, dy, weight and bias."""
    rng = np.random.default_rng(seed)
    x = (1.5 * rng.standard_normal(shape) + 0.7).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    weight, bias = (rng.uniform(0.5, 2, shape[1]).astype(vectors or dtype) for _ in range(2))
    return x, dy, weight, bias


def forward_and_gradients(device, x, dy, weight, bias, centred=True):
    """All results from `device`, as NumPy arrays: y, mean, rstd; dx, and the gradients of weight and bias."""
    x, dy, weight, bias = (None if a is None else device.put(a) for a in (x, dy, weight, bias))
    if centred:
        y, mean, rstd = layer_norm(x, weight, bias, EPS)
        found = y, mean, rstd, *layer_norm_grad(dy, x, weight, mean, rstd)
    else:
        y, rstd = rms_norm(x, weight, EPS)
        found = y, None, rstd, *rms_norm_grad(dy, x, weight, rstd), None
    return [None if a is None else device.get(a) for a in found]


def expected_results(x, dy, weight, bias, centred=True):
    dx, by_weight, by_bias = gradients(dy, x, weight, EPS, centred)
    y, mean, rstd = normalized(x, weight, bias if centred else None, EPS, centred)
    return [y, mean if centred else None, rstd, dx, by_weight.sum(0), by_bias.sum(0) if centred else None]


def assert_close(found, expected, dtype, vectors=None):
    wide = "float64" if dtype == "float64" else "float32"
    dtypes = [dtype, wide, wide, dtype, vectors or dtype, vectors or dtype]
    for actual, wanted, kind in zip(found, expected, dtypes, strict=True):
        assert (actual is None) == (wanted is None)
        if actual is None:
            continue
        assert actual.dtype == np.dtype(kind)
        assert actual.shape == wanted.shape
        rtol, atol = TOLERANCE[kind]
        scale = max(1.0, float(np.abs(wanted).max(initial=0))) if wanted.ndim == 1 else 1.0
        np.testing.assert_allclose(actual.astype(np.float64), wanted, rtol=rtol, atol=atol * scale)


@pytest.mark.parametrize("shape, dtype", PARITY)
@pytest.mark.parametrize("centred", [True, False], ids=["layer", "rms"])
def test_parity(cuda_device, shape, dtype, centred):
    given = inputs_of(shape, dtype)
    copies = [a.copy() for a in given]
    found = forward_and_gradients(cuda_device, *given, centred)
    assert_close(found, expected_results(*given, centred), dtype)
    x, dy, weight, bias = given
    if centred:
        y, mean, rstd = cpu.layer_norm(x, weight, bias, EPS)
        on_cpu = y, mean, rstd, *cpu.layer_norm_grad(dy, x, weight, mean, rstd)
    else:
        y, rstd = cpu.rms_norm(x, weight, EPS)
        on_cpu = y, None, rstd, *cpu.rms_norm_grad(dy, x, weight, rstd), None
    assert_close(found, [None if a is None else a.astype(np.float64) for a in on_cpu], dtype)
    for array, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(9, 48), (5, 257), (3, 3000), (2, 33000)])
def test_parity_of_float32_vectors_beside_halves(cuda_device, shape, dtype):
    given = inputs_of(shape, dtype, "float32")
    assert_close(forward_and_gradients(cuda_device, *given), expected_results(*given), dtype, "float32")


@pytest.mark.parametrize("shape", [(6, 40), (3, 2000), (2, 33001)])
def test_parity_without_vectors(cuda_device, shape):
    x, dy, weight, bias = inputs_of(shape, "float32")
    put, get = cuda_device.put, cuda_device.get
    for w, b in ((None, None), (weight, None), (None, bias)):
        found = forward_and_gradients(cuda_device, x, dy, w, b)
        assert_close(found, expected_results(x, dy, w, b), "float32")
    _, mean, rstd = (get(a) for a in layer_norm(put(x), None, None, EPS))
    full = layer_norm_grad(put(dy), put(x), None, put(mean), put(rstd))
    for with_weight in (False, True):
        for with_bias in (False, True):
            parts = layer_norm_grad(put(dy), put(x), None, put(mean), put(rstd), with_weight, with_bias)
            for part, whole, wanted in zip(parts, full, (True, with_weight, with_bias), strict=True):
                assert (part is not None) == wanted
                if wanted:
                    np.testing.assert_array_equal(get(part), get(whole))


@pytest.mark.parametrize("size", [12, 1200, 33_000])
def test_parity_of_views(cuda_device, size):
    """Other strides, and addresses that are no multiple of a vector's size."""
    given = inputs_of((3, size), "float32")
    expected = expected_results(*given)
    get = cuda_device.get
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
        y, mean, rstd = layer_norm(change(x), change(weight), change(bias), EPS)
        found = y, mean, rstd, *layer_norm_grad(change(dy), change(x), change(weight), mean, rstd)
        assert_close([get(a) for a in found], expected, "float32")
        y, _, _ = layer_norm(x, shifted(weight), bias, EPS)
        np.testing.assert_allclose(get(y), expected[0], rtol=2e-5, atol=4e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_parity_of_nothing(cuda_device, shape, dtype):
    y, mean, rstd, dx, by_weight, by_bias = forward_and_gradients(cuda_device, *inputs_of(shape, dtype))
    assert y.shape == dx.shape == shape
    assert mean.shape == rstd.shape == shape[:1]
    for grad in (by_weight, by_bias):
        np.testing.assert_array_equal(grad, np.zeros(shape[1]))


@pytest.mark.parametrize("size", [100, 5000, 33_000])
def test_parity_of_means_far_from_zero(cuda_device, size):
    """Far from 0 by 1000 standard deviations, results are as exact as near it."""
    rng = np.random.default_rng(0)
    x = (1000 + rng.standard_normal((4, size))).astype(np.float32)
    y, mean, rstd = (cuda_device.get(a) for a in layer_norm(cuda_device.put(x), None, None, EPS))
    expected = normalized(x, None, None, EPS)
    np.testing.assert_allclose(y, expected[0], atol=2e-6)
    np.testing.assert_allclose(mean, expected[1], rtol=2e-7)
    np.testing.assert_allclose(rstd, expected[2], rtol=1e-6)


@pytest.mark.parametrize("size", [6, 900, 33_000])
def test_parity_of_rows_that_are_not_finite(cuda_device, size):
    """Each stays in its row."""
    x, dy, weight, bias = inputs_of((5, size), "float32")
    x[1, -1], x[3, 2] = np.nan, np.inf
    found = forward_and_gradients(cuda_device, x, dy, weight, bias)
    bad = np.array([False, True, False, True, False])
    with np.errstate(invalid="ignore"):
        expected = expected_results(x, dy, weight, bias)
    for array, wanted in zip(found[:4], expected[:4], strict=True):
        assert not np.isfinite(array[bad]).any() or array.ndim == 1
        np.testing.assert_allclose(array[~bad], wanted[~bad], rtol=2e-5, atol=4e-6)
    assert np.isnan(found[4]).all()
    assert np.isfinite(found[5]).all()


def test_parity_of_blocks_that_take_several_rows(cuda_device, monkeypatch):
    monkeypatch.setattr(module, "_MOST_PARTIALS", 2)
    for shape in ((700, 3), (23, 300), (41, 96), (7, 1100), (5, 5000), (5, 34_000)):
        given = inputs_of(shape, "float32")
        assert_close(forward_and_gradients(cuda_device, *given), expected_results(*given), "float32")


@needs_compiler
@pytest.mark.parametrize("shape", [(40, 10), (11, 1000), (3, 33_000)])
def test_results_are_the_same_bits_in_every_order(shape):
    given = inputs_of(shape, "float32")
    results = set()
    for seed in (None, None, 1, 2):
        with installed(HostLauncher(seed=seed)):
            y, mean, rstd = layer_norm(given[0], *given[2:], EPS)
            grads = layer_norm_grad(given[1], given[0], given[2], mean, rstd)
        results.add(b"".join(a.tobytes() for a in (y, mean, rstd, *grads)))
    assert len(results) == 1


@pytest.mark.parametrize(
    "size, variant, threads",
    [
        (1, "rows<float, 8>", 1),
        (100, "rows<float, 8>", 16),
        (256, "rows<float, 8>", 32),
        (257, "rows<float, 32>", 32),
        (16384, "rows<float, 32>", 512),
        (16385, "rows<float, 64>", 288),
        (32768, "rows<float, 64>", 512),
        (32769, "long_rows<float>", 512),
    ],
)
def test_variants_by_the_size(size, variant, threads):
    kernel, chosen = module._choice("float", size)
    assert (kernel.name, chosen) == (f"layer_norm_{variant}", threads)
    assert kernel in module.VARIANTS


@pytest.mark.parametrize(
    "size, variant, threads",
    [
        (64, "grad_rows<float, 8>", 8),
        (768, "grad_rows<float, 8>", 96),
        (2048, "grad_rows<float, 8>", 256),
        (2049, "grad_rows<float, 16>", 160),
        (8192, "grad_rows<float, 16>", 512),
        (8193, "grad_long_rows<float>", 512),
    ],
)
def test_variants_of_the_gradient_by_the_size(size, variant, threads):
    kernel, chosen = module._grad_choice("float", size)
    assert (kernel.name, chosen) == (f"layer_norm_{variant}", threads)
    assert kernel in module.VARIANTS


def test_too_many_columns_are_an_error():
    x = np.broadcast_to(np.float32(0), (0, 2**30 + 1))
    with (
        installed(HostLauncher()),
        pytest.raises(ValueError, match="layer_norm: on CUDA there may be 1073741824 columns"),
    ):
        layer_norm(x)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="needs memory that is not touched")
def test_ends_of_more_than_2_31_elements():
    """The first and the last rows of more than 2^31 elements, forward; the others are never touched."""
    rows, size = 2**21 + 3, 1025
    x = np.empty((rows, size), np.float16)
    ends = [slice(0, 4), slice(rows - 4, rows)]
    rng = np.random.default_rng(0)
    for end in ends:
        x[end] = rng.standard_normal((4, size))
    with installed(HostLauncher(ends_only=2)):
        y, mean, rstd = layer_norm(x, None, None, EPS)
    for end in ends:
        known = slice(end.start, end.start + 2) if end.start == 0 else slice(end.stop - 2, end.stop)
        expected = normalized(x[known], None, None, EPS)
        np.testing.assert_allclose(y[known].astype(np.float64), expected[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(mean[known], expected[1], atol=1e-6)
        np.testing.assert_allclose(rstd[known], expected[2], rtol=1e-5)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    result = run_under_sanitizers(__file__, "-k", "parity and not float64 and (not float16 or 5x768)")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
