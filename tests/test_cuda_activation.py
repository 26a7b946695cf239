"""The CUDA activations against their definitions in float64, the NumPy kernels and each other."""

from __future__ import annotations

from importlib import import_module

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest
from activations import KINDS, SETTINGS, TOLERANCE, assert_close, layouts, numbers, slope, value

from adjoint.kernels import cpu
from adjoint.kernels.cuda import (
    activation,
    activation_input_grad,
    bias_activation,
    bias_activation_grad,
    glu,
    glu_input_grad,
    launch,
    prelu,
    prelu_grad,
)
from adjoint.kernels.geometry.activation import slope_from_output
from cuda_on_host import HostLauncher, device_fixture, installed, needs_compiler, run_under_sanitizers, sanitizing

# The package has functions of the same names.
module = import_module("adjoint.kernels.cuda.activation")
channelwise = import_module("adjoint.kernels.cuda.bias_activation")

cuda_device = device_fixture()

ALL = ("float32", "float64", "float16", "bfloat16")
# One element, a part of a block, a whole one (of any dtype), several and a part: in vectors and in single elements.
SIZES = (1, 7, 300, 2048, 4096, 5000)


def settings(kind):
    return SETTINGS.get(kind, (0.0, 0.0))


def forward_and_backward(device, kind, x, dy):
    a, b = settings(kind)
    given = device.put(x)
    y = activation(given, kind, a, b)
    saved = y if slope_from_output(kind, a) else given
    return device.get(y), device.get(activation_input_grad(device.put(dy), saved, kind, a, b))


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_parity(cuda_device, kind, dtype):
    for size in SIZES if kind in ("relu", "gelu") else SIZES[-1:]:
        x, dy = numbers(kind, (size,), dtype), numbers("", (size,), dtype, seed=1)
        y, dx = forward_and_backward(cuda_device, kind, x, dy)
        assert_close(y, value(kind, x), dtype)
        on_cpu = cpu.activation(x, kind, *settings(kind))
        assert_close(y, on_cpu.astype(np.float64), dtype)
        saved = y if slope_from_output(kind, settings(kind)[0]) else x
        cpu_grad = cpu.activation_input_grad(dy, saved, kind, *settings(kind))
        rtol, atol = TOLERANCE[dtype]
        np.testing.assert_allclose(dx.astype(np.float64), cpu_grad.astype(np.float64), rtol=2 * rtol, atol=2 * atol)
        if x.dtype.itemsize > 2:
            assert_close(dx, dy * slope(kind, x), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["relu", "gelu"])
def test_parity_of_views(cuda_device, kind, dtype):
    """Other strides, and addresses that are no multiple of a vector's size, of either array."""
    x, dy = numbers(kind, (40, 120), dtype), numbers("", (40, 120), dtype, seed=1)
    y, dx = forward_and_backward(cuda_device, kind, x, dy)
    for other_x in layouts(x):
        made = forward_and_backward(cuda_device, kind, other_x, dy)
        np.testing.assert_array_equal(made[0], y)
        np.testing.assert_array_equal(made[1], dx)
    for other_dy in layouts(dy):
        np.testing.assert_array_equal(forward_and_backward(cuda_device, kind, x, other_dy)[1], dx)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_parity_of_empty_and_scalar_arrays(cuda_device, shape):
    x = numbers("relu", shape, "float32")
    y, dx = forward_and_backward(cuda_device, "relu", x, x)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(dx, np.where(x > 0, x, 0))
    assert y.shape == dx.shape == shape


SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3.0, -3.0, 0.375, -0.375, 0.25, -0.75, 1.25, 6.0, 90, -90])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_parity_of_special_values(cuda_device, kind, dtype):
    """NaN, infinity, the kinks: as on the CPU, where they are compared with PyTorch."""
    x, dy = SPECIAL.astype(dtype), np.full(SPECIAL.shape, 2, dtype)
    y, dx = forward_and_backward(cuda_device, kind, x, dy)
    on_cpu = cpu.activation(x, kind, *settings(kind))
    np.testing.assert_allclose(y, on_cpu, rtol=1e-5, atol=1e-6)
    saved = on_cpu if slope_from_output(kind, settings(kind)[0]) else x
    grad_on_cpu = cpu.activation_input_grad(dy, saved, kind, *settings(kind))
    finite = np.isfinite(x)
    np.testing.assert_allclose(dx[finite], grad_on_cpu[finite], rtol=1e-5, atol=1e-6)
    assert np.isnan(y[0])
    if not slope_from_output(kind, settings(kind)[0]) and kind in ("elu", "softshrink", "hardshrink", "threshold"):
        assert dx[0] == 2  # as PyTorch passes it on


def along(vector, dim, ndim):
    return vector.reshape(-1, *(1,) * (ndim - 1 - dim))


