import importlib
import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adjoint import kernels
from adjoint.kernels.cpu import parallel

windows = importlib.import_module("adjoint.kernels.cpu.windows")
side_by_side = importlib.import_module("adjoint.kernels.cpu.side_by_side")

# (shape, kernel_size, stride, padding, dilation, ceil_mode)
CASES = [
    ((2, 3, 8, 8), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 3, 9, 7), (2, 2), (2, 2), (0, 0), (1, 1), False),
    ((2, 3, 9, 7), (2, 2), (2, 2), (0, 0), (1, 1), True),
    ((3, 2, 12, 11), (3, 3), (2, 2), (1, 1), (1, 1), False),
    ((3, 2, 12, 11), (3, 3), (2, 2), (1, 1), (1, 1), True),
    ((2, 2, 9, 8), (3, 2), (2, 1), (1, 1), (1, 2), True),
    ((2, 2, 7, 9), (3, 3), (1, 1), (1, 1), (1, 1), False),
    ((2, 2, 11, 12), (3, 2), (2, 3), (1, 0), (2, 3), False),
    ((2, 2, 9, 9), (2, 3), (4, 5), (0, 1), (1, 1), True),
    ((2, 3, 7, 7), (7, 7), (7, 7), (0, 0), (1, 1), False),
    ((1, 2, 20, 19), (5, 6), (5, 6), (2, 1), (1, 1), True),
    ((1, 1, 18, 17), (17, 16), (1, 1), (2, 3), (1, 1), False),
    ((1, 1, 2, 2), (3, 3), (2, 2), (0, 0), (1, 1), True),
    ((2, 1, 5, 6), (1, 1), (1, 1), (0, 0), (1, 1), False),
    ((2, 2, 17, 16), (4, 5), (5, 5), (0, 0), (1, 1), False),
    ((1, 2, 12, 15), (6, 5), (6, 5), (0, 0), (1, 1), True),
    ((2, 2, 11, 9), (3, 3), (3, 3), (0, 0), (1, 1), False),
    ((2, 3, 6, 9), (1, 4), (1, 4), (0, 0), (1, 1), False),
    ((2, 3, 9, 6), (4, 1), (4, 1), (0, 0), (1, 1), False),
]
AVERAGES = [case for case in CASES if case[4] == (1, 1)]


def naive(x, shape, kernel_size, stride, padding, dilation=(1, 1)):
    """For each output its index and its window: [(offset, row, column)] of what lies inside the input."""
    h, w = x.shape[2:]
    for p, q in itertools.product(range(shape[2]), range(shape[3])):
        window = []
        for i, j in itertools.product(range(kernel_size[0]), range(kernel_size[1])):
            row, column = (
                p * stride[0] - padding[0] + i * dilation[0],
                q * stride[1] - padding[1] + j * dilation[1],
            )
            if 0 <= row < h and 0 <= column < w:
                window.append((i * kernel_size[1] + j, row, column))
        yield (slice(None), slice(None), p, q), window


def naive_max(x, shape, kernel_size, stride, padding, dilation, ceil_mode):
    y, offsets = np.empty(shape, x.dtype), np.empty(shape, np.int64)
    for out, window in naive(x, shape, kernel_size, stride, padding, dilation):
        values = np.stack([x[:, :, row, column] for _, row, column in window])
        first = values.argmax(axis=0)
        # Of several NaN the last wins.
        last = len(window) - 1 - np.isnan(values[::-1]).argmax(axis=0)
        pick = np.where(np.isnan(values).any(axis=0), last, first)
        y[out] = np.take_along_axis(values, pick[None], 0)[0]
        offsets[out] = np.array([offset for offset, _, _ in window])[pick]
    return y, offsets


def naive_scatter(dy, offsets, x_shape, kernel_size, stride, padding, dilation, ceil_mode):
    dx = np.zeros(x_shape)
    for out, window in naive(dx, dy.shape, kernel_size, stride, padding, dilation):
        for offset, row, column in window:
            dx[:, :, row, column] += np.where(offsets[out] == offset, dy[out], 0)
    return dx


