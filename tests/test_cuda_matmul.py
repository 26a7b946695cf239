"""The CUDA matrix products by our own kernels against float64, on every device there is."""

from __future__ import annotations

from contextlib import nullcontext

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest

from adjoint.kernels import cuda, precision
from adjoint.kernels.cuda import gemm, launch
from adjoint.kernels.cuda.kernel import Kernel
from cuda_on_host import (
    HostLauncher,
    device_fixture,
    installed,
    needs_compiler,
    run_under_sanitizers,
    sanitizing,
)

cuda_device = device_fixture()

ALL = ("float32", "float64", "float16", "bfloat16")
ROUNDING = {"float32": 1e-6, "float64": 1e-15, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.fixture(autouse=True)
def our_own_kernels(monkeypatch):
    monkeypatch.setattr(launch, "multiply", lambda *_: False)
    yield
    precision.set_float32_matmul_precision("highest")


def eighths(shape, dtype, seed):
    """Small integers over 8: products and sums of them are exact in every type, so that only the result is rounded."""
    return (np.random.default_rng(seed).integers(-16, 17, shape) / 8).astype(dtype)


def matrices(leading, rows, columns, order, dtype, seed):
    """(*leading, rows, columns): rows ("C") or columns ("F") dense, in larger arrays ("c", "f", "o"), or neither."""
    if order in "Ff":
        return matrices(leading, columns, rows, "C" if order == "F" else "c", dtype, seed).swapaxes(-1, -2)
    if order == "c":
        return eighths((*leading, rows + 2, columns + 16), dtype, seed)[..., 1:-1, 8:-8]
    if order == "o":  # odd distances, which no vector fits
        return eighths((*leading, rows, columns + 3), dtype, seed)[..., 1:-2]
    return (
        eighths((*leading, rows, 2 * columns), dtype, seed)[..., ::2]
        if order == "x"
        else eighths((*leading, rows, columns), dtype, seed)
    )


def expected(a, b, bias=None, activation=None):
    product = np.matmul(a.astype(np.float64), b.astype(np.float64))
    product = product if bias is None else product + bias.astype(np.float64)
    if activation == "silu":
        return product / (1 + np.exp(-product))
    return np.maximum(product, 0) if activation == "relu" else product


def check(device, a, b, bias=None, activation=None, least=ROUNDING):
    dtype = a.dtype.name
    kept = [a.copy(), b.copy()]
    on_device = [None if array is None else device.put(array) for array in (a, b, bias)]
    got = device.get(cuda.matmul(*on_device, activation))
    wanted = expected(a, b, bias, activation)
    assert got.dtype == a.dtype and got.flags.c_contiguous and got.shape == wanted.shape
    scale = np.abs(wanted).max(initial=1)
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=0, atol=least[dtype] * scale)
    for array, copy in zip((a, b), kept, strict=True):
        np.testing.assert_array_equal(array, copy)