# Channels last, in vectors and not, of one warp's columns and of more; planes likewise, short, long, of odd length; one
# number for all.
CHANNELWISE = [
    ((70, 8), 1), ((33, 5), 1), ((9, 300), 1), ((5, 1000), 1), ((300, 2), 1), ((17,), 0),
    ((3, 5, 4, 4), 1), ((3, 5, 7, 7), 1), ((2, 3, 40, 52), 1), ((5, 3, 33), 1), ((6, 4, 3), 0),
    ((40, 1, 33), 1), ((3000, 1), 1),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("shape", "dim"), CHANNELWISE)
def test_parity_of_bias_activation(cuda_device, shape, dim, dtype):
    put, get = cuda_device.put, cuda_device.get
    x, dy, bias = numbers("", shape, dtype), numbers("", shape, dtype, 1), numbers("", (shape[dim],), dtype, 2)
    z = x.astype(np.float64) + along(bias.astype(np.float64), dim, x.ndim)
    for kind in ("relu", "silu"):
        y = bias_activation(put(x), put(bias), kind, dim)
        assert_close(get(y), value(kind, z), dtype)
        saved, used = (y, None) if kind == "relu" else (put(x), put(bias))
        dx, db = bias_activation_grad(put(dy), saved, used, kind, dim)
        expected = cpu.bias_activation_grad(dy, get(saved), None if used is None else bias, kind, dim)
        rtol, atol = TOLERANCE[dtype]
        for mine, other in zip((dx, db), expected, strict=True):
            assert get(mine).dtype == other.dtype
            mine, other = get(mine).astype(np.float64), other.astype(np.float64)
            scale = max(1.0, np.abs(other).max())
            np.testing.assert_allclose(mine, other, rtol=2 * rtol, atol=atol * scale)
        only, nothing = bias_activation_grad(put(dy), saved, used, kind, dim, with_bias_grad=False)
        assert nothing is None
        np.testing.assert_array_equal(get(only), get(dx))


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("shape", "dim"), [case for case in CHANNELWISE if case[1] == 1])
def test_parity_of_prelu(cuda_device, shape, dim, dtype):
    put, get = cuda_device.put, cuda_device.get
    x, dy = numbers("relu", shape, dtype), numbers("", shape, dtype, 1)
    wide, up = x.astype(np.float64), dy.astype(np.float64)
    for size in {1, shape[1]}:
        weight = numbers("", (size,), dtype, 2)
        w = along(weight.astype(np.float64), 1, x.ndim) if size > 1 else weight.astype(np.float64)
        assert_close(get(prelu(put(x), put(weight))), np.where(wide > 0, wide, w * wide), dtype)
        dx, dw = prelu_grad(put(dy), put(x), put(weight))
        assert_close(get(dx), np.where(wide > 0, up, w * up), dtype)
        below = np.where(wide > 0, 0, wide * up)
        axes = tuple(i for i in range(x.ndim) if i != 1 or size == 1)
        wanted = below.sum(axis=axes).reshape(size)
        scale = np.abs(below).sum() ** 0.5
        np.testing.assert_allclose(get(dw).astype(np.float64), wanted, rtol=TOLERANCE[dtype][0], atol=1e-5 * scale)


def test_parity_of_channelwise_views(cuda_device):
    put, get = cuda_device.put, cuda_device.get
    for shape in ((24, 16), (3, 8, 4, 8)):
        x, dy, bias = (numbers("", s, "float32", i) for i, s in enumerate((shape, shape, shape[1:2])))
        y = get(bias_activation(put(x), put(bias), "gelu", 1))
        dx, db = map(get, bias_activation_grad(put(dy), put(x), put(bias), "gelu", 1))
        for other_x, other_dy, other_bias in zip(layouts(x), layouts(dy), layouts(bias), strict=True):
            np.testing.assert_array_equal(get(bias_activation(put(other_x), put(other_bias), "gelu", 1)), y)
            found = bias_activation_grad(put(other_dy), put(other_x), put(other_bias), "gelu", 1)
            np.testing.assert_array_equal(get(found[0]), dx)
            np.testing.assert_allclose(get(found[1]), db, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "dim"), [((0, 4), 1), ((3, 0, 2), 1), ((3, 4, 0), 1), ((0, 4, 3), 1), ((0,), 0)])
