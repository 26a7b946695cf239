import importlib
import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjoint import kernels
from adjoint.kernels.cpu import parallel

module = importlib.import_module("adjoint.kernels.cpu.softmax_cross_entropy")

REDUCTIONS = ["none", "sum", "mean"]
SETTINGS = list(itertools.product([False, True], [False, True], [0.0, 0.1, 1.0], REDUCTIONS))


def operands(n, classes, soft, weighted, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal((n, classes))).astype(dtype)
    if soft:
        target = rng.dirichlet(np.ones(classes), n).astype(dtype)
    else:
        target = rng.integers(0, classes, n)
        target[rng.random(n) < 0.2] = -100
    return logits, target, rng.uniform(0.5, 2, classes).astype(dtype) if weighted else None


def naive(logits, target, weight, ignore_index, smoothing, reduction):
    """Row by row in float64, with the gradient of each row's own coefficients."""
    n, classes = logits.shape
    weight = np.ones(classes) if weight is None else weight.astype(np.float64)
    losses, grad, count = np.zeros(n), np.zeros((n, classes)), 0.0
    for row in range(n):
        z = logits[row].astype(np.float64)
        top = z.max()
        logs = z - top - np.log(np.exp(z - top).sum())
        if target.ndim == 2:
            share = (1 - smoothing) * target[row].astype(np.float64) + smoothing / classes
            count += 1
        elif target[row] == ignore_index:
            continue
        else:
            share = np.full(classes, smoothing / classes)
            share[target[row]] += 1 - smoothing
            count += weight[target[row]]
        share = share * weight
        losses[row] = -(share * logs).sum()
        grad[row] = share.sum() * np.exp(logs) - share
    if reduction == "none":
        return losses, grad
    if reduction == "mean":
        with np.errstate(invalid="ignore"):
            return losses.sum() / np.float64(count), grad / count if count else grad
    return losses.sum(), grad


