"""The CUDA softmax-cross-entropy against its definition in float64, the NumPy kernel and PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest

from adjoint.kernels import cpu
from adjoint.kernels.cuda import softmax_cross_entropy, softmax_cross_entropy_scale
from cuda_on_host import (
    HostLauncher,
    device_fixture,
    installed,
    needs_compiler,
    run_under_sanitizers,
    sanitizing,
)

# The package has a function of the same name.
module = import_module("adjoint.kernels.cuda.softmax_cross_entropy")
rows = import_module("adjoint.kernels.cuda.rows")

cuda_device = device_fixture()

ALL = ("float32", "float64", "float16", "bfloat16")
# (relative, absolute)
TOLERANCE = {
    "float32": (4e-6, 2e-6),
    "float64": (1e-13, 1e-14),
    "float16": (1e-3, 2e-6),
    "bfloat16": (8e-3, 2e-6),
}
REDUCTIONS = ("none", "sum", "mean")


@dataclass(frozen=True)
class Setting:
    name: str
    probabilities: bool = False
    weight: bool = False
    smoothing: float = 0.0
    ignored: bool = False


SETTINGS = [
    Setting("plain"),
    Setting("weight", weight=True),
    Setting("ignored", ignored=True),
    Setting("smoothing", smoothing=0.1),
    Setting("all", weight=True, smoothing=0.3, ignored=True),
    Setting("smoothing 1", weight=True, smoothing=1.0),
    Setting("probabilities", probabilities=True),
    Setting("all, probabilities", probabilities=True, weight=True, smoothing=0.2),
]
# One to 32 threads a row, several warps, more logits a thread, rows read twice; aligned rows and others.
SHAPES = {
    (7, 10): ALL,
    (2, 1): ("float32",),
    (40, 3): ("float32", "bfloat16"),
    (9, 64): ALL,
    (5, 249): ("float32", "float16"),
    (5, 250): ("float32", "float16"),
    (4, 1000): ALL,
    (5, 1022): ("float32",),
    (3, 4097): ALL,
    (2, 9000): ("float64",),
    (2, 20000): ("float32", "float16", "bfloat16"),
    (2, 33001): ALL,
    (1, 262_147): ("float32", "bfloat16"),
}
PARITY = [
    pytest.param(shape, dtype, setting, id=f"{shape[0]}x{shape[1]}-{dtype}-{setting.name}")
    for shape, dtypes in SHAPES.items()
    for dtype in dtypes
    for setting in SETTINGS
    if shape[1] < 1000 or setting.name in ("plain", "all", "all, probabilities")
]


@dataclass
class Inputs:
    logits: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None
    ignore_index: int
    smoothing: float

    def on(self, device, reduction="none", with_grad=True):
        """Loss and gradient from `device`, as NumPy arrays."""
        weight = None if self.weight is None else device.put(self.weight)
        loss, grad = softmax_cross_entropy(
            device.put(self.logits),
            device.put(self.target),
            weight,
            self.ignore_index,
            self.smoothing,
            reduction,
            with_grad,
        )
        return device.get(loss), None if grad is None else device.get(grad)

    def args(self, reduction):
        return self.logits, self.target, self.weight, self.ignore_index, self.smoothing, reduction, True


def inputs_of(shape, dtype, setting, seed=0):
    rng = np.random.default_rng(seed)
    n, classes = shape
    logits = (4 * rng.standard_normal(shape)).astype(dtype)
    weight = rng.uniform(0.5, 2, classes).astype(dtype) if setting.weight else None
    if setting.probabilities:
        target = rng.dirichlet(np.ones(classes), n).astype(dtype)
        return Inputs(logits, target, weight, -100, setting.smoothing)
    target = rng.integers(0, classes, n)
    ignore_index = classes // 2 if setting.ignored else -100
    if setting.ignored:
        target[1::3] = ignore_index
    return Inputs(logits, target, weight, ignore_index, setting.smoothing)


def by_definition(given, reduction):
    """Loss and gradient in float64, from -sum a_c log p_c."""
    x = given.logits.astype(np.float64)
    n, classes = x.shape
    weight = np.ones(classes) if given.weight is None else given.weight.astype(np.float64)
    with np.errstate(all="ignore"):
        most = x.max(axis=1, keepdims=True)
        log_p = x - most - np.log(np.exp(x - most).sum(axis=1, keepdims=True))
        if given.target.ndim == 2:
            t = given.target.astype(np.float64)
            a = weight * (t * (1 - given.smoothing) + given.smoothing / classes)
            loss = -(a * log_p).sum(axis=1)
            keep, denominator = np.ones(n, bool), n
        else:
            keep = given.target != given.ignore_index
            rows, index = np.arange(n), np.where(keep, given.target, 0)
            a = np.zeros(x.shape)
            loss = np.zeros(n)
            if given.smoothing:
                a += given.smoothing / classes * weight
                loss -= (a * log_p).sum(axis=1)
            a[rows, index] += (1 - given.smoothing) * weight[index]
            loss -= (1 - given.smoothing) * weight[index] * log_p[rows, index]
            denominator = weight[index][keep].sum()
        grad = np.exp(log_p) * a.sum(axis=1, keepdims=True) - a
        if reduction == "mean":
            grad /= denominator
        loss, grad = np.where(keep, loss, 0), np.where(keep[:, None], grad, 0)
        if reduction == "none":
            return loss, grad
        return loss.sum() / (denominator if reduction == "mean" else 1), grad


def assert_close(actual, expected, dtype):
    rtol, atol = TOLERANCE[dtype]
    assert actual.dtype == np.dtype(dtype)
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape, dtype, setting", PARITY)
def test_parity(cuda_device, shape, dtype, setting):
    given = inputs_of(shape, dtype, setting)
    before = given.logits.copy()
    for reduction in REDUCTIONS:
        loss, grad = given.on(cuda_device, reduction)
        for actual, expected in zip((loss, grad), by_definition(given, reduction), strict=True):
            assert_close(actual, expected, dtype)
        for actual, on_cpu in zip((loss, grad), cpu.softmax_cross_entropy(*given.args(reduction)), strict=True):
            rtol, atol = TOLERANCE[dtype]
            np.testing.assert_allclose(
                actual.astype(np.float64), on_cpu.astype(np.float64), rtol=4 * rtol, atol=4 * atol
            )
    only_loss, no_grad = given.on(cuda_device, "mean", with_grad=False)
    assert no_grad is None
    np.testing.assert_array_equal(only_loss, loss)
    np.testing.assert_array_equal(given.logits, before)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_parity_with_pytorch(cuda_device, setting, reduction):
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    given = inputs_of((9, 13), "float64", setting)
    logits = torch.tensor(given.logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        logits,
        torch.tensor(given.target),
        None if given.weight is None else torch.tensor(given.weight),
        ignore_index=given.ignore_index,
        label_smoothing=given.smoothing,
        reduction=reduction,
    )
    expected.sum().backward()
    loss, grad = given.on(cuda_device, reduction)
    assert_close(loss, expected.detach().numpy(), "float64")
    assert_close(grad, logits.grad.numpy(), "float64")


EXTREMES = {
    "large": [1e4, -1e4, 1e4, 0.0, -1e4, 9999.0],
    "equal": [1e4, 1e4, 1e4, 1e4, 1e4, 1e4],
    "minus infinity": [-np.inf, 2.0, -np.inf, 1.0, -np.inf, 0.0],
    "minus infinity, low": [-np.inf, -9000.0, -np.inf, -9001.0, -np.inf, -9000.0],
    "only minus infinity": [-np.inf] * 6,
    "infinity": [np.inf, 1.0, 2.0, 3.0, 4.0, 5.0],
    "nan": [1.0, np.nan, 2.0, 3.0, 4.0, 5.0],
}


@pytest.mark.parametrize("classes", [6, 900, 40_000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["plain", "smoothing", "probabilities"])
def test_parity_of_extreme_logits(cuda_device, name, dtype, classes):
    """One kind a row, at its end, so that only some of its threads see it. NaN must not leave its row."""
    setting = next(setting for setting in SETTINGS if setting.name == name)
    given = inputs_of((2 * len(EXTREMES), classes), dtype, setting)
    for row, values in enumerate([*EXTREMES.values()] * 2):
        given.logits[row] = -np.inf if np.isneginf(values[0]) else -1e4
        given.logits[row, -6:] = values
        if not setting.probabilities:
            given.target[row] = classes - 6 + (1 if row < len(EXTREMES) else 2)
    loss, grad = given.on(cuda_device)
    expected_loss, expected_grad = by_definition(given, "none")
    rtol, atol = TOLERANCE[dtype]
    np.testing.assert_allclose(loss.astype(np.float64), expected_loss, rtol=2 * rtol, atol=atol)
    np.testing.assert_allclose(grad.astype(np.float64), expected_grad, rtol=rtol, atol=atol)
    assert np.isfinite(expected_loss).any()


@pytest.mark.parametrize("classes", [5, 700, 34_000])
@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[4]], ids=lambda setting: setting.name)
def test_parity_of_an_index_out_of_range(cuda_device, setting, classes):
    setting = replace(setting, ignored=False)
    right = inputs_of((9, classes), "float32", setting)
    wrong = replace(right, target=right.target.copy())
    wrong.target[[0, 3, 4, 8]] = (-1, classes, 2**40 + 1, -(2**33))
    bad = np.isin(np.arange(9), (0, 3, 4, 8))
    expected = by_definition(right, "none")
    loss, grad = wrong.on(cuda_device)
    assert np.isnan(loss[bad]).all()
    assert np.isnan(grad[bad]).all()
    assert_close(loss[~bad], expected[0][~bad], "float32")
    assert_close(grad[~bad], expected[1][~bad], "float32")
    loss, grad = wrong.on(cuda_device, "mean")
    assert np.isnan(loss)
    assert np.isnan(grad[bad]).all()
    assert np.isfinite(grad[~bad]).all()


@pytest.mark.parametrize("setting", SETTINGS[:5], ids=lambda setting: setting.name)
def test_parity_where_all_rows_are_ignored(cuda_device, setting):
    given = inputs_of((6, 7), "float32", setting)
    given.target[:] = given.ignore_index
    given.logits[2] = np.nan
    for reduction, expected in zip(REDUCTIONS, (np.zeros(6), 0.0, np.nan), strict=True):
        loss, grad = given.on(cuda_device, reduction)
        np.testing.assert_array_equal(loss, expected)
        np.testing.assert_array_equal(grad, np.zeros((6, 7)))


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[6]], ids=lambda setting: setting.name)
def test_parity_of_no_rows(cuda_device, setting):
    given = inputs_of((0, 7), "float32", setting)
    for reduction, expected in zip(REDUCTIONS, (np.zeros(0), 0.0, np.nan), strict=True):
        loss, grad = given.on(cuda_device, reduction)
        np.testing.assert_array_equal(loss, expected)
        assert loss.shape == np.shape(expected)
        assert grad.shape == (0, 7)


@pytest.mark.parametrize("dtype", ["int32", "int16", "uint8"])
def test_parity_of_targets_of_any_integer_type(cuda_device, dtype):
    given = inputs_of((9, 13), "float32", SETTINGS[0])
    expected = given.on(cuda_device)
    for actual, wanted in zip(replace(given, target=given.target.astype(dtype)).on(cuda_device), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("classes", [12, 1200, 40_000])
@pytest.mark.parametrize("setting", [SETTINGS[1], SETTINGS[7]], ids=lambda setting: setting.name)
def test_parity_of_views(cuda_device, setting, classes):
    """Other strides, and addresses that are no multiple of a vector's size."""
    given = inputs_of((3, classes), "float32", setting)
    expected = by_definition(given, "mean")
    put, get = cuda_device.put, cuda_device.get
    target, weight = put(given.target), put(given.weight)

    def shifted(x, by):
        longer = x.ravel().repeat(2)[: x.size + by]
        longer[by:] = x.ravel()
        return longer[by:].reshape(x.shape)

    for change in (
        lambda x: x.repeat(2, axis=-1)[..., ::2],
        lambda x: x[..., ::-1].copy()[..., ::-1],
        lambda x: x.T.copy().T,
        lambda x: shifted(x, 1),
    ):
        given_target = change(target) if setting.probabilities else target
        loss, grad = softmax_cross_entropy(
            change(put(given.logits)), given_target, change(weight), -100, given.smoothing, "mean", True
        )
        assert_close(get(loss), expected[0], "float32")
        assert_close(get(grad), expected[1], "float32")


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[4], SETTINGS[6]], ids=lambda setting: setting.name)
def test_parity_of_blocks_that_take_several_rows(cuda_device, setting, monkeypatch):
    monkeypatch.setattr(rows, "MOST_BLOCKS", 2)
    monkeypatch.setattr(module, "_MOST_DENOMINATORS", 2)
    for shape in ((2500, 3), (23, 300), (7, 1100), (5, 34_000)):
        given = inputs_of(shape, "float32", setting)
        for actual, expected in zip(given.on(cuda_device, "mean"), by_definition(given, "mean"), strict=True):
            assert_close(actual, expected, "float32")


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("classes", [3, 10, 700, 4097, 20_000, 40_001])
@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[4], SETTINGS[7]], ids=lambda setting: setting.name)
def test_parity_of_the_gradient_in_place(cuda_device, setting, classes, dtype):
    given = inputs_of((5, classes), dtype, setting)
    loss, grad = given.on(cuda_device)
    put = cuda_device.put
    logits = put(given.logits.copy())
    weight = None if given.weight is None else put(given.weight)
    same_loss, same_grad = softmax_cross_entropy(
        logits, put(given.target), weight, given.ignore_index, given.smoothing, "none", True, inplace_grad=True
    )
    assert same_grad is logits
    np.testing.assert_array_equal(cuda_device.get(same_loss), loss)
    np.testing.assert_array_equal(cuda_device.get(logits), grad)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape", [(5, 7), (3, 1100), (600, 2), (3, 1), (0, 4), (4, 0)])