SIZES = [(1, 1, 1), (5, 7, 3), (70, 65, 33), (64, 72, 100), (33, 136, 64), (130, 8, 40)]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize("rows, columns, depth", SIZES, ids=str)
def test_parity(cuda_device, rows, columns, depth, orders, dtype):
    a = matrices((), rows, depth, orders[0], dtype, 1)
    b = matrices((), depth, columns, orders[1], dtype, 2)
    check(cuda_device, a, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("orders", ["cc", "cf", "fc", "ff", "oo", "xC", "Cx"])
def test_parity_of_views(cuda_device, orders, dtype):
    a = matrices((), 37, 48, orders[0], dtype, 1)
    b = matrices((), 48, 40, orders[1], dtype, 2)
    check(cuda_device, a, b)


LEADING = [
    ((3,), ()),
    ((), (3,)),
    ((3,), (3,)),
    ((2, 3), (2, 3)),
    ((2, 1), (1, 5)),
    ((6, 1, 2), (2, 1)),
    ((4, 1), (7,)),
]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("of_a, of_b", LEADING, ids=str)
def test_parity_of_batches(cuda_device, of_a, of_b, dtype):
    for orders in ("CC", "FF"):
        a = matrices(of_a, 9, 24, orders[0], dtype, 1)
        b = matrices(of_b, 24, 16, orders[1], dtype, 2)
        check(cuda_device, a, b)


def test_parity_of_vectors(cuda_device):
    a, b = eighths((5, 4, 24), "float32", 1), eighths((24, 6), "float32", 2)
    for pair in ((a[0, 0], b[:, 0]), (a[0, 0], b), (a, b[:, 1]), (a[:, 0], b[:, ::5][:, 1])):
        check(cuda_device, *pair)


def test_parity_of_heads(cuda_device):
    """(N, length, heads, size) as (N, heads, length, size): no single run of matrices, copied where there are many."""
    q, k = (eighths((3, 10, 6, 8), "float32", seed).transpose(0, 2, 1, 3) for seed in (1, 2))
    check(cuda_device, q, k.swapaxes(-1, -2))
    check(cuda_device, q[:, :2], k[:, :2].swapaxes(-1, -2))


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("along", ["columns", "rows"])
@pytest.mark.parametrize("columns", [12, 11])
def test_parity_of_what_follows(cuda_device, columns, along, activation, dtype):
    a, b = eighths((3, 20, 16), dtype, 1), eighths((16, columns), dtype, 2)
    bias = eighths((columns,) if along == "columns" else (20, 1), dtype, 3)
    check(cuda_device, a, b, bias, activation)
    check(cuda_device, a, b, None, activation)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gelu_by_its_values(cuda_device, activation):
    a, b = np.float32([[1.0], [-2.0], [0.5]]), np.float32([[1.0]])
    got = cuda_device.get(cuda.matmul(cuda_device.put(a), cuda_device.put(b), None, activation))
    wanted = {"gelu": [0.8413447, -0.0455003, 0.3457312], "gelu_tanh": [0.8411920, -0.0454023, 0.3457140]}
    np.testing.assert_allclose(got[:, 0], wanted[activation], atol=2e-7)


@pytest.mark.parametrize(
    "shapes", [((0, 4), (4, 3)), ((3, 0), (0, 2)), ((2, 3, 0), (0, 2)), ((0, 3, 4), (4, 2))], ids=str
)
def test_parity_of_empty_arrays(cuda_device, shapes):
    a, b = (np.zeros(shape, np.float32) for shape in shapes)
    check(cuda_device, a, b, np.float32([-1] * b.shape[-1]), "relu")


@pytest.mark.parametrize("dtype", ALL)
def test_parity_of_split_sums(cuda_device, dtype):
    """Few tiles and a long depth: blocks leave parts of sums, which are added in order; bias and ReLU follow."""
    a, b = eighths((2, 3, 1100), dtype, 1), eighths((2, 1100, 5), dtype, 2)
    assert gemm.choose(product_of(3, 5, 1100, launch.c_type(dtype)), 90)[1] < 1100
    check(cuda_device, a, b)
    check(cuda_device, a, b, eighths((3, 1), dtype, 3), "relu")


def product_of(rows, columns, depth, c_type="float", tf32=False, batch=1):
    from adjoint.kernels.cuda.cublaslt import Product
    from adjoint.kernels.geometry.matmul import Batch, Lines

    lines = Lines(False, depth), Lines(False, columns)
    return Product(c_type, tf32, rows, columns, depth, *lines, Batch(batch, 0, 0, 0), False, False)


# Every kernel, whatever the sizes for which it would be chosen: type, whether tf32 is enough, the device, the tile.
KERNELS = [
    (dtype, tf32, capability, tile)
    for dtype in ALL
    for tf32 in ((False, True) if dtype == "float32" else (False,))
    for capability in (75, 90)
    for tile in gemm.candidates(launch.c_type(dtype), tf32, capability)
]


@pytest.mark.parametrize("dtype, tf32, capability, tile", dict.fromkeys(KERNELS), ids=str)
def test_parity_of_every_kernel(cuda_device, dtype, tf32, capability, tile, monkeypatch):
    precision.set_float32_matmul_precision("high" if tf32 else "highest")
    monkeypatch.setattr(gemm, "choose", lambda *_: (tile, 64))
    monkeypatch.setattr(launch, "capability", lambda _: capability)
    for orders in ("CC", "FF"):
        a = matrices((), tile.rows + 12, 72, orders[0], dtype, 1)
        b = matrices((), 72, tile.columns + 20, orders[1], dtype, 2)
        check(cuda_device, a, b, eighths((tile.columns + 20,), dtype, 3), "relu")


def test_every_variant_was_run():
    tiles = [tile.kernel(launch.c_type(dtype), dtype == "float32" and not tf32) for dtype, tf32, _, tile in KERNELS]
    assert set(tiles) | {gemm._sum_kernel(launch.c_type(dtype)) for dtype in ALL} == set(gemm.VARIANTS)
    assert len(gemm.VARIANTS) <= 20


NUMERICS = {"float32": 2e-6, "tf32": 5e-4, "bfloat16": 5e-3, "float16": 5e-4}


@pytest.mark.parametrize("name", NUMERICS)
def test_error_of_long_sums(cuda_device, name, monkeypatch):
    """Relative to float64, over a depth of 4,608 in one part: 512 channels under a 3×3 filter."""
    precision.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    dtype = "float32" if name == "tf32" else name
    tile = gemm.candidates(launch.c_type(dtype), name == "tf32", 90)[-1]
    monkeypatch.setattr(gemm, "choose", lambda *_: (tile, 4608))
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((24, 4608)).astype(dtype), rng.standard_normal((4608, 16)).astype(dtype)
    got = cuda_device.get(cuda.matmul(cuda_device.put(a), cuda_device.put(b)))
    wanted = expected(a, b)
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) <= NUMERICS[name]