def check(logits, target, weight, smoothing, reduction, ignore_index=-100, rtol=1e-10, atol=1e-10):
    copies = [a if a is None else a.copy() for a in (logits, target, weight)]
    arguments = (logits, target, weight, ignore_index, smoothing, reduction)
    loss, grad = kernels.softmax_cross_entropy(*arguments, with_grad=True)
    wanted, slope = naive(*arguments)
    assert isinstance(loss, np.ndarray) and loss.dtype == grad.dtype == logits.dtype
    assert loss.shape == np.shape(wanted) and grad.flags.c_contiguous
    np.testing.assert_allclose(loss.astype(np.float64), wanted, rtol, atol)
    np.testing.assert_allclose(grad.astype(np.float64), slope, rtol, atol)
    alone, nothing = kernels.softmax_cross_entropy(*arguments)
    assert nothing is None
    np.testing.assert_array_equal(alone, loss)
    for array, copy in zip((logits, target, weight), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("soft, weighted, smoothing, reduction", SETTINGS)
def test_matches_naive_loops(soft, weighted, smoothing, reduction):
    check(*operands(23, 11, soft, weighted), smoothing, reduction)


@pytest.mark.parametrize("soft, weighted, smoothing, reduction", SETTINGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_matches_pytorch(soft, weighted, smoothing, reduction, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    logits, target, weight = operands(23, 11, soft, weighted, 1, dtype)
    tz, tt = torch.tensor(logits, requires_grad=True), torch.tensor(target)
    tw = None if weight is None else torch.tensor(weight)
    wanted = torch.nn.functional.cross_entropy(tz, tt, tw, label_smoothing=smoothing, reduction=reduction)
    wanted.sum().backward()
    loss, grad = kernels.softmax_cross_entropy(logits, target, weight, -100, smoothing, reduction, True)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(loss, wanted.detach(), **tolerance)
    np.testing.assert_allclose(grad, tz.grad, **tolerance)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans(), st.floats(0, 1),
    st.sampled_from(REDUCTIONS), st.integers(0, 99),
)  # fmt: skip
def test_any_setting(n, classes, soft, weighted, smoothing, reduction, seed):
    logits, target, weight = operands(n, classes, soft, weighted, seed)
    check(logits, target, weight, smoothing, reduction, rtol=1e-8)


@pytest.mark.parametrize("soft, classes", [(False, 9000), (True, 9000), (False, 1)])
def test_many_and_few_classes(soft, classes):
    buffer = np.getbufsize()
    check(*operands(5, classes, soft, True), 0.1, "mean")
    assert np.getbufsize() == buffer


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("ignore_index", [-100, 2, 200, 300])
def test_types_of_class_indices(dtype, ignore_index):
    logits, _, weight = operands(7, 5, False, True)
    check(logits, np.array([0, 1, 2, 3, 4, 2, 0], dtype), weight, 0.1, "mean", ignore_index)


def test_ignored_index_may_be_no_class():
    logits, _, _ = operands(3, 5, False, False)
    check(logits, np.array([7, 1, 7]), None, 0.0, "mean", 7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_rows_ignored(smoothing):
    logits, _, _ = operands(3, 5, False, False)
    target = np.full(3, -100)
    for reduction, wanted in (("none", np.zeros(3)), ("sum", 0.0), ("mean", np.nan)):
        loss, grad = kernels.softmax_cross_entropy(logits, target, None, -100, smoothing, reduction, True)
        np.testing.assert_array_equal(loss, wanted)
        np.testing.assert_array_equal(grad, np.zeros_like(logits))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction, wanted", [("none", np.zeros(0)), ("sum", 0.0), ("mean", np.nan)])
def test_no_rows(soft, reduction, wanted):
    target = np.zeros((0, 5)) if soft else np.zeros(0, np.int64)
    loss, grad = kernels.softmax_cross_entropy(np.zeros((0, 5)), target, reduction=reduction, with_grad=True)
    np.testing.assert_array_equal(loss, wanted)
    assert grad.shape == (0, 5)


ROWS = [
    [0.0, -np.inf, 1.0], [-np.inf, 0.0, 1.0], [-np.inf, -np.inf, -np.inf], [np.inf, 0.0, 1.0],
    [np.nan, 0.0, 1.0], [1e30, -1e30, 0.0], [-np.inf, 2.0, -np.inf],
]  # fmt: skip


@pytest.mark.parametrize("soft, weighted, smoothing, reduction", SETTINGS)
def test_infinities_as_in_pytorch(soft, weighted, smoothing, reduction):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    weight = np.array([0.5, 1.0, 2.0]) if weighted else None
    for row in ROWS:
        logits = np.array([row, [0.1, 0.2, 0.3]])
        target = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]) if soft else np.array([0, 1])
        tz = torch.tensor(logits, requires_grad=True)
        tw = None if weight is None else torch.tensor(weight)
        wanted = torch.nn.functional.cross_entropy(
            tz, torch.tensor(target), tw, label_smoothing=smoothing, reduction=reduction
        )
        wanted.sum().backward()
        with np.errstate(all="raise"):
            loss, grad = kernels.softmax_cross_entropy(logits, target, weight, -100, smoothing, reduction, True)
        np.testing.assert_allclose(loss, wanted.detach(), rtol=1e-12)
        np.testing.assert_allclose(grad, tz.grad, rtol=1e-12, atol=1e-12)


def test_large_logits_do_not_overflow():
    logits = np.array([[1000.0, 0.0], [-1000.0, -1001.0]], np.float32)
    loss, grad = kernels.softmax_cross_entropy(logits, np.array([0, 0]), reduction="none", with_grad=True)
    np.testing.assert_allclose(loss, [0, np.log1p(np.exp(-1))], rtol=1e-6)
    np.testing.assert_allclose(grad[1], [-0.26894143, 0.26894143], rtol=1e-5)


@pytest.mark.parametrize("soft, weighted, smoothing, reduction", SETTINGS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_half_types_round_once(dtype, soft, weighted, smoothing, reduction):
    step = 0.5 * float(ml_dtypes.finfo(dtype).eps) * 1.01
    operand = operands(23, 11, soft, weighted, 2, dtype)
    check(*operand, smoothing, reduction, rtol=step, atol=1e-5)


def test_any_strides():
    logits, target, weight = operands(12, 10, True, True)
    check(np.asfortranarray(logits), target[:, ::-1], weight[::-1], 0.1, "mean")
    check(
        logits[::-2, ::3],
        np.repeat(target[:6, :4], 2, 1)[:, ::2],
        np.broadcast_to(weight[:1], 4),
        0.0,
        "none",
    )
    check(logits[::-1], np.array([3, 1] * 12)[::-2], weight, 0.0, "sum")


@pytest.mark.parametrize("soft, weighted, smoothing, reduction", SETTINGS[::3])
def test_results_repeat_and_do_not_depend_on_threads(soft, weighted, smoothing, reduction, monkeypatch):
    monkeypatch.setattr(module, "split_rows", lambda rows, classes, dtype: parallel.split(rows, 14))
    logits, target, weight = operands(301, 17, soft, weighted, 3, np.float32)
    before = parallel.threads()
    results = []
    try:
        for threads in (1, 2, 3, 1):
            parallel.set_threads(threads)
            results.append(kernels.softmax_cross_entropy(logits, target, weight, -100, smoothing, reduction, True))
    finally:
        parallel.set_threads(before)
    for loss, grad in results[1:]:
        np.testing.assert_array_equal(loss, results[0][0])
        np.testing.assert_array_equal(grad, results[0][1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_scale(dtype, monkeypatch):
    monkeypatch.setattr(module, "split_rows", lambda rows, classes, dtype: parallel.split(rows, 3))
    grad = operands(9, 7, True, False)[0].astype(dtype)
    rows = np.linspace(-2, 2, 9).astype(dtype)
    for upstream in (np.array(1.5, dtype), np.array(1, dtype), rows, rows[::-1]):
        scaled = kernels.softmax_cross_entropy_scale(grad, upstream)
        assert scaled.dtype == dtype and not np.shares_memory(scaled, grad)
        wanted = grad.astype(np.float64) * upstream.astype(np.float64).reshape(-1, 1)
        np.testing.assert_array_equal(scaled, wanted.astype(dtype))
        mine = grad.copy()
        assert kernels.softmax_cross_entropy_scale(mine, upstream, in_place=True) is mine
        np.testing.assert_array_equal(mine, scaled)
    assert kernels.softmax_cross_entropy_scale(grad[:0], rows[:0]).shape == (0, 7)
    with pytest.raises(ValueError, match=r"upstream \(\) or \(N,\), got \(9, 7\) and \(3,\)"):
        kernels.softmax_cross_entropy_scale(grad, rows[:3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("soft, weighted, smoothing, reduction", SETTINGS[::5])
def test_gradient_in_place(soft, weighted, smoothing, reduction, dtype):
    logits, target, weight = operands(23, 11, soft, weighted, 4, dtype)
    arguments = (target, weight, -100, smoothing, reduction, True)
    loss, grad = kernels.softmax_cross_entropy(logits, *arguments)
    same_loss, same_grad = kernels.softmax_cross_entropy(logits, *arguments, inplace_grad=True)
    assert same_grad is logits
    np.testing.assert_array_equal(same_loss, loss)
    np.testing.assert_array_equal(logits, grad)


def test_gradient_in_place_of_what_cannot_be_written():
    logits, target, _ = operands(4, 5, False, False)
    read_only = logits.copy()
    read_only.flags.writeable = False
    for wrong, with_grad in ((logits.T.copy().T, True), (read_only, True), (logits, False)):
        with pytest.raises(ValueError, match="softmax_cross_entropy: inplace_grad needs with_grad, and logits that"):
            kernels.softmax_cross_entropy(wrong, target, with_grad=with_grad, inplace_grad=True)


@pytest.mark.parametrize("index", [-1, 5, 2**40])
def test_index_out_of_range(index):
    logits, _, _ = operands(4, 5, False, False)
    target = np.array([0, -100, index, 9])
    copies = logits.copy(), target.copy()
    with pytest.raises(ValueError, match=rf"softmax_cross_entropy: class index {index} in row 2 .* for 5 classes"):
        kernels.softmax_cross_entropy(logits, target)
    np.testing.assert_array_equal(logits, copies[0])
    np.testing.assert_array_equal(target, copies[1])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"logits": np.zeros(5)}, r"logits must have the shape \(N, C\), got \(5,\)"),
        ({"logits": np.zeros((4, 0))}, r"logits need at least one class, got the shape \(4, 0\)"),
        (
            {"target": np.zeros(3, np.int64)},
            r"indices must have the shape \(4,\) for logits \(4, 5\), got \(3,\)",
        ),
        ({"target": np.zeros((4, 1), np.int64)}, r"indices must have the shape \(4,\) .* got \(4, 1\)"),
        ({"target": np.zeros(4)}, r"probabilities must have the logits' shape \(4, 5\), got \(4,\)"),
        ({"weight": np.zeros(4)}, r"weight must have the shape \(5,\), one per class, got \(4,\)"),
        ({"reduction": "average"}, r"reduction must be 'none', 'sum' or 'mean', got 'average'"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be between 0 and 1, got 1.5"),
        ({"label_smoothing": float("nan")}, r"label_smoothing must be between 0 and 1, got nan"),
        (
            {"target": np.zeros((4, 5)), "ignore_index": 1},
            r"ignore_index=1 has no meaning for .* probabilities",
        ),
    ],
    ids=str,
)
def test_wrong_shapes_and_settings(changes, message):
    arguments = {"logits": np.zeros((4, 5)), "target": np.zeros(4, np.int64)} | changes
    with pytest.raises(ValueError, match="^softmax_cross_entropy: .*" + message):
        kernels.softmax_cross_entropy(**arguments)


def test_wrong_types():
    logits, target, _ = operands(4, 5, True, False)
    with pytest.raises(TypeError, match="got: logits is float64, target is float32"):
        kernels.softmax_cross_entropy(logits, target.astype(np.float32))
    with pytest.raises(TypeError, match="got: logits is float64, weight is float32"):
        kernels.softmax_cross_entropy(logits, np.zeros(4, int), np.ones(5, np.float32))
    with pytest.raises(TypeError, match="logits must be float32, float64, float16 or bfloat16, got int64"):
        kernels.softmax_cross_entropy(logits.astype(np.int64), np.zeros(4, int))
    with pytest.raises(TypeError, match="target must be float32, float64, float16 or bfloat16, got bool"):
        kernels.softmax_cross_entropy(logits, np.zeros(4, bool))