def check_max(x, *arguments, seed=0):
    copy = x.copy()
    y, offsets = kernels.max_pool(x, *arguments)
    wanted, positions = naive_max(x, y.shape, *arguments)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(offsets, positions)
    assert y.dtype == x.dtype and y.flags.c_contiguous and offsets.flags.c_contiguous
    dy = np.random.default_rng(seed).standard_normal(y.shape).astype(x.dtype)
    dx = kernels.max_pool_scatter(dy, offsets, x.shape, *arguments[:-1])
    assert dx.dtype == x.dtype and dx.flags.c_contiguous
    np.testing.assert_allclose(dx, naive_scatter(dy, offsets, x.shape, *arguments), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(kernels.max_pool_gather(x, offsets, *arguments[:-1]), y)
    indices = kernels.max_pool_indices(offsets, x.shape, *arguments[:-1])
    assert indices.dtype == np.int64
    n, c, _, _ = np.indices(y.shape)
    np.testing.assert_array_equal(x[n, c, indices // x.shape[3], indices % x.shape[3]], y)
    np.testing.assert_array_equal(x, copy)


def random(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_max_matches_naive_loops(case, dtype):
    check_max(random(case[0], dtype=dtype), *case[1:])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_max_of_ties_nan_and_infinities(case):
    rng = np.random.default_rng(1)
    check_max(rng.integers(0, 3, case[0]).astype(np.float32), *case[1:])
    check_max(rng.choice(np.array([-np.inf, np.inf, np.nan, 0.0], np.float32), case[0]), *case[1:])
    check_max(np.full(case[0], -np.inf), *case[1:])
    x = random(case[0])
    x[0, 0, -1, -1] = np.nan
    x[-1, -1] = -np.inf
    check_max(x, *case[1:])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_max_matches_pytorch(case):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    rng = np.random.default_rng(2)
    for x in (random(case[0]), rng.choice(np.array([0.0, 1.0, -np.inf, np.nan]), case[0])):
        tx = torch.tensor(x, requires_grad=True)
        ty, indices = torch.nn.functional.max_pool2d(tx, *case[1:], return_indices=True)
        y, offsets = kernels.max_pool(x, *case[1:])
        np.testing.assert_array_equal(y, ty.detach())
        np.testing.assert_array_equal(kernels.max_pool_indices(offsets, case[0], *case[1:5]), indices)
        dy = random(y.shape, 3)
        ty.backward(torch.tensor(dy))
        np.testing.assert_allclose(kernels.max_pool_scatter(dy, offsets, case[0], *case[1:5]), tx.grad, atol=1e-12)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_gradient_that_is_not_finite_stays_in_its_place(case, value):
    x = random(case[0])
    y, offsets = kernels.max_pool(x, *case[1:])
    dy = random(y.shape, 1)
    dy[0, 0, 0, 0] = value
    dx = kernels.max_pool_scatter(dy, offsets, case[0], *case[1:5])
    np.testing.assert_allclose(dx, naive_scatter(dy, offsets, case[0], *case[1:]), atol=1e-12)
    assert np.count_nonzero(~np.isfinite(dx)) == 1


def naive_avg(x, shape, kernel_size, stride, padding, count_include_pad, divisor_override):
    """y in float64, and the linear map's transpose."""
    y, parts = np.empty(shape), []
    for out, window in naive(x, shape, kernel_size, stride, padding):
        divisor = divisor_override or len(window)
        if count_include_pad and not divisor_override:
            starts = [out[2 + a] * stride[a] - padding[a] for a in (0, 1)]
            stops = [min(starts[a] + kernel_size[a], x.shape[2 + a] + padding[a]) for a in (0, 1)]
            divisor = (stops[0] - starts[0]) * (stops[1] - starts[1])
        y[out] = sum(x[:, :, row, column].astype(np.float64) for _, row, column in window) / divisor
        parts.append((out, window, divisor))

    def transposed(dy):
        dx = np.zeros(x.shape)
        for out, window, divisor in parts:
            for _, row, column in window:
                dx[:, :, row, column] += dy[out].astype(np.float64) / divisor
        return dx

    return y, transposed


def check_avg(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, rtol=1e-9, atol=1e-9):
    arguments = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    y = kernels.avg_pool(x, *arguments)
    wanted, transposed = naive_avg(x, y.shape, kernel_size, stride, padding, count_include_pad, divisor_override)
    np.testing.assert_allclose(y.astype(np.float64), wanted, rtol, atol)
    dy = random(y.shape, 4, x.dtype)
    dx = kernels.avg_pool_input_grad(dy, x.shape, *arguments)
    np.testing.assert_allclose(dx.astype(np.float64), transposed(dy), rtol, atol)
    assert y.dtype == dx.dtype == x.dtype and y.flags.c_contiguous and dx.flags.c_contiguous


@pytest.mark.parametrize("count_include_pad, divisor_override", [(True, None), (False, None), (True, 5), (False, -3)])
@pytest.mark.parametrize("case", AVERAGES, ids=str)
def test_avg_matches_naive_loops(case, count_include_pad, divisor_override):
    shape, kernel_size, stride, padding, _, ceil_mode = case
    check_avg(random(shape), kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@pytest.mark.parametrize("count_include_pad, divisor_override", [(True, None), (False, None), (True, 5)])
@pytest.mark.parametrize("case", AVERAGES, ids=str)
def test_avg_matches_pytorch(case, count_include_pad, divisor_override):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    shape, kernel_size, stride, padding, _, ceil_mode = case
    arguments = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    x = random(shape)
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.avg_pool2d(tx, *arguments)
    np.testing.assert_allclose(kernels.avg_pool(x, *arguments), ty.detach(), atol=1e-12)
    dy = random(ty.shape, 1)
    ty.backward(torch.tensor(dy))
    np.testing.assert_allclose(kernels.avg_pool_input_grad(dy, shape, *arguments), tx.grad, atol=1e-12)


small = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(1, 9), st.integers(1, 9)), small,
    st.tuples(st.integers(1, 6), st.integers(1, 6)), st.tuples(st.integers(0, 2), st.integers(0, 2)), small,
    st.booleans(), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_any_setting(shape, kernel_size, stride, padding, dilation, ceil_mode, include, seed):
    assume(padding[0] <= kernel_size[0] // 2 and padding[1] <= kernel_size[1] // 2)
    values = np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float64)
    pooled = [
        (n + 2 * p - d * (k - 1) - 1 + (s - 1) * ceil_mode) // s + 1
        for n, k, s, p, d in zip(shape[2:], kernel_size, stride, padding, dilation, strict=True)
    ]
    if min(pooled) >= 1 and all(n >= d or p == 0 for n, p, d in zip(shape[2:], padding, dilation, strict=True)):
        check_max(values, kernel_size, stride, padding, dilation, ceil_mode, seed=seed)
    if all(n + 2 * p >= k for n, k, p in zip(shape[2:], kernel_size, padding, strict=True)):
        check_avg(values, kernel_size, stride, padding, ceil_mode, include, None)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pieces_of_any_size_on_any_threads(case, monkeypatch):
    shape = (case[0][0], 5, *case[0][2:])
    x = random(shape, dtype=np.float32)

    def run():
        y, offsets = kernels.max_pool(x, *case[1:])
        dx = kernels.max_pool_scatter(y, offsets, shape, *case[1:5])
        return y, offsets, dx

    wanted = run()
    before = parallel.threads()
    try:
        for threads, size in itertools.product((1, 3), (1, 5000)):
            parallel.set_threads(threads)
            monkeypatch.setattr(windows, "_PIECE_BYTES", size)
            monkeypatch.setattr(side_by_side, "_PIECE_BYTES", size)
            for got, want in zip(run(), wanted, strict=True):
                np.testing.assert_array_equal(got, want)
    finally:
        parallel.set_threads(before)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("case", AVERAGES, ids=str)
def test_half_types(case, dtype):
    shape, kernel_size, stride, padding, _, ceil_mode = case
    x = random(shape, dtype=dtype)
    y, offsets = kernels.max_pool(x, *case[1:])
    wide, same = kernels.max_pool(x.astype(np.float32), *case[1:])
    np.testing.assert_array_equal(y, wide.astype(dtype))
    np.testing.assert_array_equal(offsets, same)
    dy = random(y.shape, 1, dtype)
    exact = kernels.max_pool_scatter(dy.astype(np.float32), offsets, shape, *case[1:5])
    np.testing.assert_array_equal(kernels.max_pool_scatter(dy, offsets, shape, *case[1:5]), exact.astype(dtype))
    step = 0.5 * float(ml_dtypes.finfo(dtype).eps) * 1.001
    check_avg(x, kernel_size, stride, padding, ceil_mode, True, None, rtol=step, atol=1e-6)


@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[9]], ids=str)
def test_any_strides(case):
    x = random(case[0])
    for view in (
        np.asfortranarray(x),
        x[:, :, ::-1, ::-1],
        np.repeat(x, 2, 1)[:, ::2],
        np.broadcast_to(x[:1], x.shape),
    ):
        check_max(view, *case[1:])
        check_avg(view, *case[1:4], case[5], True, None)
        y, offsets = kernels.max_pool(view, *case[1:])
        turned = kernels.max_pool_scatter(y[::-1], offsets[::-1], case[0], *case[1:5])
        np.testing.assert_array_equal(turned, kernels.max_pool_scatter(y, offsets, case[0], *case[1:5])[::-1])


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)])
def test_empty(shape):
    y, offsets = kernels.max_pool(np.zeros(shape), (2, 2), (2, 2), (0, 0), (1, 1))
    assert y.shape == offsets.shape == (*shape[:2], 2, 2)
    assert kernels.max_pool_scatter(y, offsets, shape, (2, 2), (2, 2), (0, 0), (1, 1)).shape == shape
    assert kernels.avg_pool(np.zeros(shape), (2, 2), (2, 2), (0, 0)).shape == y.shape


