"""embedding and its gradient on the CPU against loops and PyTorch."""

from __future__ import annotations

import importlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjoint import kernels
from adjoint.kernels.cpu import parallel

module = importlib.import_module("adjoint.kernels.cpu.embedding")

ALL = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def operands(rows, dim, shape, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((rows, dim)).astype(dtype),
        rng.integers(0, rows, shape),
        rng.standard_normal((*np.atleast_1d(shape), dim)).astype(dtype),
    )


def naive_grad(dy, indices, rows, padding_idx, by_frequency):
    dim = dy.shape[-1]
    grad, counts = np.zeros((rows, dim)), np.zeros(rows)
    for index, slope in zip(indices.ravel(), dy.reshape(indices.size, dim).astype(np.float64), strict=True):
        if index != padding_idx:
            grad[index] += slope
            counts[index] += 1
    return grad / np.maximum(counts, 1)[:, None] if by_frequency else grad


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 0), (), (5, 1, 6)], ids=str)
def test_rows(shape, dtype):
    weight, indices, _ = operands(10, 6, shape, dtype=dtype)
    y = kernels.embedding(weight, indices)
    assert y.dtype == weight.dtype and y.flags.c_contiguous
    np.testing.assert_array_equal(y, weight[indices])


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("padding_idx", [-1, 3])
@pytest.mark.parametrize("by_frequency", [False, True])
@pytest.mark.parametrize("rows, count", [(10, 200), (50, 40), (4, 0)])
def test_grad(rows, count, padding_idx, by_frequency, dtype):
    """Rows taken never, once, and more often than there are rounds."""
    _, indices, dy = operands(rows, 6, (count,), dtype=dtype)
    before = indices.copy(), dy.copy()
    grad = kernels.embedding_weight_grad(dy, indices, rows, padding_idx, by_frequency)
    wanted = naive_grad(dy, indices, rows, padding_idx, by_frequency)
    assert grad.dtype == dy.dtype
    tolerance = {8: 1e-13, 4: 1e-5, 2: 8e-3}[dy.dtype.itemsize]
    np.testing.assert_allclose(grad.astype(np.float64), wanted, rtol=tolerance, atol=tolerance / 4)
    np.testing.assert_array_equal(indices, before[0])
    np.testing.assert_array_equal(dy, before[1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_grad_of_halves_is_rounded_once(dtype):
    """Summed in a half, 0.25 would no longer count at 1024 (bfloat16: 128) and beyond."""
    dy = np.full((8192, 1), 0.25, dtype)
    assert kernels.embedding_weight_grad(dy, np.zeros(8192, np.int64), 1)[0, 0] == 2048


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 5), st.integers(0, 60), st.booleans(), st.integers(0, 99))
def test_any_setting(rows, dim, count, by_frequency, seed):
    weight, indices, dy = operands(rows, dim, (count,), seed)
    np.testing.assert_array_equal(kernels.embedding(weight, indices), weight[indices])
    padding_idx = seed % (rows + 1) - 1
    grad = kernels.embedding_weight_grad(dy, indices, rows, padding_idx, by_frequency)
    np.testing.assert_allclose(grad, naive_grad(dy, indices, rows, padding_idx, by_frequency), atol=1e-12)


@pytest.mark.parametrize("by_frequency", [False, True])
def test_grad_is_pytorchs(by_frequency):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    _, indices, dy = operands(30, 8, (6, 25))
    wanted = torch.ops.aten.embedding_dense_backward(torch.tensor(dy), torch.tensor(indices), 30, 4, by_frequency)
    np.testing.assert_allclose(kernels.embedding_weight_grad(dy, indices, 30, 4, by_frequency), wanted, atol=1e-13)


