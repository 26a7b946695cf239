"""The CUDA embedding, its gradient and the sort under it against loops in float64."""

from __future__ import annotations

from importlib import import_module

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest

from adjoint.kernels import cuda
from adjoint.kernels.cuda import radix
from cuda_on_host import HostLauncher, device_fixture, installed, needs_compiler, run_under_sanitizers, sanitizing

# The package has a function of the same name.
module = import_module("adjoint.kernels.cuda.embedding")

cuda_device = device_fixture()

ALL = ("float32", "float64", "float16", "bfloat16")
TOLERANCE = {"float32": (1e-6, 1e-5), "float64": (1e-14, 1e-13), "float16": (1e-3, 1e-3), "bfloat16": (8e-3, 1e-3)}
# (rows, columns, indices): in vectors and not, several columns a lane, several lanes a row, one row, one index.
CASES = {
    (10, 8, 100): ALL,
    (50, 7, 60): ALL,
    (3, 1, 500): ("float32",),
    (1, 300, 90): ("float32", "bfloat16"),
    (700, 1030, 40): ("float32", "float16"),
    (1000, 4, 1): ("float32",),
    (5, 2100, 33): ("float64",),
}
PARITY = [
    pytest.param(case, dtype, id=f"{'x'.join(map(str, case))}-{dtype}")
    for case, dtypes in CASES.items()
    for dtype in dtypes
]


def operands(rows, dim, count, dtype, seed=0):
    rng = np.random.default_rng(seed)
    indices = np.minimum(rng.zipf(1.5, count) - 1, rows - 1)  # some rows often, some never
    return (
        rng.standard_normal((rows, dim)).astype(dtype),
        indices,
        rng.standard_normal((count, dim)).astype(dtype),
    )


def grad_by_definition(dy, indices, rows, padding_idx=-1, by_frequency=False):
    kept = (indices != padding_idx) & (indices >= 0) & (indices < rows)
    grad = np.zeros((rows, dy.shape[-1]))
    np.add.at(grad, indices[kept], dy[kept].astype(np.float64))
    counts = np.bincount(indices[kept], minlength=rows)
    return grad / np.maximum(counts, 1)[:, None] if by_frequency else grad


def assert_close(actual, expected, dtype):
    rtol, atol = TOLERANCE[dtype]
    assert actual.dtype == np.dtype(dtype) and actual.shape == expected.shape
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("case, dtype", PARITY)
def test_parity(cuda_device, case, dtype):
    weight, indices, dy = operands(*case, dtype)
    before = weight.copy(), indices.copy(), dy.copy()
    put, get = cuda_device.put, cuda_device.get
    np.testing.assert_array_equal(get(cuda.embedding(put(weight), put(indices))), weight[indices])
    for padding_idx in (-1, 0):
        for by_frequency in (False, True):
            grad = cuda.embedding_weight_grad(put(dy), put(indices), case[0], padding_idx, by_frequency)
            assert_close(get(grad), grad_by_definition(dy, indices, case[0], padding_idx, by_frequency), dtype)
    for array, copy in zip((weight, indices, dy), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    "bound, count", [(1, 70), (2, 5000), (511, 3000), (512, 3000), (130_000, 9000), (300_000, 3000)]
)
def test_parity_of_the_sort(cuda_device, bound, count):
    """One to three digits; equal keys in order; what is dropped or out of range last."""
    rng = np.random.default_rng(0)
    indices = rng.integers(0, bound, count)
    indices[::7] = bound // 2
    indices[::11] = (-1, bound, 2**40)[count % 3]
    dropped = int(indices[1])
    got = radix.sort(cuda_device.put(indices), bound, dropped)
    keys = np.where((indices < 0) | (indices >= bound) | (indices == dropped), bound, indices)
    order = np.argsort(keys, kind="stable")
    np.testing.assert_array_equal(cuda_device.get(got.keys), keys[order])
    np.testing.assert_array_equal(cuda_device.get(got.positions), order)
    np.testing.assert_array_equal(cuda_device.get(got.starts), np.searchsorted(keys[order], np.arange(bound + 1)))


