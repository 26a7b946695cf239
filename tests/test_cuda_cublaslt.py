"""Matrix products through cuBLASLt: a stand-in checks each call and computes what it describes."""

from __future__ import annotations

import ctypes
import gc
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest

from adjoint.kernels import cpu, cuda, precision
from adjoint.kernels.cuda import cublaslt
from adjoint.kernels.cuda.cublaslt import CublasLt, Pointers, Product
from adjoint.kernels.geometry.matmul import Batch, Lines
from cuda_on_host import HostLauncher, installed, needs_compiler
from cuda_on_host.cublaslt import BIAS, COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F, GELU, HostCublasLt
from cuda_on_host.host_launcher import STREAM

ALL = ("float32", "float64", "float16", "bfloat16")
ROUNDING = {"float32": 1e-6, "float64": 1e-14, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.fixture
def library():
    functions = HostCublasLt(STREAM)
    with installed(HostLauncher(cublaslt=CublasLt(functions))):
        yield functions
    precision.set_float32_matmul_precision("highest")
    assert functions.problems == []


def eighths(shape, dtype="float32", seed=0):
    return (np.random.default_rng(seed).integers(-16, 17, shape) / 8).astype(dtype)


def check(a, b, bias=None, activation=None):
    got = cuda.matmul(a, b, bias, activation)
    wanted = np.matmul(a.astype(np.float64), b.astype(np.float64))
    wanted = wanted if bias is None else wanted + bias.astype(np.float64)
    if activation == "gelu_tanh":
        wanted = 0.5 * wanted * (1 + np.tanh(np.sqrt(2 / np.pi) * (wanted + 0.044715 * wanted**3)))
    elif activation == "relu":
        wanted = np.maximum(wanted, 0)
    assert got.dtype == a.dtype and got.shape == wanted.shape and got.flags.c_contiguous
    scale = np.abs(wanted).max(initial=1)
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=0, atol=ROUNDING[a.dtype.name] * scale)


def matrix(leading, rows, columns, order, dtype, seed):
    array = eighths((*leading, columns, rows) if order in "Ff" else (*leading, rows, columns), dtype, seed)
    if order in "cf":  # within a larger one
        array = np.pad(array, [(0, 0)] * len(leading) + [(1, 2), (3, 4)])[..., 1:-2, 3:-4]
    return array.swapaxes(-1, -2) if order in "Ff" else array


LEADING = [((), ()), ((3,), ()), ((), (3,)), ((3,), (3,)), ((2, 3), (2, 3)), ((2, 1), (1, 5)), ((6, 1, 2), (2, 1))]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF", "cf", "fc"])
@pytest.mark.parametrize("of_a, of_b", LEADING, ids=str)
def test_parity(library, of_a, of_b, orders, dtype):
    check(matrix(of_a, 5, 6, orders[0], dtype, 1), matrix(of_b, 6, 7, orders[1], dtype, 2))
    assert library.products


def test_parity_of_vectors_rows_and_columns(library):
    a, b = eighths((5, 6)), eighths((6, 7), seed=1)
    for pair in ((a[0], b), (a, b[:, 1]), (a[0], b[:, 1]), (a[:1], b), (a[:, :1], b[:1]), (a[:1, :1], b[:1, :1])):
        check(*pair)


def test_nothing_is_copied_that_can_be_read_where_it_lies(library):
    """Transposed, within larger arrays, broadcast, a weight that many images share."""
    x, weight = eighths((4, 6, 9)), eighths((5, 6), seed=1)
    check(weight, x)
    assert library.products[-1] == {**SIZES_OF_SHARED, "epilogue": 1, "compute": COMPUTE_32F}
    check(x.transpose(0, 2, 1), weight.T)  # rows of x are no lines of one matrix: four products that share the weight
    assert library.products[-1]["count"] == 4 and library.products[-1]["a"] == 0
    check(eighths((4, 9, 6)), weight.T)  # here they are
    assert library.products[-1]["count"] == 1 and library.products[-1]["columns"] == 36