def test_parity_of_empty_channelwise_arrays(cuda_device, shape, dim):
    put, get = cuda_device.put, cuda_device.get
    x, bias = put(np.zeros(shape, np.float32)), put(np.ones(shape[dim], np.float32))
    assert get(bias_activation(x, bias, "relu", dim)).shape == shape
    dx, db = bias_activation_grad(x, x, None, "relu", dim)
    assert get(dx).shape == shape
    np.testing.assert_array_equal(get(db), np.zeros(shape[dim]))


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((6, 10), 1), ((4, 6, 8), 1), ((30, 64), 1), ((2, 3, 9000), 2), ((2, 5002), 1), ((8, 3), 0), ((3, 0), 1)],
)
def test_parity_of_glu(cuda_device, shape, dim, dtype):
    put, get = cuda_device.put, cuda_device.get
    x = numbers("", shape, dtype)
    first, gate = np.split(x.astype(np.float64), 2, axis=dim)
    s = 1 / (1 + np.exp(-gate))
    y = get(glu(put(x), dim))
    assert_close(y, first * s, dtype)
    dy = numbers("", y.shape, dtype, seed=1)
    up = dy.astype(np.float64)
    expected = np.concatenate([up * s, up * first * s * (1 - s)], dim)
    assert_close(get(glu_input_grad(put(dy), put(x), dim)), expected, dtype)
    if x.size:
        for other in layouts(x):
            np.testing.assert_array_equal(get(glu(put(other), dim)), y)
            assert_close(get(glu_input_grad(put(dy), put(other), dim)), expected, dtype)


@needs_compiler
def test_results_are_the_same_bits_in_every_order():
    for shape in ((300, 40), (30, 4, 9, 11)):
        x, dy, bias = (numbers("", s, "float32", i) for i, s in enumerate((shape, shape, shape[1:2])))
        results = set()
        for seed in (None, 1, 2):
            with installed(HostLauncher(seed=seed)):
                dx, db = bias_activation_grad(dy, x, bias, "silu", 1)
                _, dw = prelu_grad(dy, x, bias)
            results.add(dx.tobytes() + db.tobytes() + dw.tobytes())
        assert len(results) == 1


@needs_compiler
def test_blocks_share_a_channels_sum(monkeypatch):
    """Many parts, which the second launch adds up in several rounds."""
    monkeypatch.setattr(channelwise, "_LEAST_WORK", 1)
    for shape in ((2000, 3), (60, 2, 8, 12), (9000, 1)):
        x, dy = numbers("relu", shape, "float64"), numbers("", shape, "float64", 1)
        with installed(HostLauncher()) as _:
            _, db = bias_activation_grad(dy, x, None, "relu", 1)
        wanted = np.where(x > 0, dy, 0).sum(axis=tuple(i for i in range(x.ndim) if i != 1))
        np.testing.assert_allclose(db, wanted, rtol=1e-12)


@needs_compiler
def test_more_than_2_31_elements():
    """Only the first and the last blocks run; the memory between them is never touched."""
    size = 2**31 + 5000
    x, dy = np.empty(size, np.float16), np.empty(size, np.float16)
    ends = (slice(0, 4096), slice(size - 4096, size))
    for end in ends:
        x[end], dy[end] = numbers("relu", (4096,), "float16"), numbers("", (4096,), "float16", 1)
    with installed(HostLauncher(ends_only=2)):
        y = activation(x, "relu")
        dx = activation_input_grad(dy, x, "silu")
        z = bias_activation(x.reshape(-1, 8), np.arange(8).astype(np.float16), "relu", 1).reshape(-1)
        pairs = glu(x.reshape(-1, 4), 1).reshape(-1)
    silu = cpu.activation_input_grad
    for end in (slice(0, 2048), slice(size - 2048, size)):
        np.testing.assert_array_equal(y[end], np.maximum(x[end], 0))
        np.testing.assert_allclose(dx[end], silu(dy[end], x[end], "silu"), rtol=2e-3, atol=1e-4)
        added = x[end].reshape(-1, 8).astype(np.float32) + np.arange(8, dtype=np.float32)
        np.testing.assert_allclose(z[end], np.maximum(added, 0).reshape(-1), rtol=1e-3)
    for end, half in zip(ends, (slice(0, 2048), slice(size // 2 - 2048, size // 2)), strict=True):
        np.testing.assert_allclose(pairs[half], cpu.glu(x[end].reshape(-1, 4), 1).reshape(-1), rtol=2e-3, atol=1e-4)


def test_too_many_channels_are_an_error():
    x = np.broadcast_to(np.float32(0), (1, 2**30 + 1))
    with pytest.raises(ValueError, match=r"^bias_activation: on CUDA there may be 1073741824 channels"):
        channelwise._checked((1, *x.shape[1:], 2))


def test_every_variant_is_listed():
    for listed in (module, channelwise):
        assert len(set(listed.VARIANTS)) == len(listed.VARIANTS) == 16
    assert len(launch.FLOAT_TYPES) == 4


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="runs itself")
def test_under_sanitizers():
    chosen = "parity and float32 and not special or parity_of_empty or parity_of_channelwise or glu and float16"
    result = run_under_sanitizers(__file__, "-k", chosen)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
