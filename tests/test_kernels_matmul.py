"""Matrix products on NumPy arrays, what is refused, and what the engine makes of them."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest

import adjoint as ad
from adjoint import kernels
from adjoint.engine.operations import linalg
from adjoint.kernels.geometry.matmul import Batch, Lines, batches, lines

ROUNDING = {"float32": 2e-6, "float64": 1e-14, "float16": 1e-3, "bfloat16": 8e-3}


def normal(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    "a, b", [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (7, 4, 5)), ((4,), (2, 4, 3)), ((4,), (4,))]
)
def test_equals_the_sums_in_float64(a, b, dtype):
    a, b = normal(*a, dtype=dtype), normal(*b, dtype=dtype, seed=1)
    got = kernels.matmul(a, b)
    wanted = np.matmul(a.astype(np.float64), b.astype(np.float64))
    assert isinstance(got, np.ndarray) and got.dtype == a.dtype and got.shape == wanted.shape and got.flags.c_contiguous
    np.testing.assert_allclose(got.astype(np.float64), wanted, atol=ROUNDING[dtype] * 10, rtol=0)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_bias_and_activation(dtype):
    a, b = normal(2, 3, 4, dtype=dtype), normal(4, 5, dtype=dtype, seed=1)
    product = np.matmul(a.astype(np.float64), b.astype(np.float64))
    for bias in (normal(5, dtype=dtype, seed=2), normal(3, 1, dtype=dtype, seed=2)):
        z = product + bias.astype(np.float64)
        got = kernels.matmul(a, b, bias, "relu").astype(np.float64)
        np.testing.assert_allclose(got, np.maximum(z, 0), atol=ROUNDING[dtype] * 10)
        got = kernels.matmul(a, b, bias, "silu").astype(np.float64)
        np.testing.assert_allclose(got, z / (1 + np.exp(-z)), atol=ROUNDING[dtype] * 10)


def test_halves_are_rounded_once():
    ones = np.ones((1, 4096), np.float16)
    bias = np.full(1, -4095.5, np.float16)  # 4096 before: -4096
    assert kernels.matmul(ones, ones.T)[0, 0] == 4096
    assert kernels.matmul(ones, ones.T, bias)[0, 0] == np.float32(4096) + np.float32(bias[0])


def test_results_are_in_c_order_whatever_the_operands():
    a, b = normal(3, 4, 5, 6).transpose(1, 0, 2, 3), normal(3, 4, 6, 2).transpose(1, 0, 2, 3)
    assert kernels.matmul(a, b).flags.c_contiguous


def test_a_pointwise_convolution_is_a_product_that_shares_its_weight():
    x, weight, bias, dy = normal(5, 6, 7), normal(4, 6), normal(4), normal(5, 4, 7)
    settings = ((1,), ((0, 0),), (1,), 1)
    y = kernels.conv(x, weight[:, :, None], bias, *settings)
    np.testing.assert_allclose(kernels.matmul(weight, x, bias[:, None]), y, atol=2e-6)
    dx = kernels.conv_input_grad(dy, weight[:, :, None], x.shape, *settings)
    np.testing.assert_allclose(kernels.matmul(weight.T, dy), dx, atol=2e-6)
    dw = kernels.conv_weight_grad(dy, x, (4, 6, 1), *settings)
    np.testing.assert_allclose(kernels.matmul(dy, x.transpose(0, 2, 1)).sum(0), dw[:, :, 0], atol=2e-5)


REFUSED = [
    (((), (3,)), "expected arrays of at least 1 dimension"),
    (((2, 3), (4, 5)), r"shapes \(2, 3\) and \(4, 5\) do not fit: the first has 3 columns, the second 4 rows"),
    (((2, 3), (2,)), "the second 2 rows"),
    (((2, 3, 4), (3, 4, 5)), "the leading dims of"),
    (((2, 3), (3, 4), (3,)), r"for the result \(2, 4\) the bias must have the shape \(4,\) or \(2, 1\), got \(3,\)"),
    (((3,), (3, 4), (4,)), "with a bias both arrays must have 2 dimensions or more"),
    (((2, 3), (3,), (2,)), "with a bias both arrays must have 2 dimensions or more"),
]


@pytest.mark.parametrize("shapes, message", REFUSED, ids=str)
def test_what_does_not_fit_is_named(shapes, message):
    with pytest.raises(ValueError, match=f"^matmul: .*{message}"):
        kernels.matmul(*(np.zeros(shape, np.float32) for shape in shapes))


def test_other_things_that_are_refused():
    a, b = normal(2, 3), normal(3, 4)
    with pytest.raises(
        ValueError, match="matmul: activation must be None or one of relu, gelu, gelu_tanh, silu, got 'elu'"
    ):
        kernels.matmul(a, b, None, "elu")
    with pytest.raises(TypeError, match="matmul: all arrays must have one dtype, got: a is float32, b is float64"):
        kernels.matmul(a, b.astype(np.float64))
    with pytest.raises(TypeError, match=r"matmul: all arrays must have one dtype, got: .* bias is float64"):
        kernels.matmul(a, b, np.zeros(4))
    with pytest.raises(TypeError, match="matmul: a must be float32, float64, float16 or bfloat16, got int64"):
        kernels.matmul(np.ones((2, 2), np.int64), np.ones((2, 2), np.int64))
    with pytest.raises(TypeError, match="matmul: b must be a NumPy or CuPy array, got list"):
        kernels.matmul(a, [[1.0]])


def test_how_matrices_lie():
    x = np.zeros((6, 8))
    cases = [
        (x, Lines(False, 8)),
        (x.T, Lines(True, 8)),
        (x[1:3, 2:5], Lines(False, 8)),
        (x[::2], Lines(False, 16)),
        (x.T[:, ::2], Lines(True, 16)),
        (x[:, ::2], None),
        (np.broadcast_to(x[0], (6, 8)), None),
        (x[:1, ::2], Lines(True, 2)),
        (x[:, :1], Lines(False, 8)),
        (x[:, :1].T, Lines(True, 8)),
        (x[:1, :1], Lines(False, 1)),
    ]
    for array, wanted in cases:
        assert (
            lines(array.shape, [s // 8 if n > 1 else 0 for s, n in zip(array.strides, array.shape, strict=True)])
            == wanted
        )


def test_leading_dims_that_are_one_run_are_one():
    assert batches((2, 3), (12, 4), (0, 0), (12, 4)) == [Batch(6, 4, 0, 4)]
    assert batches((2, 1, 3), (12, 0, 4), (12, 0, 4), (12, 0, 4)) == [Batch(6, 4, 4, 4)]
    assert batches((2, 3), (12, 4), (0, 4), (12, 4)) == [Batch(2, 12, 0, 12), Batch(3, 4, 4, 4)]
    assert batches((1, 1), (0, 0), (0, 0), (0, 0)) == []


def test_integers_are_multiplied_by_numpy():
    a, b = np.arange(6).reshape(2, 3), np.arange(12).reshape(3, 4)
    result = ad.tensor(a) @ ad.tensor(b)
    assert result.dtype == np.int64 and result.tolist() == (a @ b).tolist()
    flags = ad.tensor(a > 2) @ ad.tensor(b > 5)
    assert flags.dtype == np.bool_ and flags.tolist() == ((a > 2) @ (b > 5)).tolist()
    with pytest.raises(ValueError, match=r"^matmul: shapes"):
        ad.tensor(a) @ ad.tensor(a)
    assert ad.nn.functional.linear(ad.tensor(a), ad.tensor(b.T), ad.tensor(b[0])).tolist() == (a @ b + b[0]).tolist()


EQUATIONS = [
    ("abc,cbd->da", (2, 3, 4), (4, 3, 5)),
    ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("bqhd,bkhd->bhqk", (2, 4, 3, 5), (2, 6, 3, 5)),
    ("ab,cd->dbca", (2, 3), (4, 5)),
    ("ab,ab->", (2, 3), (2, 3)),
    ("abc,abc->cab", (2, 3, 4), (2, 3, 4)),
    ("ij,jk,kl,lm->im", (2, 3), (3, 4), (4, 5), (5, 2)),
    ("a,a,a->a", (3,), (3,), (3,)),
    ("a,ab,b,c->c", (3,), (3, 4), (4,), (2,)),
    ("ab,bc->ac", (2, 0), (0, 3)),
    ("abc,c->ab", (0, 3, 4), (4,)),
]


@pytest.mark.parametrize("equation, shapes", [(equation, shapes) for equation, *shapes in EQUATIONS], ids=str)
def test_einsum_equals_numpy(equation, shapes):
    arrays = [normal(*shape, dtype="float64", seed=i) for i, shape in enumerate(shapes)]
    got = ad.einsum(equation, *map(ad.tensor, arrays))
    wanted = np.einsum(equation, *arrays)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-12)
    tensors = tuple(ad.tensor(array, requires_grad=True) for array in arrays)
    assert ad.autograd.gradcheck(lambda *xs: ad.einsum(equation, *xs), tensors)
    assert ad.autograd.gradgradcheck(lambda *xs: ad.einsum(equation, *xs), tensors)


def test_products_of_the_engine_go_through_the_kernels(monkeypatch):
    """One way: matmul, linear, einsum, and their gradients."""
    seen = []

    def recorded(a, b, bias=None, activation=None):
        seen.append((a.shape, b.shape, bias is not None))
        return kernels.cpu.matmul(a, b, bias, activation)

    monkeypatch.setattr(linalg.kernels, "matmul", recorded)
    x, w, c = (ad.tensor(normal(*shape), requires_grad=True) for shape in ((5, 3), (4, 3), (4,)))
    ad.nn.functional.linear(x, w, c).sum().backward()
    assert seen == [((5, 3), (3, 4), True), ((5, 4), (4, 3), False), ((4, 5), (5, 3), False)]
    seen.clear()
    (x @ w.T).sum().backward()
    assert len(seen) == 3
    seen.clear()
    ad.einsum("ij,kj->ik", x, w).sum().backward()
    assert len(seen) == 3