def test_parity_of_scale(cuda_device, shape, dtype):
    rng = np.random.default_rng(0)
    grad = rng.standard_normal(shape).astype(dtype)
    before = grad.copy()
    for upstream in (np.array(-2.5, dtype), np.array(1, dtype), rng.standard_normal(shape[0]).astype(dtype)):
        result = softmax_cross_entropy_scale(cuda_device.put(grad), cuda_device.put(upstream))
        wide = np.float64 if dtype == "float64" else np.float32
        expected = (grad.astype(wide) * upstream.astype(wide).reshape(-1, 1)).astype(dtype)
        np.testing.assert_array_equal(cuda_device.get(result), expected)
        assert result.dtype == grad.dtype
        mine = cuda_device.put(grad.copy())
        assert softmax_cross_entropy_scale(mine, cuda_device.put(upstream), in_place=True) is mine
        np.testing.assert_array_equal(cuda_device.get(mine), expected)
    np.testing.assert_array_equal(grad, before)


@needs_compiler
@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[7]], ids=lambda setting: setting.name)
@pytest.mark.parametrize("classes", [10, 3000, 35_000])
def test_results_are_the_same_bits_in_every_order(setting, classes):
    given = inputs_of((11, classes), "float32", setting)
    results = set()
    for seed in (None, None, 1, 2):
        with installed(HostLauncher(seed=seed)):
            loss, grad = softmax_cross_entropy(*given.args("mean"))
        results.add(loss.tobytes() + grad.tobytes())
    assert len(results) == 1