def test_products_in_tf32_are_asked_for(cuda_device):
    """A bit that tf32 has not is lost only in "high"."""
    a, b = np.full((16, 16), 1 + 2**-12, np.float32), np.eye(16, dtype=np.float32)
    on_device = cuda_device.put(a), cuda_device.put(b)
    np.testing.assert_array_equal(cuda_device.get(cuda.matmul(*on_device)), a)
    precision.set_float32_matmul_precision("high")
    if launch.capability(on_device[0]) >= 80:
        np.testing.assert_array_equal(cuda_device.get(cuda.matmul(*on_device)), 1)


def test_not_a_number_stays_one(cuda_device):
    a, b = np.full((4, 8), np.nan, np.float32), np.ones((8, 4), np.float32)
    assert np.isnan(cuda_device.get(cuda.matmul(cuda_device.put(a), cuda_device.put(b), None, "relu"))).all()


@pytest.mark.parametrize("value", [3e38, -3.4028235e38])
def test_finite_factors_never_make_nan(cuda_device, value):
    """The largest float is cut, not rounded up to infinity, before its rest is taken."""
    a, b = np.full((16, 16), value, np.float32), np.eye(16, dtype=np.float32)
    for pair in ((a, b), (b, a), (a.T, b.T)):
        got = cuda_device.get(cuda.matmul(*map(cuda_device.put, pair)))
        np.testing.assert_allclose(got, value, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_repeat_bit_for_bit(cuda_device, dtype):
    """In shuffled order too: no sum depends on which thread or block comes first."""
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((40, 1100)).astype(dtype), rng.standard_normal((1100, 24)).astype(dtype)
    on_device = cuda_device.put(a), cuda_device.put(b)
    first = cuda_device.get(cuda.matmul(*on_device))
    on_host = cuda_device.name != "cuda"
    with installed(HostLauncher(seed=7, sanitize=sanitizing())) if on_host else nullcontext():
        second = cuda_device.get(cuda.matmul(*on_device))
    np.testing.assert_array_equal(first.view(np.uint8), second.view(np.uint8))


@needs_compiler
@pytest.mark.parametrize(
    "source, gone",
    [
        ("gemm_mma.cu", "cp_async_wait<kStages - 2>();"),
        ("gemm_mma.cu", "__syncthreads();"),
        ("gemm_simt.cu", "__syncthreads();"),
    ],
)
def test_without_a_wait_or_a_barrier_results_are_wrong_here(source, gone, tmp_path, monkeypatch):
    """The host run would show that one is missing."""
    text = Kernel(source, "").text()
    assert gone in text
    (tmp_path / source).write_text(text.replace(gone, "", 1))
    monkeypatch.setattr(gemm, "Kernel", lambda source, name, **more: Kernel(source, name, tmp_path, **more))
    a, b = eighths((64, 512), "float32", 1), eighths((512, 64), "float32", 2)
    with installed(HostLauncher(seed=1, capability=90 if "mma" in source else 75)):
        product = cuda.matmul(a, b)
    assert not np.allclose(product, expected(a, b), atol=1e-3)


def test_the_choice_of_tile_and_part():
    wide, middle, narrow = gemm._TENSOR
    assert gemm.choose(product_of(8192, 4096, 1024, "bfloat16"), 90) == (wide, 1024)
    assert gemm.choose(product_of(8192, 4096, 1024), 90)[0] == middle  # exact: two sets of sums
    assert gemm.choose(product_of(8192, 4096, 1024, tf32=True), 90)[0] == wide
    assert gemm.choose(product_of(8192, 64, 1024, "float16"), 90)[0] == narrow  # 64 blocks of the middle one are few
    assert gemm.choose(product_of(8192, 4096, 1024, "double"), 90)[0].each == 4
    assert gemm.choose(product_of(8192, 4096, 1024, "bfloat16"), 75)[0].each == 4
    assert gemm.choose(product_of(64, 64, 8192), 90) == (narrow, 512)
    assert gemm.choose(product_of(64, 64, 8192, batch=200), 90) == (narrow, 8192)
    assert gemm.choose(product_of(64, 64, 100), 90) == (narrow, 128)


def test_what_cannot_be_a_product():
    most = 2**31 - 256
    x = np.broadcast_to(np.float32(0), (most + 1, 1))
    with pytest.raises(ValueError, match=f"matmul: dims of at most {most} elements are supported, got"):
        cuda.matmul(x, np.zeros((1, 1), np.float32))
    # A part of the largest depth, and the rows of the last tile, are numbers of 32 bits.
    tile, part = gemm.choose(product_of(most, 64, most), 90)
    assert max(part, most + tile.rows - 1) < 2**31


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    result = run_under_sanitizers(__file__, "-k", "parity and (every_kernel or views or batches or split)")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