# As the library sees it: out.T = x.T @ weight.T, four times.
SIZES_OF_SHARED = {"rows": 9, "columns": 5, "depth": 6, "count": 4, "a": 54, "b": 0}


def test_leading_dims_that_are_no_single_run(library):
    a, b = eighths((2, 1, 3, 4)), eighths((1, 5, 4, 3), seed=1)
    check(a, b)
    assert [product["count"] for product in library.products] == [5, 5]
    q, k = (eighths((3, 10, 6, 8), seed=seed).transpose(0, 2, 1, 3) for seed in (1, 2))
    library.products.clear()
    check(q, k.swapaxes(-1, -2))  # (N, heads, length, size) of (N, length, heads, size): three launches of six heads
    assert [product["count"] for product in library.products] == [6, 6, 6]
    q, k = (eighths((5, 10, 7, 8), seed=seed).transpose(0, 2, 1, 3) for seed in (1, 2))
    library.products.clear()
    check(q, k.swapaxes(-1, -2))  # more than four launches would be needed: copied
    assert [product["count"] for product in library.products] == [35]


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("activation", [None, "relu", "gelu_tanh"])
@pytest.mark.parametrize("along", ["columns", "rows", None])
@needs_compiler
def test_what_follows(library, along, activation, dtype):
    a, b = eighths((3, 5, 6), dtype), eighths((6, 8), dtype, 1)
    bias = {"columns": eighths(8, dtype, 2), "rows": eighths((5, 1), dtype, 2), None: None}[along]
    check(a, b, bias, activation)
    fused = 0
    if dtype != "float64":  # the library has no epilogues for doubles
        fused += BIAS if along == "columns" else 0
        fused += GELU if activation == "gelu_tanh" and along != "rows" else 0
    assert {product["epilogue"] for product in library.products} == {fused or 1}


@needs_compiler
def test_a_bias_that_is_not_aligned_follows_in_a_kernel_of_its_own(library):
    check(eighths((5, 6)), eighths((6, 8), seed=1), eighths(12, seed=2)[1:9])
    assert library.products[-1]["epilogue"] == 1


@needs_compiler
def test_where_the_library_has_no_algorithm_something_else_serves(library):
    a, b, bias = eighths((5, 6)), eighths((6, 8), seed=1), eighths(8, seed=2)
    library.refuses = lambda epilogue: epilogue != 1
    check(a, b, bias, "gelu_tanh")
    assert library.products[-1]["epilogue"] == 1
    library.refuses = lambda epilogue: True
    library.products.clear()
    check(a[:4], b, bias, "relu")  # other sizes: what was chosen for the first ones is kept
    assert library.products == []


def test_the_type_of_the_sums_follows_the_precision(library):
    a, b = np.full((4, 4), 1 + 2**-12, np.float32), np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(cuda.matmul(a, b), a)
    precision.set_float32_matmul_precision("high")
    np.testing.assert_array_equal(cuda.matmul(a, b), 1)
    for dtype in ("float64", "float16"):
        check(eighths((3, 4), dtype), eighths((4, 5), dtype))
    assert [p["compute"] for p in library.products] == [COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F, COMPUTE_32F]


def test_a_repeated_product_is_one_call_and_allocates_only_its_result(library, monkeypatch):
    a, b, bias = eighths((16, 16)), eighths((16, 16), seed=1), eighths(16, seed=2)
    check(a, b, bias)
    library.calls.clear()
    allocated = []
    launcher = cuda.launch.launcher
    monkeypatch.setattr(
        launcher, "empty", lambda *args: allocated.append(args[0]) or HostLauncher.empty(launcher, *args)
    )
    check(a, b, bias)
    assert library.calls == ["cublasLtMatmul"] and allocated == [(16, 16)]
    library.calls.clear()
    other = np.zeros(1024, np.float32)  # with a vector at the same distance from a multiple of 256
    start = (bias.ctypes.data - other.ctypes.data) % 256 // 4
    other = other[start : start + 16]
    check(a, b, other)
    assert library.calls == ["cublasLtMatmulDescSetAttribute", "cublasLtMatmul"]