@needs_compiler
@pytest.mark.parametrize(
    "classes, variant, threads",
    [
        (1, "rows<float, false, 8>", 1),
        (10, "rows<float, false, 8>", 2),
        (253, "rows<float, false, 8>", 32),
        (254, "rows<float, false, 32>", 32),
        (256, "rows<float, false, 8>", 32),
        (1021, "rows<float, false, 32>", 32),
        (1022, "rows<float, false, 32>", 64),
        (16381, "rows<float, false, 32>", 512),
        (16382, "rows<float, false, 64>", 288),
        (32765, "rows<float, false, 64>", 512),
        (32766, "long_rows<float, false>", 512),
        (32768, "rows<float, false, 64>", 512),
    ],
)
def test_variants_by_the_number_of_classes(classes, variant, threads):
    memory = np.zeros(classes + 4, np.float32)
    logits = memory[-memory.ctypes.data % 16 // 4 :][:classes].reshape(1, classes)
    with installed(HostLauncher()):
        kernel, chosen_threads = module._choice(logits, False)
    assert (kernel.name, chosen_threads) == (f"softmax_cross_entropy_{variant}", threads)
    assert kernel in module.VARIANTS


def test_too_many_classes_are_an_error():
    logits = np.broadcast_to(np.float32(0), (1, 2**30 + 1))
    with pytest.raises(
        ValueError, match="softmax_cross_entropy: on CUDA there may be 1073741824 classes, got 1073741825"
    ):
        softmax_cross_entropy(logits, np.zeros(1, np.int64))


@needs_compiler
def test_beyond_2_31_elements(monkeypatch):
    """Only the last row has values, and only its block runs."""
    monkeypatch.setattr(rows, "MOST_BLOCKS", 2**30)
    n, classes = 131_200, 16_384
    logits, target = np.empty((n, classes), np.float16), np.zeros(n, np.int64)
    assert logits.size > 2**31
    last = inputs_of((1, classes), "float16", SETTINGS[0])
    logits[-1], target[-1] = last.logits[0], last.target[0]
    with installed(HostLauncher(ends_only=lambda grid: [(n - 1, 0, 0)])):
        loss, grad = softmax_cross_entropy(logits, target, reduction="none", with_grad=True)
        scaled = softmax_cross_entropy_scale(grad, np.full(n, 2, np.float16))
    expected = by_definition(last, "none")
    assert_close(loss[-1:], expected[0], "float16")
    assert_close(grad[-1:], expected[1], "float16")
    np.testing.assert_array_equal(scaled[-1], 2 * grad[-1])


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    chosen = "parity and not pytorch and not float64 and (not float16 or 7x10-bfloat16 or 3x4097-bfloat16)"
    result = run_under_sanitizers(__file__, "-k", chosen)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