@pytest.mark.parametrize("kernel, dtype", [((16, 16), np.uint8), ((16, 17), np.int16), ((200, 200), np.int32)])
def test_type_of_the_offsets(kernel, dtype):
    x = random((1, 1, *kernel), dtype=np.float32)
    y, offsets = kernels.max_pool(x, kernel, (1, 1), (0, 0), (1, 1))
    assert offsets.dtype == dtype and offsets.item() == x.argmax() and y.item() == x.max()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stride": (0, 1)}, r"stride must be two integers of at least 1, got \(0, 1\)"),
        ({"kernel_size": (0, 2)}, r"kernel_size must be two integers of at least 1, got \(0, 2\)"),
        (
            {"padding": (2, 0)},
            r"padding must be at most half the kernel, got padding 2 and kernel 3 in height",
        ),
        ({"padding": (0, -1)}, r"padding must be two integers of at least 0, got \(0, -1\)"),
        (
            {"kernel_size": (6, 3)},
            r"the kernel is larger than the padded input: height 6 .* over 5 \(input 5",
        ),
        ({"x": np.zeros((3, 5, 5))}, r"input must have the shape \(N, C, H, W\), got \(3, 5, 5\)"),
        ({"x": np.zeros((1, 3, 0, 5))}, r"input needs at least one element in height, got \(1, 3, 0, 5\)"),
    ],
    ids=str,
)
def test_wrong_shapes_and_settings(changes, message):
    arguments = {"x": np.zeros((1, 3, 5, 5)), "kernel_size": (3, 3), "stride": (2, 2), "padding": (0, 0)} | changes
    with pytest.raises(ValueError, match=f"^max_pool2d: {message}"):
        kernels.max_pool(**arguments, dilation=(1, 1))
    with pytest.raises(ValueError, match=f"^avg_pool2d: {message}"):
        kernels.avg_pool(**arguments)