def test_parity_of_long_runs(cuda_device):
    """Runs that begin and end inside chunks, at their borders, and go over several."""
    for lengths in ((32, 32, 1, 31), (31, 2, 63, 1, 64, 96), (5, 200, 3), (33, 31, 65)):
        indices = np.repeat(np.arange(len(lengths)), lengths)
        np.random.default_rng(0).shuffle(indices)
        dy = np.random.default_rng(1).standard_normal((len(indices), 12)).astype(np.float32)
        grad = cuda.embedding_weight_grad(cuda_device.put(dy), cuda_device.put(indices), len(lengths) + 2)
        assert_close(cuda_device.get(grad), grad_by_definition(dy, indices, len(lengths) + 2), "float32")


def test_parity_of_indices_out_of_range(cuda_device):
    weight, indices, dy = operands(9, 6, 40, "float32")
    bad = np.arange(40) % 4 == 0
    indices[bad] = np.resize([-1, 9, 2**40, -(2**40)], bad.sum())
    y = cuda_device.get(cuda.embedding(cuda_device.put(weight), cuda_device.put(indices)))
    assert np.isnan(y[bad]).all()
    np.testing.assert_array_equal(y[~bad], weight[indices[~bad]])
    grad = cuda.embedding_weight_grad(cuda_device.put(dy), cuda_device.put(indices), 9)
    assert_close(cuda_device.get(grad), grad_by_definition(dy, indices, 9), "float32")


@pytest.mark.parametrize("dtype", ["int32", "int16", "uint8"])
def test_parity_of_indices_of_any_type_and_shape(cuda_device, dtype):
    weight, indices, dy = operands(9, 8, 24, "float32")
    put, get = cuda_device.put, cuda_device.get
    given = put(indices.astype(dtype).reshape(2, 3, 4))
    np.testing.assert_array_equal(get(cuda.embedding(put(weight), given)), weight[indices].reshape(2, 3, 4, 8))
    grad = cuda.embedding_weight_grad(put(dy.reshape(2, 3, 4, 8)), given, 9)
    assert_close(get(grad), grad_by_definition(dy, indices, 9), "float32")


@pytest.mark.parametrize("dim", [8, 9])
def test_parity_of_views(cuda_device, dim):
    """Other strides, and addresses that are no multiple of a vector's size."""
    weight, indices, dy = operands(20, dim, 70, "float32")
    put, get = cuda_device.put, cuda_device.get

    def shifted(array):
        longer = array.ravel().repeat(2)[: array.size + 1]
        longer[1:] = array.ravel()
        return longer[1:].reshape(array.shape)

    for change in (
        lambda array: array.repeat(2, axis=-1)[..., ::2],
        lambda array: array[..., ::-1].copy()[..., ::-1],
        lambda array: array.T.copy().T,
        shifted,
    ):
        y = cuda.embedding(change(put(weight)), change(put(indices)))
        np.testing.assert_array_equal(get(y), weight[indices])
        grad = cuda.embedding_weight_grad(change(put(dy)), change(put(indices)), 20)
        assert_close(get(grad), grad_by_definition(dy, indices, 20), "float32")
        changed = change(put(weight.copy()))
        assert cuda.embedding_renorm(changed, put(indices), 0.5) is changed
        norms = np.linalg.norm(get(changed), axis=1)
        np.testing.assert_allclose(norms[np.unique(indices)], 0.5, rtol=1e-5)


def test_parity_of_blocks_that_take_several_rows(cuda_device, monkeypatch):
    monkeypatch.setattr(module, "_MOST_BLOCKS", 2)
    weight, indices, dy = operands(600, 40, 5000, "float32")
    put, get = cuda_device.put, cuda_device.get
    np.testing.assert_array_equal(get(cuda.embedding(put(weight), put(indices))), weight[indices])
    grad = get(cuda.embedding_weight_grad(put(dy), put(indices), 600))
    np.testing.assert_allclose(grad, grad_by_definition(dy, indices, 600), rtol=1e-5, atol=1e-4)


