"""Convolution on tensor cores: every tile against plain loops in float64, its numerics, and what it costs in memory."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest
from naive_conv import Case, naive

from adjoint import kernels
from adjoint.kernels import cuda
from adjoint.kernels.cuda import launch
from adjoint.kernels.cuda.channels_last import channels_last
from adjoint.kernels.cuda.conv_choice import FORWARD, INPUT_GRAD, TABLE, Direct, Problem, TensorTile, Tile, choose, only
from adjoint.kernels.cuda.kernel import SOURCE_FOLDER
from adjoint.kernels.precision import set_float32_matmul_precision
from cuda_on_host import HostLauncher, device_fixture, installed, needs_compiler, run_under_sanitizers, sanitizing

cuda_device = device_fixture()

DTYPES = {"float": "float32", "float16": "float16", "bfloat16": "bfloat16"}
TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
TILES = [
    pytest.param(row.variant, c_type, id=row.variant.kernel(FORWARD, c_type).name)
    for row in TABLE
    if isinstance(row.variant, TensorTile) and FORWARD in row.operations
    for c_type in row.types
]


SAME = ((1, 1), (1, 1))
CASES = [
    Case("3 to 5 channels, 7x9", (2, 3, 7, 9), (5, 3, 3, 3), (1, 1), SAME, (1, 1)),
    Case("3x3, runs of four pixels", (3, 17, 6, 6), (34, 17, 3, 3), (1, 1), SAME, (1, 1)),
    Case(
        "stride 2 and 3, dilation, all paddings differ", (2, 9, 13, 11), (10, 9, 3, 2), (2, 3), ((2, 0), (1, 3)), (2, 1)
    ),
    Case("stride 2, groups", (2, 32, 8, 10), (36, 16, 3, 3), (2, 2), SAME, (1, 1), 2),
    Case("several tiles", (1, 40, 13, 11), (140, 40, 1, 2), (1, 1), ((0, 0), (0, 1)), (1, 1)),
    Case("stride larger than the kernel", (1, 16, 9, 8), (16, 16, 2, 1), (3, 4), ((0, 0), (0, 0)), (1, 1)),
    Case("sequence, causal", (3, 20, 30), (24, 20, 4), (1,), ((6, 0),), (2,)),
    Case("volume, stride 2", (1, 18, 5, 6, 7), (20, 18, 2, 3, 3), (2, 1, 2), ((1, 0), (1, 1), (0, 2)), (1, 2, 1)),
]


def exact(rng, shape, dtype):
    """Small integers over 8, exact in tf32 and in every dtype, so that only the sums are rounded."""
    return (rng.integers(-16, 17, shape) / 8).astype(dtype)


def arrays(case, dtype):
    """x, weight, bias, dy; and y, dx in float64."""
    rng = np.random.default_rng(0)
    x, weight, bias = (exact(rng, shape, dtype) for shape in (case.x, case.weight, case.weight[:1]))
    y, dy, dx, _ = naive(x, weight, lambda shape: exact(rng, shape, dtype), *case.settings)
    y += bias.astype(np.float64).reshape(-1, *[1] * (x.ndim - 2))
    return (x, weight, bias, dy), (y, dx)


def assert_close(got, wanted, dtype):
    assert got.dtype == np.dtype(dtype) and got.flags.c_contiguous and got.shape == wanted.shape
    scale = max(np.abs(wanted).max(initial=0), 1)
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.fixture(autouse=True)
def interface(request, monkeypatch):
    """The public functions run on the host too."""
    monkeypatch.setattr("adjoint.kernels.interface.conv.side", lambda array: cuda)


@pytest.fixture
def high():
    set_float32_matmul_precision("high")
    yield
    set_float32_matmul_precision("highest")


def computed(case, given):
    x, weight, bias, dy = given
    return (
        kernels.conv(x, weight, bias, *case.settings),
        kernels.conv_input_grad(dy, weight, case.x, *case.settings),
    )


@pytest.mark.parametrize("tile, c_type", TILES)
def test_parity(cuda_device, tile, c_type):
    dtype = DTYPES[c_type]
    for case in CASES:
        given, wanted = arrays(case, dtype)
        on_device = [cuda_device.put(array) for array in given]
        with only(tile):
            results = computed(case, on_device)
        for got, reference in zip(results, wanted, strict=True):
            assert_close(cuda_device.get(got), reference, dtype)
        for array, before in zip(on_device, given, strict=True):
            np.testing.assert_array_equal(cuda_device.get(array), before)


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_parity_of_arrays_that_are_not_contiguous_or_aligned(cuda_device, dtype):
    def shifted(a):
        memory = np.empty(a.size + 1, a.dtype)
        memory[1:] = a.reshape(-1)
        return cuda_device.put(memory)[1:].reshape(a.shape)

    def backwards(a):
        return cuda_device.put(np.ascontiguousarray(a[..., ::-1]))[..., ::-1]

    def channels_behind(a):
        return cuda_device.put(np.ascontiguousarray(np.moveaxis(a, 1, -1))).transpose(0, 3, 1, 2) if a.ndim > 1 else a

    # 16 channels need no padding: channels that are last already need no copy.
    case = Case("", (2, 16, 6, 6), (20, 16, 3, 3), (1, 1), SAME, (1, 1))
    given, wanted = arrays(case, dtype)
    residual = given[3]
    for view in (shifted, backwards, channels_behind):
        x, weight, bias, dy = map(view, given)
        got = kernels.conv(x, weight, bias, *case.settings, None, view(residual))
        assert_close(cuda_device.get(got), wanted[0] + residual, dtype)
        got = kernels.conv_input_grad(dy, weight, case.x, *case.settings)
        assert_close(cuda_device.get(got), wanted[1], dtype)


def test_parity_of_empty_arrays(cuda_device):
    for x, weight in (((0, 16, 6, 6), (16, 16, 3, 3)), ((2, 16, 0, 4), (16, 16, 3, 3)), ((2, 0, 4, 4), (16, 0, 3, 3))):
        case = Case("", x, weight, (1, 1), ((2, 1), (1, 1)), (1, 1))
        given, wanted = arrays(case, "float32")
        for got, reference in zip(computed(case, [cuda_device.put(a) for a in given]), wanted, strict=True):
            assert_close(cuda_device.get(got), reference, "float32")


@pytest.mark.parametrize("dtype", [*DTYPES.values(), "float64"])
def test_parity_of_pointwise_convolutions(cuda_device, dtype):
    """A matrix product of filters and images as they lie, with and without the gradients' transposed filters."""
    case = Case("", (2, 19, 10, 16), (21, 19, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))
    (x, weight, bias, dy), wanted = arrays(case, dtype)
    given = [cuda_device.put(array) for array in (x, weight, bias, dy)]
    for got, reference in zip(computed(case, given), wanted, strict=True):
        assert_close(cuda_device.get(got), reference, dtype)
    got = kernels.conv(*given[:3], *case.settings, "relu", given[3])
    assert_close(cuda_device.get(got), np.maximum(wanted[0] + dy.astype(np.float64), 0), dtype)
    got = kernels.conv(*given[:3], *case.settings, "relu")
    assert_close(cuda_device.get(got), np.maximum(wanted[0], 0), dtype)


