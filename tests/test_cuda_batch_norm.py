"""The CUDA batch normalisation against its definition in float64, the NumPy kernel and itself."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from batch_norm_cases import EPS, Inputs, assert_near, by_definition, inputs

from adjoint.kernels import cpu
from cuda_on_host import HostLauncher, device_fixture, installed, needs_compiler, run_under_sanitizers, sanitizing

module = importlib.import_module("adjoint.kernels.cuda.batch_norm")

cuda_device = device_fixture()

ALL = ("float32", "float64", "float16", "bfloat16")
FUSED = {"plain": {}, "relu": {"relu": True}, "residual": {"residual": True}, "both": {"residual": True, "relu": True}}
# Lanes along channels (runs of 1, 3 and 16, one and several groups, rows and parts of them), blocks with a part of a
# channel (vectors, half vectors of a half type, single elements), and a channel in the registers of a block.
SHAPES = {
    (4, 3): ("float32",),
    (37, 70): ALL,
    (400, 5, 3): ("float32", "bfloat16"),
    (3, 40, 4, 4): ("float32", "float16"),
    (5, 3, 40, 24): ALL,
    (5, 3, 43, 20): ("float16",),
    (3, 4, 37, 39): ("float32", "bfloat16"),
    (3, 70, 8, 8): ALL,
    (3, 66, 7, 7): ALL,
    (2, 65, 20): ("float16",),
    (1, 2, 30): ("float32",),
    (2, 3, 2, 3, 4): ("float32",),
}
PARITY = [
    pytest.param(shape, dtype, extra, id=f"{'x'.join(map(str, shape))}-{dtype}-{name}")
    for shape, dtypes in SHAPES.items()
    for dtype in dtypes
    for name, extra in FUSED.items()
    if name in ("plain", "both") or dtype == "float32"
]


def on(device, of: Inputs, inference=False, needs=(True, True), **settings):
    """What the kernels return: the result's three arrays and the four gradients, as NumPy arrays."""

    def put(array):
        return None if array is None else device.put(array)

    x, dy, weight, bias, residual = map(put, (of.x, of.dy, of.weight, of.bias, of.residual))
    if inference:
        found = module.batch_norm_inference(x, *map(put, of.running), weight, bias, EPS, residual, of.relu)
    else:
        found = module.batch_norm(x, weight, bias, EPS, residual, of.relu, **settings)
    y = found[0] if of.relu else None
    grads = module.batch_norm_grad(dy, x, weight, bias, *found[1:], y, residual is not None, inference, needs)
    return [None if array is None else device.get(array) for array in (*found, *grads)]


def check(device, of: Inputs, inference=False, factor=1.0):
    dtype, vectors = str(of.x.dtype), str((of.x if of.weight is None else of.weight).dtype)
    statistics = "float64" if dtype == "float64" else "float32"
    y, mean, inverse_std, dx, dweight, dbias, gated = on(device, of, inference)
    wanted = by_definition(of, inference, y)
    assert y.dtype == dx.dtype == of.x.dtype and dweight.dtype == dbias.dtype == vectors
    assert mean.dtype == inverse_std.dtype == statistics
    assert_near(y, wanted[0], dtype, factor)
    assert_near(mean, wanted[1], statistics, scale=(abs(wanted[1]) + 1 / wanted[2]).max())
    assert_near(inverse_std, wanted[2], statistics, factor)
    assert_near(dx, wanted[4], dtype, 4 * factor)
    assert_near(dweight, wanted[5], vectors, 4 * factor)
    assert_near(dbias, wanted[6], vectors, 4 * factor)
    if of.relu and of.residual is not None:
        np.testing.assert_array_equal(gated.astype(np.float64), wanted[7])
    else:
        assert gated is None


@pytest.mark.parametrize("shape, dtype, extra", PARITY)
def test_parity(cuda_device, shape, dtype, extra):
    of = inputs(shape, dtype, **extra)
    before = of.x.copy(), of.dy.copy()
    check(cuda_device, of)
    check(cuda_device, of, inference=True)
    y, *_ = on(cuda_device, of)
    on_cpu, *_ = cpu.batch_norm(of.x, of.weight, of.bias, EPS, of.residual, of.relu)
    assert_near(y, on_cpu.astype(np.float64), dtype, 2)
    np.testing.assert_array_equal(of.x, before[0])
    np.testing.assert_array_equal(of.dy, before[1])


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape, words", [((11, 2, 20, 41), 32), ((5, 2, 31, 41), 16), ((2, 2, 20, 24), 16)], ids=str)
def test_large_channels_in_registers(cuda_device, monkeypatch, dtype, shape, words):
    monkeypatch.setattr(module, "_MANY_CHANNELS", 1)
    of = inputs(shape, dtype, relu=True, residual=True)
    if dtype == "float32":
        assert module._Cut(of.x).resident(module._KEPT_WORDS) == words
    check(cuda_device, of)