def test_other_wrong_settings():
    x = np.zeros((1, 1, 1, 4))
    with pytest.raises(ValueError, match=r"max_pool2d: dilation must be two integers of at least 1, got \(0, 1\)"):
        kernels.max_pool(x, (1, 1), (1, 1), (0, 0), (0, 1))
    with pytest.raises(ValueError, match="max_pool2d: a window holds no element of the input: height 1 with kernel 2"):
        kernels.max_pool(x, (2, 1), (1, 1), (1, 0), (2, 1))
    with pytest.raises(ValueError, match="avg_pool2d: divisor_override must be an integer other than 0, got 0"):
        kernels.avg_pool(x, (1, 1), (1, 1), (0, 0), divisor_override=0)
    with pytest.raises(TypeError, match="max_pool2d: x must be float32, float64, float16 or bfloat16, got int32"):
        kernels.max_pool(x.astype(np.int32), (1, 1), (1, 1), (0, 0), (1, 1))


def test_gradients_that_do_not_belong():
    x = np.zeros((1, 1, 6, 6))
    _, offsets = kernels.max_pool(x, (2, 2), (2, 2), (0, 0), (1, 1))
    arguments = ((2, 2), (2, 2), (0, 0))
    with pytest.raises(ValueError, match=r"max_pool2d_scatter: the gradient must have the shape \(1, 1, 3, 3\)"):
        kernels.max_pool_scatter(np.zeros((1, 1, 3, 2)), offsets, x.shape, *arguments, (1, 1))
    message = r"max_pool2d_gather: the pooled shape \(1, 1, 3, 3\) does not belong to the input \(1, 1, 8, 8\)"
    with pytest.raises(ValueError, match=message):
        kernels.max_pool_gather(np.zeros((1, 1, 8, 8)), offsets, *arguments, (1, 1))
    with pytest.raises(TypeError, match="max_pool2d_indices: offsets must be uint8, int16 or int32, got int64"):
        kernels.max_pool_indices(offsets.astype(np.int64), x.shape, *arguments, (1, 1))
    with pytest.raises(ValueError, match=r"avg_pool2d_input_grad: the gradient must have the shape \(1, 1, 3, 3\)"):
        kernels.avg_pool_input_grad(np.zeros((1, 1, 2, 3)), x.shape, *arguments, False, True, None)
