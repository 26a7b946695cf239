import ml_dtypes
import numpy as np
import pytest

from adjoint import kernels
from adjoint.kernels.cpu import conv_choice, parallel, winograd_lines, winograd_tiles

# (x shape, filters, padding, groups)
CASES = [
    ((3, 32, 17, 22), 40, ((1, 1), (1, 1)), 1),
    ((1, 33, 40, 41), 32, ((0, 2), (3, 1)), 1),
    ((20, 40, 10, 6), 36, ((0, 0), (0, 0)), 1),
    ((5, 64, 15, 16), 96, ((5, 0), (0, 4)), 2),
    ((16, 96, 4, 4), 70, ((1, 1), (1, 1)), 1),
    ((1, 32, 6, 300), 32, ((1, 1), (1, 1)), 1),
    ((64, 192, 4, 4), 160, ((1, 1), (1, 1)), 1),
    ((9, 64, 14, 14), 32, ((1, 1), (1, 1)), 1),
    ((80, 32, 1, 2), 32, ((2, 3), (4, 2)), 1),
]
MODULES = {"winograd lines": winograd_lines, "winograd tiles": winograd_tiles}


def settings(padding, groups):
    return (1, 1), padding, (1, 1), groups


def operands(x_shape, k, padding, groups, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    n, channels, h, w = x_shape
    weight_shape = (k, channels // groups, 3, 3)
    y_shape = (n, k, h + sum(padding[0]) - 2, w + sum(padding[1]) - 2)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in (x_shape, weight_shape, y_shape, (k,)))


def run(x, weight, dy, bias, padding, groups):
    arguments = settings(padding, groups)
    return (
        kernels.conv(x, weight, bias, *arguments),
        kernels.conv_input_grad(dy, weight, x.shape, *arguments),
        kernels.conv_weight_grad(dy, x, weight.shape, *arguments),
    )


def exact(x, weight, dy, bias, padding, groups):
    """The three results in float64, one tap at a time."""
    x, weight, dy, bias = (array.astype(np.float64) for array in (x, weight, dy, bias))
    n, k, p, q = dy.shape
    wide = np.pad(x, ((0, 0), (0, 0), *padding))
    grads = dy.reshape(n, groups, k // groups, p * q)
    y, dx, dw = np.zeros_like(dy), np.zeros_like(wide), np.zeros_like(weight)
    for i in range(3):
        for j in range(3):
            tap = weight[:, :, i, j].reshape(groups, k // groups, -1)
            seen = wide[:, :, i : i + p, j : j + q].reshape(n, groups, -1, p * q)
            y += (tap @ seen).reshape(y.shape)
            dw[:, :, i, j] = (grads @ seen.swapaxes(2, 3)).sum(axis=0).reshape(k, -1)
            dx[:, :, i : i + p, j : j + q] += (tap.swapaxes(1, 2) @ grads).reshape(n, -1, p, q)
    (top, _), (left, _) = padding
    return y + bias[:, None, None], dx[:, :, top : top + x.shape[2], left : left + x.shape[3]], dw


def error(got, wanted):
    return np.linalg.norm(got.astype(np.float64) - wanted) / np.linalg.norm(wanted)


def choose(monkeypatch, applies):
    """Have Winograd's ways where `applies` says so."""
    table = [row._replace(applies=applies) if row.way in MODULES else row for row in conv_choice.TABLE]
    monkeypatch.setattr(conv_choice, "TABLE", table)


@pytest.fixture(params=MODULES)
def answers(request, monkeypatch):
    """What one of Winograd's ways, used for any size, answered call by call: whether it had a result."""
    monkeypatch.setattr(conv_choice, "LEAST_PRODUCT", 0)
    monkeypatch.setattr(conv_choice, "MOST_LINE", 1000)
    others = MODULES.keys() - {request.param}
    monkeypatch.setattr(conv_choice, "TABLE", [row for row in conv_choice.TABLE if row.way not in others])
    module = MODULES[request.param]
    given = []

    def watched(real):
        def call(*args, **kwargs):
            result = real(*args, **kwargs)
            given.append(result is not None)
            return result

        return call

    for name in ("forward", "input_grad", "weight_grad"):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    return given


@pytest.mark.parametrize("most_weights", [1000, 1 << 16])
@pytest.mark.parametrize("block_bytes", [1, 100_000, 5 << 18])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_naive_loops(case, block_bytes, most_weights, monkeypatch, answers):
    *_, padding, groups = case
    monkeypatch.setattr(conv_choice, "MOST_WEIGHTS", most_weights)
    monkeypatch.setattr(winograd_tiles, "_LEAST_TILES", min(winograd_tiles._LEAST_TILES, block_bytes))
    given = operands(*case)
    wanted = exact(*given, padding, groups)
    copies = [array.copy() for array in given]
    choose(monkeypatch, lambda problem: True)
    monkeypatch.setattr(conv_choice, "TILE_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(conv_choice, "LINES_BLOCK_BYTES", block_bytes)
    for got, want in zip(run(*given, padding, groups), wanted, strict=True):
        assert got.dtype == np.float32 and got.flags.c_contiguous and got.shape == want.shape
        assert error(got, want) < 1.5e-6
        assert np.abs(got - want).max() < 4e-6 * np.abs(want).max()
    assert answers == [True, True, True]
    for array, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_images_without_rows(answers):
    case = (20, 32, 0, 8), 40, ((5, 5), (1, 1)), 1
    x, weight, dy, bias = operands(*case)
    y, dx, dw = run(x, weight, dy, bias, *case[2:])
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], dy.shape))
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dw, np.zeros_like(weight))
    assert answers == [True, True]