def test_what_a_matrix_product_runs():
    """Images whose pixels fill tiles and vectors, and only where filters meet them as they lie."""
    launched = []

    def kinds(x, weight, *settings):
        with installed(HostLauncher(dry=True)):
            kernels.conv(np.zeros(x, np.float32), np.zeros(weight, np.float32), None, *settings)
            launched[:] = launch.launcher.launches
        return {kernel.name.partition("<")[0] for kernel in launched}

    free, padded = ((0, 0), (0, 0)), ((0, 1), (0, 0))
    pointwise = (64, 64, 1, 1)
    assert "gather_mma" not in kinds((2, 64, 16, 16), pointwise, (1, 1), free, (1, 1), 1)
    assert kinds((2, 64, 7, 7), pointwise, (1, 1), free, (1, 1), 1) == {"channels_last", "gather_mma"}
    assert kinds((2, 64, 16, 16), pointwise, (2, 2), free, (1, 1), 1) == {"channels_last", "gather_mma"}
    assert kinds((2, 64, 16, 16), pointwise, (1, 1), padded, (1, 1), 1) == {"channels_last", "gather_mma"}
    assert kinds((2, 128, 16, 16), pointwise, (1, 1), free, (1, 1), 2) == {"channels_last", "gather_mma"}


def test_the_choice_of_tile():
    """Wide tiles where they are filled and leave no multiprocessor idle; what is padded too much stays with FFMA."""
    resnet = 64 * 56 * 56
    for c_type, precision, rows, channels, pixels, wanted in (
        ("float", "highest", 256, 64, resnet, TensorTile(128, 128, 32, 32, 16, True)),
        ("float", "high", 256, 64, resnet, TensorTile(128, 128, 64, 32, 16)),
        ("bfloat16", "highest", 64, 64, resnet, TensorTile(64, 128, 32, 32, 16)),
        ("float16", "highest", 512, 512, 64 * 49, TensorTile(64, 128, 32, 32, 16)),
        ("float", "high", 64, 64, 16 * 49, TensorTile(64, 64, 32, 32, 16)),
        ("float", "highest", 32, 32, resnet, TensorTile(32, 128, 32, 32, 16, True)),
        ("bfloat16", "highest", 64, 3, resnet, TensorTile(64, 128, 32, 32, 8)),
        ("float", "highest", 64, 3, resnet, TensorTile(64, 128, 32, 32, 16, True)),
        ("float", "highest", 64, 1, resnet, Tile(64, 128, 4, 8)),
        ("float", "highest", 4, 64, resnet, Direct()),
        ("double", "highest", 256, 64, resnet, Tile(64, 128, 4, 8)),
    ):
        sizes = {"groups": 1, "rows": rows, "channels": channels, "taps": 9, "pixels": pixels, "places": 3136}
        for operation in (FORWARD, INPUT_GRAD):
            assert choose(Problem(operation, c_type, precision, 80, **sizes)) == wanted


