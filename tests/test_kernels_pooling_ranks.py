"""The NumPy kernels of pooling in one, two and three axes, adaptive, by norms and back, against naive loops."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_pooling import Adaptive, Windows, averages, maxima, norms, scattered, unpooled

from adjoint import kernels
from adjoint.kernels.cpu import parallel

HALVES = [np.float16, ml_dtypes.bfloat16]

# (shape, kernel_size, stride, padding, dilation, ceil_mode)
CASES = [
    ((2, 3, 16), (2,), (2,), (0,), (1,), False),
    ((2, 3, 15), (3,), (2,), (1,), (1,), True),
    ((1, 2, 17), (4,), (1,), (2,), (2,), False),
    ((2, 2, 40), (5,), (7,), (0,), (1,), False),
    ((2, 2, 40), (9,), (20,), (4,), (1,), True),
    ((2, 3, 11), (11,), (1,), (0,), (1,), False),
    ((2, 2, 6, 8, 10), (2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1), False),
    ((1, 2, 7, 6, 9), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), False),
    ((1, 2, 6, 7, 5), (3, 2, 3), (2, 1, 3), (1, 1, 0), (1, 2, 1), True),
    ((2, 1, 5, 4, 4), (1, 2, 2), (1, 2, 2), (0, 0, 0), (1, 1, 1), False),
    ((1, 2, 7, 5, 6), (2, 1, 1), (3, 1, 1), (0, 0, 0), (1, 1, 1), True),
    ((2, 2, 4, 5, 6), (4, 5, 6), (4, 5, 6), (0, 0, 0), (1, 1, 1), False),
    ((1, 2, 10, 11, 12), (2, 3, 4), (5, 5, 5), (0, 0, 0), (1, 1, 1), False),
    ((1, 2, 9, 10, 9), (3, 3, 3), (4, 5, 4), (1, 1, 1), (1, 1, 1), False),
    ((2, 3, 17), (3,), (3,), (0,), (1,), False),
    ((1, 3, 5, 4, 7), (2, 1, 3), (2, 1, 3), (0, 0, 0), (1, 1, 1), False),
]
AVERAGES = [case for case in CASES if set(case[4]) == {1}]
UNPADDED = [case for case in AVERAGES if not any(case[3])] + [((1, 2, 7, 5), (3, 2), (2, 2), (0, 0), (1, 1), True)]
# (shape, output_size)
ADAPTIVE = [
    ((2, 3, 10), (4,)), ((2, 3, 5), (8,)), ((1, 2, 7), (1,)),
    ((2, 2, 7, 9), (3, 4)), ((1, 2, 4, 5), (6, 3)), ((2, 2, 6, 8), (3, 4)), ((2, 1, 5, 5), (5, 2)),
    ((1, 2, 5, 6, 7), (2, 4, 3)), ((1, 1, 3, 4, 2), (4, 3, 5)), ((2, 2, 4, 4, 4), (1, 1, 1)),
]  # fmt: skip


def random(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def windows_of(case, y):
    return Windows(case[0][2:], y.shape[2:], *case[1:5])


def check_max(x, case):
    copy = x.copy()
    y, offsets = kernels.max_pool(x, *case[1:])
    wanted, numbers, positions = maxima(x, windows_of(case, y))
    np.testing.assert_array_equal(y.astype(np.float64), wanted)
    np.testing.assert_array_equal(offsets, numbers)
    indices = kernels.max_pool_indices(offsets, x.shape, *case[1:5])
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(indices, positions)
    np.testing.assert_array_equal(kernels.max_pool_gather(x, offsets, *case[1:5]), y)
    dy = random(y.shape, 1, x.dtype)
    dx = kernels.max_pool_scatter(dy, offsets, x.shape, *case[1:5])
    np.testing.assert_allclose(dx.astype(np.float64), scattered(dy, positions, x.shape[2:]), 1e-6, 1e-6)
    assert y.dtype == dx.dtype == x.dtype and y.flags.c_contiguous and dx.flags.c_contiguous
    np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_max(case, dtype):
    check_max(random(case[0], dtype=dtype), case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_max_of_ties_nan_and_infinities(case):
    rng = np.random.default_rng(1)
    check_max(rng.integers(0, 3, case[0]).astype(np.float32), case)
    check_max(rng.choice(np.array([-np.inf, np.inf, np.nan, 0.0], np.float32), case[0]), case)
    check_max(np.full(case[0], -np.inf), case)


@pytest.mark.parametrize("include, override", [(True, None), (False, None), (True, -3)])
@pytest.mark.parametrize("case", AVERAGES, ids=str)
def test_average(case, include, override):
    x = random(case[0])
    settings = (*case[1:4], case[5], include, override)
    y = kernels.avg_pool(x, *settings)
    dy = random(y.shape, 1)
    wanted = averages(x, dy, windows_of(case, y), include, override)
    np.testing.assert_allclose(y, wanted[0], atol=1e-12)
    np.testing.assert_allclose(kernels.avg_pool_input_grad(dy, x.shape, *settings), wanted[1], atol=1e-12)


@pytest.mark.parametrize("p", [1, 2, 3, 2.5, -1])
@pytest.mark.parametrize("case", UNPADDED, ids=str)
def test_norms(case, p):
    x = random(case[0])
    x = np.abs(x) + 0.1 if p in (2.5, -1) else x
    x[0, 0] = 0 if p > 0 else 1
    settings = (p, *case[1:3], case[5])
    y = kernels.lp_pool(x, *settings)
    dy = random(y.shape, 1)
    with np.errstate(invalid="ignore"):
        wanted = norms(x, dy, windows_of(case, y), p)
    np.testing.assert_allclose(y, wanted[0], atol=1e-12)
    np.testing.assert_allclose(kernels.lp_pool_input_grad(dy, x, y, *settings), wanted[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["numbers", "ties", "unknown"])
@pytest.mark.parametrize("shape, output", ADAPTIVE, ids=str)
def test_adaptive_max(shape, output, kind):
    rng = np.random.default_rng(2)
    x = {
        "numbers": random(shape),
        "ties": rng.integers(-1, 2, shape).astype(np.float64),
        "unknown": rng.choice(np.array([np.nan, 1.0, -np.inf, np.inf]), shape, p=[0.1, 0.4, 0.3, 0.2]),
    }[kind]
    y, indices = kernels.adaptive_max_pool(x, output)
    wanted, _, positions = maxima(x, Adaptive(shape[2:], output))
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(indices, positions)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(kernels.adaptive_max_pool_gather(x, indices), y)
    dy = random(y.shape, 3)
    dx = kernels.adaptive_max_pool_scatter(dy, indices, shape)
    np.testing.assert_allclose(dx, scattered(dy, positions, shape[2:]), atol=1e-12)


@pytest.mark.parametrize("shape, output", ADAPTIVE, ids=str)
def test_adaptive_average(shape, output):
    x = random(shape)
    y = kernels.adaptive_avg_pool(x, output)
    dy = random(y.shape, 1)
    wanted = averages(x, dy, Adaptive(shape[2:], output), include_pad=False)
    np.testing.assert_allclose(y, wanted[0], atol=1e-12)
    np.testing.assert_allclose(kernels.adaptive_avg_pool_input_grad(dy, shape), wanted[1], atol=1e-12)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("shape, output", [row for row in ADAPTIVE if row[1] != (1,) * len(row[1])], ids=str)
def test_an_adaptive_average_that_is_not_finite_stays_in_its_windows(shape, output, value):
    x = random(shape)
    x[0, 0, ..., 0] = value
    y = kernels.adaptive_avg_pool(x, output)
    wanted, _ = averages(x, np.zeros(y.shape), Adaptive(shape[2:], output), include_pad=False)
    np.testing.assert_allclose(y, wanted)
    dy = random(y.shape)
    dy[0, 0, ..., 0] = value
    _, wanted = averages(x, dy, Adaptive(shape[2:], output), include_pad=False)
    np.testing.assert_allclose(kernels.adaptive_avg_pool_input_grad(dy, shape), wanted, atol=1e-12)


@pytest.mark.parametrize("size", [(9,), (4, 5), (3, 2, 4)], ids=str)
def test_unpool_keeps_the_last_of_several(size):
    rng = np.random.default_rng(0)
    shape = (2, 3, *(n // 2 + 1 for n in size))
    x, indices = random(shape), rng.integers(0, np.prod(size), shape)
    y = kernels.max_unpool(x, indices, size)
    wanted, kept = unpooled(x, indices, size)
    assert not kept.all()
    np.testing.assert_array_equal(y, wanted)
    dy = random(y.shape, 1)
    taken = np.take_along_axis(dy.reshape(2, 3, -1), indices.reshape(2, 3, -1), 2).reshape(shape)
    np.testing.assert_array_equal(kernels.max_unpool_input_grad(dy, indices), np.where(kept, taken, 0))


def test_unpool_undoes_max_pooling():
    x = random((2, 3, 8, 6, 4))
    window = ((2, 3, 2), (2, 3, 2), (0, 0, 0), (1, 1, 1))
    y, offsets = kernels.max_pool(x, *window)
    indices = kernels.max_pool_indices(offsets, x.shape, *window)
    back = kernels.max_unpool(y, indices, x.shape[2:])
    np.testing.assert_array_equal(back, np.where(back == x, x, 0))
    assert np.count_nonzero(back) == y.size


@pytest.mark.parametrize("index", [-1, 12])
def test_unpool_of_a_position_outside(index):
    x, indices = np.ones((1, 1, 2, 2)), np.full((1, 1, 2, 2), index)
    with pytest.raises(ValueError, match=r"max_unpool: indices must be positions in a plane of 12 elements"):
        kernels.max_unpool(x, indices, (3, 4))


@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("case", [CASES[1], CASES[6], CASES[7], CASES[12]], ids=str)
def test_half_types_round_once(case, dtype):
    x = random(case[0], dtype=dtype)
    wide = x.astype(np.float32)
    y, offsets = kernels.max_pool(x, *case[1:])
    dy = random(y.shape, 1, dtype)
    wide_dy = dy.astype(np.float32)
    pairs = [
        (kernels.max_pool_scatter(a, offsets, x.shape, *case[1:5]) for a in (dy, wide_dy)),
        (kernels.avg_pool(a, *case[1:4], case[5]) for a in (x, wide)),
        (kernels.avg_pool_input_grad(a, x.shape, *case[1:4], case[5], True, None) for a in (dy, wide_dy)),
        (kernels.adaptive_avg_pool(a, (3,) * (x.ndim - 2)) for a in (x, wide)),
    ]
    if not any(case[3]):
        norm = (2, *case[1:3], case[5])
        pairs.append(kernels.lp_pool(a, *norm) for a in (x, wide))
    for half, exact in pairs:
        assert half.dtype == dtype
        np.testing.assert_array_equal(half, exact.astype(dtype))


@pytest.mark.parametrize("case", [CASES[2], CASES[6], CASES[7]], ids=str)
def test_any_strides(case):
    x = random(case[0])
    for view in (np.asfortranarray(x), x[..., ::-1], np.repeat(x, 2, 1)[:, ::2], np.broadcast_to(x[:1], x.shape)):
        check_max(view, case)
        plain = np.ascontiguousarray(view)
        output = (3,) * (x.ndim - 2)
        np.testing.assert_allclose(kernels.adaptive_avg_pool(view, output), kernels.adaptive_avg_pool(plain, output))
        norm = (2.0, case[1], case[2])
        np.testing.assert_array_equal(kernels.lp_pool(view, *norm), kernels.lp_pool(plain, *norm))


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8, 8), (0, 1, 4, 4, 4)])
def test_empty(shape):
    rank = len(shape) - 2
    two, zero, one = (2,) * rank, (0,) * rank, (1,) * rank
    x = np.zeros(shape)
    y, offsets = kernels.max_pool(x, two, two, zero, one)
    assert y.shape == offsets.shape == (*shape[:2], *(n // 2 for n in shape[2:]))
    assert kernels.max_pool_scatter(y, offsets, shape, two, two, zero, one).shape == shape
    assert kernels.avg_pool_input_grad(y, shape, two, two, zero, False, True, None).shape == shape
    assert kernels.lp_pool_input_grad(y, x, y, 2, two, two, False).shape == shape
    y, indices = kernels.adaptive_max_pool(x, (3,) * rank)
    assert kernels.adaptive_max_pool_scatter(y, indices, shape).shape == shape
    assert kernels.adaptive_avg_pool_input_grad(y, shape).shape == shape
    assert kernels.max_unpool(y, indices, shape[2:]).shape == shape


def test_adaptive_pooling_to_nothing():
    x = random((2, 3, 4, 5))
    y, indices = kernels.adaptive_max_pool(x, (0, 2))
    assert y.shape == indices.shape == kernels.adaptive_avg_pool(x, (0, 2)).shape == (2, 3, 0, 2)
    assert not kernels.adaptive_avg_pool_input_grad(y, x.shape).any()
    assert not kernels.adaptive_max_pool_scatter(y, indices, x.shape).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.data())
def test_any_setting(rank, data):
    def sizes(low, high):
        return data.draw(st.tuples(*[st.integers(low, high)] * rank))

    shape, kernel, stride, dilation = (2, 2, *sizes(3, 8)), sizes(1, 3), sizes(1, 6), sizes(1, 2)
    padding = tuple(k // 2 for k in kernel) if data.draw(st.booleans()) else (0,) * rank
    ceil = data.draw(st.booleans())
    x = np.random.default_rng(0).integers(-3, 4, shape).astype(np.float64)
    try:
        kernels.max_pool(x, kernel, stride, padding, dilation, ceil)
    except ValueError:
        return
    check_max(x, (shape, kernel, stride, padding, dilation, ceil))
    y = kernels.avg_pool(x, kernel, stride, padding, ceil)
    dy = random(y.shape)
    wanted = averages(x, dy, Windows(shape[2:], y.shape[2:], kernel, stride, padding))
    np.testing.assert_allclose(y, wanted[0], atol=1e-9)
    dx = kernels.avg_pool_input_grad(dy, shape, kernel, stride, padding, ceil, True, None)
    np.testing.assert_allclose(dx, wanted[1], atol=1e-9)


@pytest.mark.parametrize("case", [CASES[1], CASES[7], ((2, 7, 9, 8), (3, 2), (2, 2), (0, 0), (1, 1), False)], ids=str)
def test_threads_do_not_matter(case):
    x = random((3, 5, *case[0][2:]), dtype=np.float32)

    def run():
        y, indices = kernels.adaptive_max_pool(x, (2,) * (x.ndim - 2))
        norm = (2, *case[1:3], False)
        p = kernels.lp_pool(x, *norm)
        return y, indices, kernels.max_pool(x, *case[1:])[0], p, kernels.lp_pool_input_grad(p, x, p, *norm)

    before, results = parallel.threads(), []
    try:
        for threads in (1, 3):
            parallel.set_threads(threads)
            results.append(run())
    finally:
        parallel.set_threads(before)
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)


BAD = {
    "rank": (lambda x: kernels.max_pool(x, (2,), (2,), (0,), (1,)), r"max_pool1d: input must have .* \(N, C, L\)"),
    "no tuple": (lambda x: kernels.avg_pool(x, 2, 2, 0), "avg_pool: kernel_size must be a tuple of one to three"),
    "stride": (lambda x: kernels.avg_pool(x, (2, 2), (2,), (0, 0)), "avg_pool2d: stride must be two integers"),
    "norm": (lambda x: kernels.lp_pool(x, 0, (2, 2), (2, 2)), "lp_pool2d: norm_type must not be 0"),
    "y": (
        lambda x: kernels.lp_pool_input_grad(np.ones((1, 2, 2, 2)), x, x, 2, (2, 2), (2, 2), False),
        r"lp_pool2d_input_grad: y must have the shape \(1, 2, 2, 2\), got \(1, 2, 4, 4\)",
    ),
    "output": (lambda x: kernels.adaptive_avg_pool(x, (2, -1)), "adaptive_avg_pool2d: output_size must be two"),
    "grad": (lambda x: kernels.adaptive_avg_pool_input_grad(x, (1, 3, 8, 8)), r"pool2d_input_grad: .*\(1, 3, 4, 4\)"),
    "indices": (
        lambda x: kernels.max_unpool(x, np.zeros((1, 2, 4, 3), int), (8, 8)),
        r"max_unpool2d: indices must have the shape \(1, 2, 4, 4\)",
    ),
    "channels": (
        lambda x: kernels.max_unpool_input_grad(x, np.zeros((1, 3, 4, 4), int)),
        r"max_unpool2d_input_grad: indices must have the batch and channels \(1, 2\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_wrong_settings(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(np.ones((1, 2, 4, 4)))


def test_wrong_types():
    x = np.ones((1, 2, 4, 4))
    with pytest.raises(TypeError, match="max_unpool2d: indices must be int64, got int32"):
        kernels.max_unpool(x, np.zeros(x.shape, np.int32), (8, 8))
    with pytest.raises(TypeError, match="lp_pool2d: norm_type must be a number, got str"):
        kernels.lp_pool(x, "2", (2, 2), (2, 2))
    for operation in (kernels.adaptive_avg_pool, kernels.adaptive_max_pool):
        with pytest.raises(TypeError, match=r"adaptive_.*_pool2d: x must be float32"):
            operation(x.astype(int), (2, 2))