def test_without_weight_and_bias(cuda_device):
    for shape in ((9, 5), (3, 4, 37, 39), (3, 70, 7)):
        check(cuda_device, inputs(shape, "float32", relu=True, affine=False))


@pytest.mark.parametrize("shape", [(33, 6), (2, 3, 50, 50), (3, 66, 20)], ids=str)
def test_float32_vectors_beside_halves(cuda_device, shape):
    for dtype in ("float16", "bfloat16"):
        check(cuda_device, inputs(shape, dtype, relu=True, residual=True, vectors="float32"))
        check(cuda_device, inputs(shape, dtype, vectors="float32"), inference=True)


@pytest.mark.parametrize("shape", [(60, 5), (2, 3, 60, 50), (3, 66, 10, 10)], ids=str)
def test_a_mean_far_above_the_deviation_costs_no_digits(cuda_device, shape):
    of = inputs(shape, "float32", affine=False, offset=1e4)
    y, mean, inverse_std, *_ = on(cuda_device, of)
    wanted = by_definition(of)
    np.testing.assert_allclose(mean, wanted[1], rtol=2e-7)
    np.testing.assert_allclose(inverse_std, wanted[2], rtol=3e-6)
    np.testing.assert_allclose(y, wanted[0], atol=1.5e-3)  # what the rounding of the mean leaves


@pytest.mark.parametrize("shape", [(37, 6), (2, 3, 50, 50), (3, 66, 20)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_misaligned_and_strided(cuda_device, shape, dtype):
    of = inputs(shape, dtype, relu=True, residual=True)
    wanted = on(cuda_device, of)

    def misaligned(array):
        flat = np.empty(array.size + 1, array.dtype)
        flat[1:] = array.ravel()
        return flat[1:].reshape(array.shape)

    def backwards(array):
        return np.ascontiguousarray(array[::-1])[::-1]

    for change in (misaligned, backwards):
        images = {name: change(getattr(of, name)) for name in ("x", "dy", "residual")}
        found = on(cuda_device, Inputs(**{**vars(of), **images, "weight": backwards(of.weight)}))
        factor = 4 if change is misaligned else 1  # single elements are added in another order than vectors
        for array, expected in zip(found, wanted, strict=True):
            assert_near(array, expected.astype(np.float64), dtype, factor)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 40), (2, 0, 3), (2, 3, 0)], ids=str)
def test_empty(cuda_device, shape):
    of = inputs(shape, "float32", relu=True, residual=True)
    running = [cuda_device.put(vector.copy()) for vector in of.running]
    count = cuda_device.put(np.array(4, np.int64))
    settings = {"running_mean": running[0], "running_var": running[1], "num_batches_tracked": count}
    y, _, _, dx, dweight, dbias, gated = on(cuda_device, of, **settings)
    assert y.shape == dx.shape == gated.shape == shape
    assert dweight.shape == shape[1:2] and not dweight.any() and not dbias.any()
    for vector, old in zip(running, of.running, strict=True):
        np.testing.assert_array_equal(cuda_device.get(vector), old)
    assert int(cuda_device.get(count)) == (5 if shape[1] else 4)


@pytest.mark.parametrize("shape", [(37, 6), (30, 6, 3), (2, 3, 60, 50), (3, 66, 20)], ids=str)
@pytest.mark.parametrize("dtype, vectors", [("float32",) * 2, ("float16", "float32"), ("bfloat16",) * 2])
@pytest.mark.parametrize("momentum", [0.25, None])
def test_running_statistics(cuda_device, shape, dtype, vectors, momentum):
    of = inputs(shape, dtype, vectors=vectors)
    mean, var = (cuda_device.put(np.repeat(vector, 2))[::2] for vector in of.running)
    count = cuda_device.put(np.array(3, np.int64))
    on(cuda_device, of, running_mean=mean, running_var=var, momentum=momentum, num_batches_tracked=count)
    assert int(cuda_device.get(count)) == 4
    wanted, elements = by_definition(of), of.x.size // shape[1]
    for vector, old, new in zip(
        (mean, var), of.running, (wanted[1], wanted[3] * elements / (elements - 1)), strict=True
    ):
        assert_near(cuda_device.get(vector), old.astype(np.float64) * 0.75 + new * 0.25, vectors)