def test_channels_that_are_last_already_are_not_copied():
    x = np.zeros((2, 6, 6, 16), np.float32).transpose(0, 3, 1, 2)
    with installed(HostLauncher(dry=True)):
        kernels.conv(x, np.zeros((16, 16, 3, 3), np.float32), None, (1, 1), SAME, (1, 1), 1)
        names = [kernel.name.partition("<")[0] for kernel in launch.launcher.launches]
    assert names == ["channels_last", "gather_mma"]  # the copy is that of the filters


# Each with a plane of runs and one without: tensor cores, tiles without them, direct, and depthwise.
EPILOGUES = {
    "tensor cores": Case("", (2, 16, 5, 6), (18, 16, 3, 3), (1, 1), SAME, (1, 1)),
    "tensor cores, runs": Case("", (2, 16, 6, 6), (18, 16, 3, 3), (1, 1), SAME, (1, 1)),
    "tile": Case("", (2, 9, 5, 6), (10, 9, 3, 3), (1, 1), SAME, (1, 1)),
    "tile, runs": Case("", (2, 9, 6, 6), (10, 9, 3, 3), (1, 1), SAME, (1, 1)),
    "direct": Case("", (2, 3, 5, 6), (4, 3, 3, 3), (1, 1), SAME, (1, 1)),
    "depthwise": Case("", (2, 3, 5, 6), (3, 1, 3, 3), (1, 1), SAME, (1, 1), 3),
    "sequence": Case("", (2, 16, 9), (18, 16, 3), (1,), ((1, 1),), (1,)),
}


