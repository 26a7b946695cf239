"""The weight gradient on tensor cores: every tile against plain loops in float64, its numerics, parts and memory."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from dataclasses import replace

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest
from naive_conv import Case, naive

from adjoint import kernels
from adjoint.kernels import cuda
from adjoint.kernels.cuda import conv_choice, launch
from adjoint.kernels.cuda.conv_choice import TABLE, WEIGHT_GRAD, Direct, Problem, TensorTile, Tile, only
from adjoint.kernels.cuda.kernel import SOURCE_FOLDER
from adjoint.kernels.precision import set_float32_matmul_precision
from cuda_on_host import HostLauncher, device_fixture, installed, needs_compiler, run_under_sanitizers, sanitizing

cuda_device = device_fixture()
conv_weight_grad = importlib.import_module("adjoint.kernels.cuda.conv_weight_grad")

DTYPES = {"float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16"}
TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
SMALL_TYPES = ("float32", "float16", "bfloat16")
ROWS = [row for row in TABLE if WEIGHT_GRAD in row.operations]
TILES = [
    pytest.param(row.variant, c_type, id=row.variant.kernel(WEIGHT_GRAD, c_type).name)
    for row in ROWS
    for c_type in row.types
    if isinstance(row.variant, TensorTile)
]
OTHERS = [
    pytest.param(row.variant, c_type, id=row.variant.kernel(WEIGHT_GRAD, c_type).name)
    for row in ROWS
    for c_type in row.types
    if isinstance(row.variant, (Tile, Direct))
]
SAME = ((1, 1), (1, 1))


CASES = [
    Case("3 to 5 channels, 7x9", (2, 3, 7, 9), (5, 3, 3, 3), (1, 1), SAME, (1, 1)),
    Case("whole vectors, planes below a step", (5, 9, 4, 2), (10, 9, 3, 3), (1, 1), SAME, (1, 1)),
    Case("several steps", (2, 8, 12, 12), (12, 8, 3, 3), (1, 1), SAME, (1, 1)),
    Case(
        "stride 2 and 3, dilation, all paddings differ", (2, 9, 13, 11), (10, 9, 3, 2), (2, 3), ((2, 0), (1, 3)), (2, 1)
    ),
    Case("stride 2, groups", (2, 32, 8, 10), (36, 16, 3, 3), (2, 2), SAME, (1, 1), 2),
    Case("several tiles", (1, 40, 13, 11), (140, 40, 1, 4), (1, 1), ((0, 0), (0, 1)), (1, 1)),
    Case("more padding than input", (1, 8, 2, 3), (8, 8, 3, 3), (1, 1), ((3, 4), (5, 2)), (1, 1)),
    Case("sequence, causal", (3, 20, 30), (24, 20, 4), (1,), ((6, 0),), (2,)),
    Case("volume, stride 2", (1, 18, 5, 6, 7), (20, 18, 2, 3, 3), (2, 1, 2), ((1, 0), (1, 1), (0, 2)), (1, 2, 1)),
]
# 4608 positions of whole vectors; and of planes that are copied.
LONG = [
    Case("32x32", (5, 8, 32, 32), (16, 8, 3, 3), (1, 1), SAME, (1, 1)),
    Case("31x31", (5, 8, 31, 31), (16, 8, 3, 3), (1, 1), SAME, (1, 1)),
]


def exact(rng, shape, dtype):
    """Small integers over 8, exact in tf32 and in every dtype, so that only the sums are rounded."""
    return (rng.integers(-16, 17, shape) / 8).astype(dtype)


def arrays(case, dtype, make=exact):
    """dy and x, and dw in float64."""
    rng = np.random.default_rng(0)
    x = make(rng, case.x, dtype)
    _, dy, _, dw = naive(x, np.zeros(case.weight), lambda shape: make(rng, shape, dtype), *case.settings)
    return dy, x, dw


def normal(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def assert_close(got, wanted, dtype):
    assert got.dtype == np.dtype(dtype) and got.flags.c_contiguous and got.shape == wanted.shape
    scale = max(np.abs(wanted).max(initial=0), 1)
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.fixture(autouse=True)
def interface(monkeypatch):
    """The public functions run on the host too."""
    monkeypatch.setattr("adjoint.kernels.interface.conv.side", lambda array: cuda)


@pytest.fixture
def many_parts(monkeypatch):
    monkeypatch.setattr(conv_weight_grad, "_LEAST_PART", 64)


def check(cuda_device, case, dtype):
    dy, x, wanted = arrays(case, dtype)
    given = cuda_device.put(dy), cuda_device.put(x)
    got = kernels.conv_weight_grad(*given, case.weight, *case.settings)
    assert_close(cuda_device.get(got), wanted, dtype)
    for array, before in zip(given, (dy, x), strict=True):
        np.testing.assert_array_equal(cuda_device.get(array), before)


@pytest.mark.parametrize("tile, c_type", TILES)
def test_parity(cuda_device, tile, c_type):
    for case in CASES:
        with only(tile):
            check(cuda_device, case, DTYPES[c_type])


@pytest.mark.parametrize("tile, c_type", TILES)
def test_parity_in_parts(cuda_device, many_parts, tile, c_type):
    for case in (CASES[2], CASES[3], CASES[8]):
        with only(tile):
            check(cuda_device, case, DTYPES[c_type])


@pytest.mark.parametrize("variant, c_type", OTHERS)
def test_parity_of_volumes_without_tensor_cores(cuda_device, many_parts, variant, c_type):
    for case in CASES[-2:]:
        with only(variant):
            check(cuda_device, case, DTYPES[c_type])


@pytest.mark.parametrize("dtype", SMALL_TYPES)
def test_parity_of_arrays_that_are_not_contiguous_or_aligned(cuda_device, dtype):
    def shifted(a):
        memory = np.empty(a.size + 1, a.dtype)
        memory[1:] = a.reshape(-1)
        return cuda_device.put(memory)[1:].reshape(a.shape)

    def backwards(a):
        return cuda_device.put(np.ascontiguousarray(a[..., ::-1]))[..., ::-1]

    def channels_behind(a):
        return cuda_device.put(np.ascontiguousarray(np.moveaxis(a, 1, -1))).transpose(0, 3, 1, 2)

    # 16 channels need no padding: channels that are last already need no copy.
    case = Case("", (2, 16, 8, 8), (20, 16, 3, 3), (1, 1), SAME, (1, 1))
    dy, x, wanted = arrays(case, dtype)
    for view in (shifted, backwards, channels_behind):
        got = kernels.conv_weight_grad(view(dy), view(x), case.weight, *case.settings)
        assert_close(cuda_device.get(got), wanted, dtype)


@pytest.mark.parametrize("dtype", SMALL_TYPES)
def test_parity_of_empty_arrays(cuda_device, dtype):
    for x, weight in (((0, 16, 6, 6), (16, 16, 3, 3)), ((2, 16, 0, 4), (16, 16, 3, 3)), ((2, 0, 4, 4), (16, 0, 3, 3))):
        check(cuda_device, Case("", x, weight, (1, 1), ((2, 1), (1, 1)), (1, 1)), dtype)


# Relative to float64, by dtype and precision.
LIMITS = {
    ("float32", "highest"): 2e-6,
    ("float32", "high"): 5e-4,
    ("float16", "highest"): 5e-4,
    ("bfloat16", "highest"): 5e-3,
}


@needs_compiler
@pytest.mark.parametrize("dtype, precision", LIMITS)
@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_numerics_over_4608_products(case, dtype, precision, monkeypatch):
    monkeypatch.setattr(conv_weight_grad, "_LEAST_PART", 2**20)  # all in one block
    dy, x, wanted = arrays(case, dtype, normal)
    set_float32_matmul_precision(precision)
    try:
        with installed(HostLauncher()):
            got = kernels.conv_weight_grad(dy, x, case.weight, *case.settings)
            assert "weight_grad_mma" in launch.launcher.launches[-1].name
    finally:
        set_float32_matmul_precision("highest")
    error = np.linalg.norm(got.astype(np.float64) - wanted) / np.linalg.norm(wanted)
    assert error < LIMITS[dtype, precision]
    if (dtype, precision) == ("float32", "high"):
        assert error > 1e-5  # TF32 was used


@needs_compiler
def test_strict_sums_of_one_sign_lose_nothing(monkeypatch):
    """Tensor cores cut off what does not fit: without promotion all losses have one direction."""
    monkeypatch.setattr(conv_weight_grad, "_LEAST_PART", 2**20)
    case = Case("", (1, 16, 68, 68), (16, 16, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))
    dy, x, wanted = arrays(case, "float32", lambda rng, shape, dtype: rng.uniform(1, 2, shape).astype(dtype))
    with installed(HostLauncher()):
        got = kernels.conv_weight_grad(dy, x, case.weight, *case.settings)
    assert np.abs(got / wanted - 1).max() < 4e-6


@pytest.mark.parametrize("channels", [2, 16])
def test_high_precision_rounds_to_nearest(cuda_device, channels):
    """Images as they lie, and with channels last; in both factors."""
    set_float32_matmul_precision("high")
    try:
        for odd in (0, 1):
            factors = [np.full((1, channels, 8, 8), value, np.float32) for value in (1 / 64, 1 + 2.0**-11 + 2.0**-13)]
            dy, x = map(cuda_device.put, factors[::-1] if odd else factors)
            dw = kernels.conv_weight_grad(dy, x, (channels, channels, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
            if channels > 2:  # two filters are not worth a tile
                np.testing.assert_array_equal(cuda_device.get(dw), np.float32(1 + 2.0**-10))
    finally:
        set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype", SMALL_TYPES)
def test_results_repeat_bit_for_bit(cuda_device, many_parts, dtype):
    """In shuffled order too: no sum depends on which thread or block comes first."""
    dy, x, _ = arrays(Case("", (2, 24, 9, 8), (20, 24, 3, 3), (2, 1), SAME, (1, 1)), dtype, normal)
    given = cuda_device.put(dy), cuda_device.put(x)

    def compute():
        return cuda_device.get(kernels.conv_weight_grad(*given, (20, 24, 3, 3), (2, 1), SAME, (1, 1), 1))

    first = compute()
    on_host = cuda_device.name != "cuda"
    with installed(HostLauncher(seed=7, sanitize=sanitizing())) if on_host else nullcontext():
        np.testing.assert_array_equal(compute(), first)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("dtype", SMALL_TYPES)
def test_what_is_not_finite_stays_in_its_place(cuda_device, dtype, value):
    """Of a filter or a channel, and in another image or part nothing."""
    case = Case("", (2, 16, 7, 8), (20, 16, 3, 3), (1, 1), SAME, (1, 1))
    dy, x, wanted = arrays(case, dtype)
    for array, place in ((dy, (3, slice(None))), (x, (slice(None), 3))):
        changed = array.copy()
        changed[0, 3, 2, 2] = value
        given = [cuda_device.put(changed if a is array else a) for a in (dy, x)]
        got = cuda_device.get(kernels.conv_weight_grad(*given, case.weight, *case.settings)).astype(np.float64)
        assert not np.isfinite(got[place]).any()
        got[place] = wanted[place]
        assert_close(got.astype(dtype), wanted, dtype)


@pytest.mark.parametrize("capability, kernel", [(75, "weight_grad_gemm"), (80, "weight_grad_mma")])
def test_devices_without_asynchronous_copies_get_other_kernels(capability, kernel):
    case = CASES[2]
    dy, x, _ = arrays(case, "bfloat16")
    with installed(HostLauncher(capability=capability, dry=True)):
        kernels.conv_weight_grad(dy, x, case.weight, *case.settings)
        names = {launched.name.partition("<")[0] for launched in launch.launcher.launches}
    assert kernel in names and names <= {kernel, "channels_last", "sum_partials"}


RESNET = {"pixels": 64 * 56 * 56, "places": 56 * 56}


@pytest.mark.parametrize(
    "changes, rows, columns, piece",
    [
        ({"rows": 256, "channels": 64, "taps": 1}, 64, 64, 16),
        ({"rows": 256, "channels": 256, "taps": 9}, 128, 128, 16),
        ({"rows": 64, "channels": 64, "taps": 9}, 64, 64, 16),
        ({"rows": 64, "channels": 3, "taps": 49}, 64, 64, 8),
        ({"rows": 64, "channels": 3, "taps": 49, "c_type": "float"}, 64, 64, 4),
        ({"rows": 6, "channels": 1, "taps": 25, "c_type": "float"}, 64, 64, 4),
        ({"rows": 16, "channels": 16, "taps": 9, "groups": 32}, 32, 128, 16),
        ({"rows": 16, "channels": 6, "taps": 25, "c_type": "float", "precision": "high"}, 32, 128, 16),
    ],
)
def test_the_choice_of_tile(changes, rows, columns, piece):
    common = {"operation": WEIGHT_GRAD, "c_type": "bfloat16", "precision": "highest", "capability": 90, "groups": 1}
    problem = Problem(**{**common, **RESNET, **changes})
    tile = conv_choice.choose(problem)
    assert (tile.rows, tile.columns, tile.piece) == (rows, columns, piece)
    assert tile.strict == (problem.c_type == "float" and problem.precision == "highest")
    assert conv_choice.choose(replace(problem, rows=2)) == Direct()
    assert not isinstance(conv_choice.choose(replace(problem, c_type="double")), TensorTile)


@needs_compiler
@pytest.mark.parametrize(
    "call, replacement",
    [
        ("cp_async_wait<kStages - 2>();", ""),
        ("cp_async_wait<kStages - 2>();", "cp_async_wait<kStages - 1>();"),
        ("cp_async_wait<kStages - 2>();\n        __syncthreads();", "cp_async_wait<kStages - 2>();"),
        ("look_up(0);\n    __syncthreads();", "look_up(0);"),
        ("look_up(number + 1);\n        __syncthreads();", "look_up(number + 1);"),
    ],
)
def test_without_one_of_its_waits_the_kernel_is_wrong_here(call, replacement, tmp_path, monkeypatch):
    """The host run would show a missing wait or barrier."""
    text = (SOURCE_FOLDER / "conv_mma_weight_grad.cu").read_text()
    assert text.count(call) == 1
    (tmp_path / "conv_mma_weight_grad.cu").write_text(text.replace(call, replacement))
    tile = TensorTile(64, 64, 32, 32)
    changed = replace(tile.kernel(WEIGHT_GRAD, "bfloat16"), folder=tmp_path)
    monkeypatch.setattr(TensorTile, "kernel", lambda self, operation, c_type: changed)
    case = Case("nine steps", (2, 16, 12, 12), (64, 16, 3, 3), (1, 1), SAME, (1, 1))
    dy, x, wanted = arrays(case, "bfloat16")
    with installed(HostLauncher(seed=1)), only(tile):
        dw = kernels.conv_weight_grad(dy, x, case.weight, *case.settings)
    with pytest.raises(AssertionError):
        assert_close(dw, wanted, "bfloat16")


@needs_compiler
@pytest.mark.parametrize("dtype", SMALL_TYPES)
def test_memory(dtype, many_parts):
    """Shared memory without conflicts; of global memory the sectors that hold what is wanted."""
    case = Case("", (1, 64, 16, 16), (64, 64, 3, 3), (1, 1), SAME, (1, 1))
    dy, x, _ = arrays(case, dtype)
    tracing = HostLauncher(trace=True)
    with installed(tracing):
        kernels.conv_weight_grad(dy, x, case.weight, *case.settings)
    names = [trace.kernel.name.partition("<")[0] for trace in tracing.traces]
    assert names == ["channels_last", "weight_grad_mma", "sum_partials"]
    product = tracing.traces[1]
    assert product.conflicts() == 0
    assert product.sectors() == product.least_sectors()


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    # Of kernels with the same addresses one each: strict sums are others' registers, float16 is bfloat16.
    which = "parity and not true and not float16 and not double and not direct"
    result = run_under_sanitizers(__file__, "-k", which)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