def test_parity_of_nothing(cuda_device):
    put = cuda_device.put
    none = put(np.zeros(0, np.int64))
    for rows, dim in ((5, 3), (5, 0), (0, 3)):
        assert cuda.embedding(put(np.zeros((rows, dim), np.float32)), none).shape == (0, dim)
        grad = cuda_device.get(cuda.embedding_weight_grad(put(np.zeros((0, dim), np.float32)), none, rows))
        np.testing.assert_array_equal(grad, np.zeros((rows, dim)))
        assert cuda.embedding_renorm(put(np.zeros((rows, dim), np.float32)), none, 1.0).shape == (rows, dim)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, float("inf")])
def test_parity_of_renorm(cuda_device, norm_type, dtype):
    weight, _, _ = operands(30, 37, 8, dtype)
    weight[::3] /= np.asarray(1000, dtype)
    indices = np.arange(30).repeat(3)[::-1][10:]
    expected = weight.astype(np.float64)
    norms = np.linalg.norm(expected, norm_type, axis=1)
    large = (norms > 1.5) & np.isin(np.arange(30), indices)
    expected[large] *= (1.5 / (norms[large] + 1e-7))[:, None]
    got = cuda_device.put(weight.copy())
    cuda.embedding_renorm(got, cuda_device.put(indices), 1.5, norm_type)
    rtol = 4e-6 if dtype == "float32" else TOLERANCE[dtype][0]
    np.testing.assert_allclose(cuda_device.get(got).astype(np.float64), expected, rtol=10 * rtol)


@needs_compiler
def test_results_are_the_same_bits_in_every_order():
    _, indices, dy = operands(50, 24, 3000, "float32")
    results = set()
    for seed in (None, None, 1, 2):
        with installed(HostLauncher(seed=seed)):
            results.add(cuda.embedding_weight_grad(dy, indices, 50).tobytes())
    assert len(results) == 1


def test_too_many_rows_are_an_error():
    with pytest.raises(ValueError, match="embedding_weight_grad: on CUDA there may be 2147483646 indices and rows"):
        cuda.embedding_weight_grad(np.zeros((1, 1), np.float32), np.zeros(1, np.int64), 2**31)


@needs_compiler
def test_beyond_2_31_elements():
    """The last row of a weight and of a result, and the last row of a gradient."""
    rows, dim = 131_200, 16_384
    values = np.random.default_rng(0).standard_normal(dim).astype(np.float16)
    large, small = np.empty((rows, dim), np.float16), np.stack([values] * 3)
    assert large.size > 2**31
    large[-1] = values
    last = (rows - 1) % module._MOST_BLOCKS
    # The sort runs whole; of the grids over rows the block that takes the last row.
    chosen = lambda grid: [(last, y, 0) for y in range(grid[1])] if grid[0] > last else np.ndindex(grid)  # noqa: E731
    with installed(HostLauncher(ends_only=chosen)):
        np.testing.assert_array_equal(cuda.embedding(large, np.array([rows - 1]))[0], values)
        taken = np.zeros(rows, np.int64)
        taken[-1] = 2
        np.testing.assert_array_equal(cuda.embedding(small, taken)[-1], values)
        indices = np.array([rows - 1, 5, rows - 1])
        # Its starts are by one thread a row: all blocks of them.
        with installed(HostLauncher(ends_only=lambda grid: np.ndindex(grid) if grid[1] == 1 else chosen(grid))):
            grad = cuda.embedding_weight_grad(small, indices, rows)
    np.testing.assert_array_equal(grad[-1], 2 * values)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    result = run_under_sanitizers(__file__, "-k", "parity and not float64 and not float16")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