@pytest.mark.parametrize("name", EPILOGUES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_parity_of_epilogues(cuda_device, name, dtype):
    case = EPILOGUES[name]
    (x, weight, bias, residual), (y, _) = arrays(case, dtype)
    for added in (None, residual):
        z = y if added is None else y + added.astype(np.float64)
        for kind, wanted in ((None, z), ("relu", np.maximum(z, 0)), ("silu", z / (1 + np.exp(-z)))):
            given = [a if a is None else cuda_device.put(a) for a in (x, weight, bias, added)]
            got = cuda_device.get(kernels.conv(*given[:3], *case.settings, kind, given[3]))
            assert_close(got, wanted, dtype)


# Relative to float64 over K = 4608 products, by dtype and precision.
LIMITS = {
    ("float32", "highest"): 2e-6,
    ("float32", "high"): 5e-4,
    ("float16", "highest"): 5e-4,
    ("bfloat16", "highest"): 5e-3,
}


@needs_compiler
@pytest.mark.parametrize("dtype, precision", LIMITS)
def test_numerics_over_4608_products(dtype, precision):
    case = Case("", (1, 512, 4, 4), (64, 512, 3, 3), (1, 1), SAME, (1, 1))
    rng = np.random.default_rng(3)
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in (case.x, case.weight))
    wanted, dy, dx, _ = naive(x, weight, lambda shape: rng.standard_normal(shape).astype(dtype), *case.settings)
    set_float32_matmul_precision(precision)
    try:
        with installed(HostLauncher()):
            results = computed(case, (x, weight, None, dy))
    finally:
        set_float32_matmul_precision("highest")
    for got, reference in zip(results, (wanted, dx), strict=True):
        error = np.linalg.norm(got.astype(np.float64) - reference) / np.linalg.norm(reference)
        assert error < LIMITS[dtype, precision]
        if (dtype, precision) == ("float32", "high"):
            assert error > 1e-5  # TF32 was used