def test_any_strides_and_types_of_indices():
    weight, indices, dy = operands(12, 10, (8, 6))
    for view in (np.asfortranarray(weight), weight[:, ::-1], weight.repeat(2, 1)[:, ::2]):
        np.testing.assert_array_equal(kernels.embedding(view, indices[::-2, ::3]), view[indices[::-2, ::3]])
    grad = kernels.embedding_weight_grad(dy[:, ::-1, ::2], indices[:, ::-1], 12)
    np.testing.assert_allclose(grad, naive_grad(dy[:, ::-1, ::2], indices[:, ::-1], 12, -1, False), atol=1e-12)
    for dtype in (np.uint8, np.int8, np.int16, np.int32, np.uint64):
        np.testing.assert_array_equal(kernels.embedding(weight, indices.astype(dtype)), weight[indices])
        kernels.embedding_weight_grad(dy, indices.astype(dtype), 12)


def test_results_repeat_and_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(module, "_PIECE_BYTES", 1000)
    _, indices, dy = operands(40, 16, (700,), dtype=np.float32)
    before = parallel.threads()
    results = set()
    try:
        for threads in (1, 2, 3, 1):
            parallel.set_threads(threads)
            results.add(kernels.embedding_weight_grad(dy, indices, 40).tobytes())
    finally:
        parallel.set_threads(before)
    assert len(results) == 1


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, float("inf")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_renorm_is_pytorchs(norm_type, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    weight, indices, _ = operands(12, 10, (4,), dtype=dtype)
    weight[:3] /= 100
    wanted = torch.embedding_renorm_(torch.tensor(weight), torch.tensor(indices), 1.5, norm_type)
    assert kernels.embedding_renorm(weight, indices, 1.5, norm_type) is weight
    np.testing.assert_allclose(weight, wanted, rtol={8: 1e-14, 4: 1e-6, 2: 2e-3}[weight.dtype.itemsize])


@pytest.mark.parametrize("index", [-1, 5, 2**40])
def test_index_out_of_range(index):
    weight = np.ones((5, 3))
    indices = np.array([[0, 1], [index, 9]])
    for name, call in {
        "embedding": lambda: kernels.embedding(weight, indices),
        "embedding_weight_grad": lambda: kernels.embedding_weight_grad(np.ones((2, 2, 3)), indices, 5),
        "embedding_renorm": lambda: kernels.embedding_renorm(weight, indices, 0.5),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}: index {index} at \(1, 0\) is out of range for 5 rows"):
            call()
    np.testing.assert_array_equal(weight, np.ones((5, 3)))
    with pytest.raises(ValueError, match="embedding: index 0 is out of range for 0 rows"):
        kernels.embedding(weight[:0], np.array(0))


def test_wrong_shapes_and_types():
    weight, indices, dy = operands(5, 3, (4,))
    with pytest.raises(ValueError, match=r"embedding: weight must have the shape \(V, D\), got \(3,\)"):
        kernels.embedding(weight[0], indices)
    with pytest.raises(TypeError, match="embedding: indices must be integers, got float64"):
        kernels.embedding(weight, dy)
    with pytest.raises(TypeError, match=r"embedding: weight must be float32, .* got int64"):
        kernels.embedding(indices[:, None], indices)
    with pytest.raises(TypeError, match="embedding: indices must be a NumPy or CuPy array, got list"):
        kernels.embedding(weight, [1, 2])
    with pytest.raises(ValueError, match=r"embedding_weight_grad: dy must have the shape \(4, D\), got \(3, 3\)"):
        kernels.embedding_weight_grad(dy[:3], indices, 5)
    for wrong in (5, -2, 1.0):
        with pytest.raises(ValueError, match="padding_idx must be a row of 5, or -1 for none, got"):
            kernels.embedding_weight_grad(dy, indices, 5, wrong)
    with pytest.raises(ValueError, match="num_embeddings must be an integer of at least 0, got -1"):
        kernels.embedding_weight_grad(dy, indices, -1)
    with pytest.raises(ValueError, match="embedding_renorm: norm_type must be above 0, got 0"):
        kernels.embedding_renorm(weight, indices, 1.0, 0)