def test_workspaces_belong_to_streams_and_are_given_back(library):
    a, b, out = eighths((4, 4)), eighths((4, 4), seed=1), np.empty((4, 4), np.float32)
    made = []

    def new_workspace(nbytes):
        made.append(np.empty(1 << 20, np.uint8))
        return made[-1].ctypes.data // 16 * 16, made[-1]

    bindings = cuda.launch.launcher.cublaslt
    pointers = Pointers(*(array.ctypes.data for array in (a, b, out)), 0)
    product = Product("float", False, 4, 4, 4, Lines(False, 4), Lines(False, 4), Batch(1, 0, 0, 0), False, False)
    for stream in (1, 2, 1, 2):
        library.stream = stream
        assert bindings.multiply(product, pointers, 0, stream, 1 << 20, new_workspace)
        np.testing.assert_array_equal(out, a @ b)
    assert len(made) == 2
    bindings.release(0, 1)
    bindings.release(0, 7)  # one that never had any
    library.stream = 1
    assert bindings.multiply(product, pointers, 0, 1, 1 << 20, new_workspace) and len(made) == 3
    library.stream = 2
    assert bindings.multiply(product, pointers, 0, 2, 1 << 20, new_workspace) and len(made) == 3


def test_the_per_thread_stream_has_a_workspace_for_each_thread(library):
    a, b, out = eighths((4, 4)), eighths((4, 4), seed=1), np.empty((4, 4), np.float32)
    bindings, library.stream = cuda.launch.launcher.cublaslt, 2
    pointers = Pointers(*(array.ctypes.data for array in (a, b, out)), 0)
    product = Product("float", False, 4, 4, 4, Lines(False, 4), Lines(False, 4), Batch(1, 0, 0, 0), False, False)
    made = []

    def new_workspace(nbytes):
        made.append(np.empty(nbytes, np.uint8))
        return made[-1].ctypes.data // 16 * 16, made[-1]

    def multiply():
        assert bindings.multiply(product, pointers, 0, 2, 1 << 20, new_workspace)

    multiply()
    with ThreadPoolExecutor(1) as other:
        other.submit(multiply).result()
    multiply()
    assert len(made) == 2


def test_a_handle_for_each_device(library):
    bindings = cuda.launch.launcher.cublaslt
    handles = [bindings.handle(device).value for device in (0, 1, 0)]
    assert handles[0] == handles[2] != handles[1] and library.calls == ["cublasLtCreate"] * 2


def test_what_is_kept_is_bounded_and_given_back(library, monkeypatch):
    monkeypatch.setattr(cublaslt, "_MOST_PLANS", 3)
    for columns in range(1, 9):
        check(eighths((2, 3)), eighths((3, columns)))
    gc.collect()
    kinds = [what["kind"] for what in library.objects.values()]
    assert (kinds.count("MatmulDesc"), kinds.count("MatrixLayout")) == (3, 9)
    library.calls.clear()
    check(eighths((2, 3)), eighths((3, 8)))
    assert library.calls == ["cublasLtMatmul"]


@pytest.mark.parametrize("name", ["cublasLtCreate", "cublasLtMatrixLayoutCreate", "cublasLtMatmulDescSetAttribute",
                                  "cublasLtMatmulAlgoGetHeuristic", "cublasLtMatmul"])  # fmt: skip
def test_a_call_that_fails_is_an_error_with_its_name_and_the_librarys_words(library, name):
    library.failing[name] = 14
    with pytest.raises(RuntimeError, match=rf"^{name} failed: these are the words of status 14 \(status 14\)"):
        cuda.matmul(eighths((2, 3)), eighths((3, 2)))
    library.failing.clear()
    check(eighths((2, 3)), eighths((3, 2)))