def test_not_a_number_and_infinity(cuda_device):
    of = inputs((3, 66, 20), "float32", relu=True, residual=True)
    of.residual[0, 0, :2] = np.nan, -np.inf
    of.dy[0, 0, 1] = np.inf
    of.x[0, 1, 3] = np.nan
    y, _, _, dx, _, _, gated = on(cuda_device, of)
    assert np.isnan(y[0, 0, 0]) and y[0, 0, 1] == 0
    assert gated[0, 0, 0] == of.dy[0, 0, 0] and gated[0, 0, 1] == 0
    assert np.isnan(y[:, 1]).all() and np.isfinite(np.delete(dx, 1, axis=1)).all()


@pytest.mark.parametrize("shape", [(37, 6), (2, 3, 50, 50), (3, 66, 20)], ids=str)
@pytest.mark.parametrize("inference", [False, True])
def test_only_what_is_needed(cuda_device, shape, inference):
    of = inputs(shape, "float32", relu=True, residual=True)
    everything = on(cuda_device, of, inference)[3:]
    for needs in ((True, False), (False, True), (False, False)):
        found = on(cuda_device, of, inference, needs)[3:]
        for there, grad, wanted in zip((needs[0], needs[1], needs[1], True), found, everything, strict=True):
            assert (grad is not None) == there
            if there:
                assert_near(grad, wanted.astype(np.float64), "float32", 4)


@needs_compiler
@pytest.mark.parametrize("shape", [(900, 6), (2, 3, 60, 50), (3, 66, 20)], ids=str)
def test_results_are_the_same_bits_in_every_order(shape):
    of = inputs(shape, "float32", relu=True, residual=True)
    results = set()
    for seed in (None, 1, 2):
        with installed(HostLauncher(seed=seed)):
            y, mean, inverse_std = module.batch_norm(of.x, of.weight, of.bias, EPS, of.residual, True)
            grads = module.batch_norm_grad(of.dy, of.x, of.weight, of.bias, mean, inverse_std, y, True)
        results.add(b"".join(array.tobytes() for array in (y, mean, inverse_std, *grads)))
    assert len(results) == 1


@needs_compiler
@pytest.mark.parametrize("shape, resident", [((37, 6), False), ((8, 2, 40, 40), False), ((4, 64, 7, 7), True)], ids=str)
def test_launches(shape, resident):
    of = inputs(shape, "float32")
    launcher = HostLauncher()
    with installed(launcher):
        _, mean, inverse_std = module.batch_norm(of.x, of.weight, of.bias)
        module.batch_norm_grad(of.dy, of.x, of.weight, of.bias, mean, inverse_std)
    wanted = ["resident", "grad_resident"] if resident else ["statistics", "apply", "grad_sums", "grad_apply"]
    assert [kernel.name.split("<")[0].removeprefix("batch_norm_") for kernel in launcher.launches] == wanted


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="maps more memory than a sanitizer can watch")
def test_more_than_2_31_elements():
    images, channels, run = 2, 40_000, 30_000
    ends = [0, 1, 2, channels - 3, channels - 2, channels - 1]
    small = inputs((images, len(ends), run), "float16")
    x, dy = (np.empty((images, channels, run), np.float16) for _ in range(2))
    weight, bias = np.ones((2, channels), np.float16)
    x[:, ends], dy[:, ends], weight[ends], bias[ends] = small.x, small.dy, small.weight, small.bias
    with installed(HostLauncher(ends_only=3)):
        y, mean, inverse_std = module.batch_norm(x, weight, bias)
        dx, *_ = module.batch_norm_grad(dy, x, weight, bias, mean, inverse_std)
    wanted = by_definition(small)
    assert_near(y[:, ends], wanted[0], "float16")
    assert_near(dx[:, ends], wanted[4], "float16", 4)


def test_too_many_elements_of_a_run_are_an_error():
    x = np.broadcast_to(np.float32(0), (1, 1, 2**31))
    with pytest.raises(ValueError, match="batch_norm: on CUDA there may be 2147483647 channels"):
        module._Cut(x)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    chosen = "parity and (both or plain) and (float32 or bfloat16) or strided or running or registers and float16"
    result = run_under_sanitizers(__file__, "-k", chosen)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