def test_matches_pytorch(answers):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    x, weight, dy, bias = operands((8, 64, 14, 14), 64, ((1, 1), (1, 1)), 1)
    tx, tw, tb = (torch.tensor(array, requires_grad=True) for array in (x, weight, bias))
    ty = torch.nn.functional.conv2d(tx, tw, tb, padding=1)
    ty.backward(torch.tensor(dy))
    for got, want in zip(run(x, weight, dy, bias, ((1, 1), (1, 1)), 1), (ty.detach(), tx.grad, tw.grad), strict=True):
        assert error(got, want.numpy().astype(np.float64)) < 1.5e-6
    assert answers == [True, True, True]


def test_many_channels_keep_their_accuracy(answers):
    case = (2, 512, 24, 24), 64, ((1, 1), (1, 1)), 1
    given = operands(*case)
    for got, want in zip(run(*given, *case[2:]), exact(*given, *case[2:]), strict=True):
        assert error(got, want) < 2e-6
        assert np.abs(got - want).max() < 5e-6 * np.abs(want).max()
    assert answers == [True, True, True]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_half_types_round_once(dtype, answers):
    case = (3, 32, 17, 22), 40, ((1, 1), (1, 1)), 1
    given = operands(*case, dtype)
    step = {"rtol": 0.5 * float(ml_dtypes.finfo(dtype).eps) * 1.001, "atol": 1e-3}
    for got, want in zip(run(*given, *case[2:]), exact(*given, *case[2:]), strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got.astype(np.float64), want, **step)
    assert answers == [True, True, True]


def views(array):
    """The same values behind other strides."""
    yield np.asfortranarray(array)
    yield np.ascontiguousarray(array[::-1, ..., ::-1])[::-1, ..., ::-1]
    yield np.repeat(array, 2, axis=-1)[..., ::2]


def test_any_strides(answers):
    case = (3, 32, 17, 22), 40, ((1, 1), (1, 1)), 1
    given = operands(*case)
    wanted = run(*given, *case[2:])
    for strided in zip(*(views(array) for array in given[:3]), strict=True):
        for got, want in zip(run(*strided, given[3], *case[2:]), wanted, strict=True):
            np.testing.assert_array_equal(got, want)
    assert answers == 12 * [True]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("spoiled", [0, 1, 2])
def test_what_is_not_finite_stays_in_its_place(value, spoiled, answers, monkeypatch):
    case = (4, 32, 18, 22), 40, ((0, 0), (0, 0)), 1
    given = operands(*case)
    given[spoiled][-1, 1, -1, 0] = value
    got = run(*given, *case[2:])
    affected = ([False, True, False], [False, False, True], [True, False, False])[spoiled]
    assert answers == affected
    choose(monkeypatch, lambda problem: False)
    for result, wanted in zip(got, run(*given, *case[2:]), strict=True):
        np.testing.assert_array_equal(np.isfinite(result), np.isfinite(wanted))
        np.testing.assert_allclose(result, wanted, 1e-4, 1e-4)


def test_overflow_on_the_way_is_computed_directly(answers):
    x, weight, _, _ = operands((4, 32, 18, 22), 40, ((0, 0), (0, 0)), 1)
    x[0, 0, 5, 5] = 3e38
    weight[:, 0] *= 0.1
    y = kernels.conv(x, weight, None, *settings(((0, 0), (0, 0)), 1))
    assert answers == [False]
    assert np.isfinite(y).all()
    # Only the windows of the large element see it.
    assert np.abs(np.delete(y[0], [3, 4, 5], axis=1)).max() < 1e3


def test_infinite_bias_stays_in_its_channel(answers):
    case = (3, 32, 17, 22), 40, ((1, 1), (1, 1)), 1
    x, weight, _, bias = operands(*case)
    bias[3] = np.inf
    y = kernels.conv(x, weight, bias, *settings(*case[2:]))
    assert np.isposinf(y[:, 3]).all() and np.isfinite(np.delete(y, 3, axis=1)).all()
    assert answers == [True]


@pytest.mark.parametrize("case", [CASES[0], CASES[3], ((9, 256, 14, 14), 256, ((1, 1), (1, 1)), 1)], ids=str)
def test_results_repeat_and_do_not_depend_on_threads(case, answers):
    given = operands(*case)
    before = parallel.threads()
    wanted = run(*given, *case[2:])
    try:
        for threads in (1, 2, 3, 2):
            parallel.set_threads(threads)
            for got, want in zip(run(*given, *case[2:]), wanted, strict=True):
                np.testing.assert_array_equal(got, want)
    finally:
        parallel.set_threads(before)
    assert answers == 15 * [True]