def test_a_library_that_is_too_old_is_not_used(monkeypatch):
    def too_old():
        return HostCublasLt(STREAM, version=110000)

    def missing():
        raise OSError("no such file")

    monkeypatch.setattr(cublaslt, "_by_name", too_old)
    monkeypatch.setattr(cublaslt, "_by_pathfinder", missing)
    cublaslt.library.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="cuBLASLt 110000 is too old"):
            assert cublaslt.library() is None
        monkeypatch.setattr(cublaslt, "_by_pathfinder", lambda: HostCublasLt(STREAM))
        cublaslt.library.cache_clear()
        with pytest.warns(RuntimeWarning):
            assert isinstance(cublaslt.library(), CublasLt)
        monkeypatch.setenv("ADJOINT_CUBLASLT", "0")
        cublaslt.library.cache_clear()
        assert cublaslt.library() is None
    finally:
        cublaslt.library.cache_clear()


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
def test_the_real_library_on_a_gpu(orders, dtype, monkeypatch):
    cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install 'cupy-cuda12x[ctk]' (or 13x)")
    if not cupy.is_available():
        pytest.skip("needs a GPU: CuPy finds no CUDA device")
    if cublaslt.library() is None:
        pytest.skip("needs cuBLASLt, which comes with CuPy's [ctk]")
    monkeypatch.setattr("adjoint.kernels.cuda.gemm.multiply", None)  # nothing falls back to our own kernels
    a, b = matrix((3,), 40, 24, orders[0], dtype, 1), matrix((3,), 24, 16, orders[1], dtype, 2)
    bias = eighths(16, dtype, 3)
    for activation in (None, "relu", "gelu_tanh"):
        got = cupy.asnumpy(cuda.matmul(*map(cupy.asarray, (a, b, bias)), activation))
        wanted = cpu.matmul(a, b, bias, activation)
        scale = np.abs(wanted.astype(np.float64)).max()
        np.testing.assert_allclose(
            got.astype(np.float64), wanted.astype(np.float64), rtol=0, atol=2 * ROUNDING[dtype] * scale
        )


def test_the_real_library_takes_what_it_is_given():
    """Descriptors need no device: they are made, and their attributes read back."""
    try:
        functions = cublaslt._by_pathfinder()
    except (ImportError, OSError, RuntimeError):
        pytest.skip("needs cuBLAS: pip install nvidia-cublas-cu12")
    bindings = CublasLt(functions)
    assert functions.cublasLtGetVersion() >= 120000
    lines, batch = (Lines(False, 13), Lines(True, 17)), Batch(3, 100, 0, 35)
    product = Product("float", True, 5, 7, 11, *lines, batch, True, True)
    plan = cublaslt._Plan(bindings, ctypes.c_void_p(), product, 4096)

    def read(kind, what, attribute, c_type):
        function = getattr(functions, f"cublasLt{kind}GetAttribute")
        function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        value, written = c_type(), ctypes.c_size_t()
        assert function(what, attribute, ctypes.byref(value), ctypes.sizeof(value), ctypes.byref(written)) == 0
        assert written.value == ctypes.sizeof(value)
        return value.value

    int32, uint32, int64, uint64 = ctypes.c_int32, ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint64
    of_product = ((0, int32), (1, int32), (3, int32), (4, int32), (7, uint32), (8, ctypes.c_void_p))
    got = [read("MatmulDesc", plan._descriptor, *attribute) for attribute in of_product]
    assert got == [COMPUTE_32F_FAST_TF32, 0, 1, 0, BIAS + GELU, 4096]
    of_layout = ((0, uint32), (1, int32), (2, uint64), (3, uint64), (4, int64), (5, int32), (6, int64))
    wanted = {
        "_a": [0, 0, 11, 7, 17, 3, 0],
        "_b": [0, 0, 11, 5, 13, 3, 100],
        "_out": [0, 0, 7, 5, 7, 3, 35],
    }
    for name, values in wanted.items():
        assert [read("MatrixLayout", getattr(plan, name), *attribute) for attribute in of_layout] == values
    preference = plan._create("MatmulPreference")
    for attribute, value in (
        (cublaslt._WORKSPACE_BYTES, 1 << 25),
        (cublaslt._REDUCTIONS, 2),
        (cublaslt._ALIGNMENT_D, 8),
    ):
        plan._set("MatmulPreference", preference, attribute, value)
        assert read("MatmulPreference", preference, *attribute) == value