@needs_compiler
def test_strict_sums_of_one_sign_lose_nothing():
    """Tensor cores cut off what does not fit: without promotion all losses have one direction."""
    rng = np.random.default_rng(4)
    x, weight = (rng.uniform(1, 2, shape).astype("float32") for shape in ((1, 4608, 2, 2), (64, 4608, 1, 1)))
    with installed(HostLauncher()):
        got = kernels.conv(x, weight, None, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    wanted = np.einsum("nchw,kc->nkhw", x.astype(np.float64), weight[:, :, 0, 0].astype(np.float64))
    assert np.abs(got / wanted - 1).max() < 4e-6


@needs_compiler
@pytest.mark.parametrize("value", [3e38, -3.4028235e38])
def test_finite_factors_never_make_nan(value):
    """The largest float is cut, not rounded up to infinity, before its rest is taken."""
    x, weight = np.full((1, 16, 2, 2), value, np.float32), np.eye(16, dtype=np.float32)[:, :, None, None]
    with installed(HostLauncher()):
        y = kernels.conv(x, weight, None, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    np.testing.assert_allclose(y, value, rtol=1e-6)


def test_high_precision_rounds_to_nearest(cuda_device, high):
    x = np.full((1, 16, 2, 2), 1 + 2.0**-11 + 2.0**-13, np.float32)
    weight = np.full((16, 16, 1, 1), 1 / 16, np.float32)
    y = kernels.conv(*map(cuda_device.put, (x, weight)), None, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    np.testing.assert_array_equal(cuda_device.get(y), np.float32(1 + 2.0**-10))


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_results_repeat_bit_for_bit(cuda_device, dtype):
    """In shuffled order too: no sum depends on which thread or block comes first."""
    rng = np.random.default_rng(2)
    case = Case("", (2, 24, 9, 8), (20, 24, 3, 3), (2, 1), SAME, (1, 1))
    given = [cuda_device.put(rng.standard_normal(a.shape).astype(a.dtype)) for a in arrays(case, dtype)[0]]
    first = [cuda_device.get(a) for a in computed(case, given)]
    on_host = cuda_device.name != "cuda"
    with installed(HostLauncher(seed=7, sanitize=sanitizing())) if on_host else nullcontext():
        second = [cuda_device.get(a) for a in computed(case, given)]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("capability, kernel", [(75, "gather_gemm"), (80, "gather_mma")])
def test_devices_without_asynchronous_copies_get_other_kernels(capability, kernel):
    given, _ = arrays(CASES[1], "bfloat16")
    with installed(HostLauncher(capability=capability, dry=True)):
        computed(CASES[1], given)
        names = {launched.name.partition("<")[0] for launched in launch.launcher.launches}
    assert kernel in names and names <= {kernel, "channels_last"}


@needs_compiler
@pytest.mark.parametrize(
    "call, replacement",
    [
        ("cp_async_wait<kStages - 2>();", ""),
        ("cp_async_wait<kStages - 2>();", "cp_async_wait<kStages - 1>();"),
        ("__syncthreads();  // all see this stage", "__syncwarp();  // all see this stage"),
        ("    __syncthreads();\n    int64* const target_of", "    int64* const target_of"),
    ],
)
def test_without_one_of_its_waits_the_kernel_is_wrong_here(call, replacement, tmp_path, monkeypatch):
    """The host run would show a missing wait or barrier."""
    text = (SOURCE_FOLDER / "conv_mma.cu").read_text()
    assert text.count(call) == 1
    (tmp_path / "conv_mma.cu").write_text(text.replace(call, replacement))
    tile = next(row.variant for row in TABLE if isinstance(row.variant, TensorTile) and row.variant.rows == 64)
    changed = replace(tile.kernel(FORWARD, "bfloat16"), folder=tmp_path)
    monkeypatch.setattr(TensorTile, "kernel", lambda self, operation, c_type: changed)
    case = Case("five stages", (2, 16, 12, 12), (64, 16, 3, 3), (1, 1), SAME, (1, 1))
    (x, weight, bias, _), (wanted, _) = arrays(case, "bfloat16")
    with installed(HostLauncher(seed=1)), only(tile):
        y = kernels.conv(x, weight, bias, *case.settings)
    with pytest.raises(AssertionError):
        assert_close(y, wanted, "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize(
    "images, channels, plane, padded", [(2, 3, 5, 4), (1, 70, 300, 72), (3, 33, 9, 40), (1, 5, 1, 8)]
)
def test_copies_with_channels_last(cuda_device, dtype, images, channels, plane, padded):
    x = exact(np.random.default_rng(5), (images, channels, plane), dtype)
    wanted = np.zeros((images, plane, padded), x.dtype)
    wanted[..., :channels] = x.transpose(0, 2, 1)
    got = cuda_device.get(channels_last(cuda_device.put(x), images, channels, plane, padded, to_tf32=False))
    np.testing.assert_array_equal(got, wanted)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_memory(dtype):
    """Shared memory without conflicts; of global memory little more than the sectors that hold what is wanted."""
    rng = np.random.default_rng(6)
    x, weight = (exact(rng, shape, dtype) for shape in ((1, 64, 16, 16), (64, 64, 3, 3)))
    tracing = HostLauncher(trace=True)
    with installed(tracing):
        kernels.conv(x, weight, None, (1, 1), SAME, (1, 1), 1)
    copy_of_x, copy_of_weight, product = tracing.traces
    assert [trace.kernel.name.partition("<")[0] for trace in tracing.traces[1:]] == ["channels_last", "gather_mma"]
    for trace in (copy_of_x, product):
        assert trace.conflicts() == 0
        assert trace.sectors() == trace.least_sectors()
    assert copy_of_weight.sectors() < 1.2 * copy_of_weight.least_sectors()


@needs_compiler
def test_more_than_2_to_the_31_elements():
    """The last blocks of a batch beyond 32 bits; pages that no block touches take no memory."""
    rng = np.random.default_rng(7)
    x = np.zeros((5, 16, 2**12, 2**13), DTYPES["bfloat16"])
    x[-1, :, -1, -128:] = exact(rng, (16, 128), x.dtype)
    weight = exact(rng, (16, 16, 1, 1), x.dtype)

    def last_blocks(grid):
        return [(i, 0, 0) for i in range(max(0, grid[0] - 16), grid[0])]

    with installed(HostLauncher(ends_only=last_blocks)), only(TensorTile(32, 128, 32, 32)):
        y = kernels.conv(x, weight, None, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    seen, filters = x[-1, :, -1, -128:].astype(np.float64), weight[:, :, 0, 0].astype(np.float64)
    assert_close(np.ascontiguousarray(y[-1, :, -1, -128:]), filters @ seen, "bfloat16")


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    result = run_under_sanitizers(__file__, "-k", "(parity or copies) and not empty and not bfloat16")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
