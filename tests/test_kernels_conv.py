import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_conv import naive

from adjoint import kernels
from adjoint.kernels.cpu import conv_choice, images, interleaved, parallel, scratch

ZEROS = ((0, 0), (0, 0))
PLAIN = ((1, 1), ZEROS, (1, 1), 1)

# (x shape, weight shape, stride, padding, dilation, groups)
CASES = [
    ((2, 3, 8, 9), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((5, 1, 12, 12), (6, 1, 5, 5), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((3, 6, 14, 14), (16, 6, 5, 5), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 4, 9, 8), (6, 2, 3, 2), (2, 1), ((1, 0), (2, 1)), (1, 2), 2),
    ((2, 8, 7, 7), (8, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 8),
    ((2, 6, 9, 9), (12, 1, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 6),
    ((2, 3, 9, 10), (6, 1, 3, 2), (1, 1), ((2, 0), (0, 1)), (2, 1), 3),
    ((2, 4, 6, 6), (4, 1, 2, 2), (1, 1), ((3, 0), (0, 3)), (1, 1), 4),
    ((2, 5, 6, 7), (7, 5, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 5, 6, 7), (7, 5, 1, 1), (2, 3), ((1, 0), (0, 2)), (1, 1), 1),
    ((1, 2, 3, 3), (3, 2, 1, 1), (1, 1), ((2, 2), (2, 2)), (1, 1), 1),
    ((2, 3, 4, 4), (2, 3, 4, 4), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 3, 17, 5), (4, 3, 7, 1), (3, 1), ((3, 3), (0, 0)), (2, 1), 1),
    ((1, 70, 9, 9), (66, 70, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((2, 40, 13, 13), (48, 40, 3, 3), (2, 2), ((0, 1), (1, 0)), (1, 1), 1),
    ((1, 1, 5, 5), (1, 1, 2, 2), (1, 1), ((4, 0), (0, 4)), (1, 1), 1),
    # Several blocks of images where a block is made for two of them.
    ((19, 6, 14, 14), (16, 6, 5, 5), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((9, 4, 7, 8), (6, 2, 3, 2), (2, 1), ((1, 0), (2, 1)), (1, 2), 2),
    ((11, 3, 9, 9), (5, 3, 3, 3), (2, 2), ((1, 1), (0, 1)), (2, 1), 1),
    ((8, 2, 4, 5), (3, 2, 2, 3), (1, 1), ((3, 1), (4, 5)), (1, 1), 1),
]

INTERLEAVED = CASES[-4:]


def operands(x_shape, weight_shape, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal(x_shape).astype(dtype),
        rng.standard_normal(weight_shape).astype(dtype),
        lambda shape: rng.standard_normal(shape).astype(dtype),
    )


def check(x, weight, dy, arguments, rtol=1e-10, atol=1e-10):
    y, dy, dx, dw = naive(x, weight, dy, *arguments)
    copies = [a.copy() for a in (x, weight, dy)]
    joined = {"MOST_POSITIONS": 1 << 30, "MOST_PLAIN": 1 << 30}
    # Neither joined nor interleaved, and each wherever that is possible.
    for limits in ({"MOST_OUTPUTS": 0}, {"MOST_OUTPUTS": 1 << 30}, joined):
        with pytest.MonkeyPatch.context() as patch:
            for name, limit in ({"MOST_POSITIONS": 0, "MOST_PLAIN": 0} | limits).items():
                patch.setattr(conv_choice, name, limit)
            results = (
                kernels.conv(x, weight, None, *arguments),
                kernels.conv_input_grad(dy, weight, x.shape, *arguments),
                kernels.conv_weight_grad(dy, x, weight.shape, *arguments),
            )
        for result, wanted in zip(results, (y, dx, dw), strict=True):
            assert result.dtype == x.dtype and result.flags.c_contiguous
            np.testing.assert_allclose(result.astype(np.float64), wanted, rtol, atol)
    for array, copy in zip((x, weight, dy), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_naive_loops(case):
    x_shape, weight_shape, *arguments = case
    check(*operands(x_shape, weight_shape), arguments)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("piece_bytes", [1, 4000])
def test_pieces_of_any_size(case, piece_bytes, monkeypatch):
    for name in ("SMALL_PIECE_BYTES", "LARGE_PIECE_BYTES"):
        monkeypatch.setattr(conv_choice, name, piece_bytes)
    for product in (0, 1000, 1 << 30):
        for module in (conv_choice, images):
            monkeypatch.setattr(module, "SMALL_PRODUCT", product)
        monkeypatch.setattr(conv_choice, "IMAGE_BLOCK_BYTES", 10 * piece_bytes)
        x_shape, weight_shape, *arguments = case
        check(*operands(x_shape, weight_shape), arguments)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_pytorch(case, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    x_shape, weight_shape, *arguments = case
    stride, padding, dilation, groups = arguments
    x, weight, make = operands(x_shape, weight_shape, dtype)
    bias = make(weight_shape[:1])
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in (x, weight, bias))
    wide = torch.nn.functional.pad(tx, (*padding[1], *padding[0]))
    ty = torch.nn.functional.conv2d(wide, tw, tb, stride, 0, dilation, groups)
    dy = make(tuple(ty.shape))
    ty.backward(torch.tensor(dy))
    tolerance = {"rtol": 2e-4, "atol": 2e-4} if dtype == "float32" else {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(kernels.conv(x, weight, bias, *arguments), ty.detach(), **tolerance)
    np.testing.assert_allclose(kernels.conv_input_grad(dy, weight, x_shape, *arguments), tx.grad, **tolerance)
    np.testing.assert_allclose(kernels.conv_weight_grad(dy, x, weight_shape, *arguments), tw.grad, **tolerance)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
sides = st.tuples(st.integers(0, 3), st.integers(0, 3))


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.tuples(sides, sides),
    pairs, pairs, pairs, st.tuples(st.integers(0, 5), st.integers(0, 5)), st.integers(0, 100),
)  # fmt: skip
def test_any_setting(n, groups, c, k, padding, taps, stride, dilation, more, seed):
    size = [max(1, g * (t - 1) + 1 - sum(p) + m) for g, t, p, m in zip(dilation, taps, padding, more, strict=True)]
    x, weight, dy = operands((n, groups * c, *size), (groups * k, c, *taps), seed=seed)
    check(x, weight, dy, (stride, padding, dilation, groups))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[6], CASES[14], *INTERLEAVED], ids=str)
def test_half_types_round_once(case, dtype):
    x_shape, weight_shape, *arguments = case
    x, weight, make = operands(x_shape, weight_shape, dtype)
    bias = make(weight_shape[:1])
    y, dy, dx, dw = naive(x, weight, make, *arguments)
    y += bias.astype(np.float64)[:, None, None]
    # Half a unit in the last place of the result, and float32 sums.
    step = {"rtol": 0.5 * float(ml_dtypes.finfo(dtype).eps) * 1.001, "atol": 1e-4}
    np.testing.assert_allclose(kernels.conv(x, weight, bias, *arguments).astype(np.float64), y, **step)
    got = kernels.conv_input_grad(dy, weight, x_shape, *arguments)
    np.testing.assert_allclose(got.astype(np.float64), dx, **step)
    got = kernels.conv_weight_grad(dy, x, weight_shape, *arguments)
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(np.float64), dw, **step)


def problem(x_shape, weight_shape, *settings, operation="forward", dtype=np.float32):
    shape = kernels.geometry.conv(x_shape, weight_shape, None, *settings)
    return conv_choice.Problem(operation, x_shape, weight_shape, shape, *settings, np.dtype(dtype))


def two_images_a_block(case, monkeypatch):
    monkeypatch.setattr(conv_choice, "MOST_POSITIONS", 0)
    monkeypatch.setattr(conv_choice, "IMAGE_BLOCK_BYTES", 2 * problem(*case).image_bytes)


@pytest.mark.parametrize("case", INTERLEAVED, ids=str)
def test_small_images_are_interleaved(case, monkeypatch):
    calls = []
    for name in ("forward", "input_grad", "weight_grad"):
        method = getattr(interleaved.Interleaving, name)
        monkeypatch.setattr(
            interleaved.Interleaving, name, lambda *a, name=name, method=method: [calls.append(name), method(*a)][1]
        )
    two_images_a_block(case, monkeypatch)
    x_shape, weight_shape, *arguments = case
    x, weight, make = operands(x_shape, weight_shape)
    y, dy, dx, dw = naive(x, weight, make, *arguments)
    np.testing.assert_allclose(kernels.conv(x, weight, None, *arguments), y, 1e-10, 1e-10)
    np.testing.assert_allclose(kernels.conv_input_grad(dy, weight, x_shape, *arguments), dx, 1e-10, 1e-10)
    np.testing.assert_allclose(kernels.conv_weight_grad(dy, x, weight_shape, *arguments), dw, 1e-10, 1e-10)
    # A gradient with a stride along the width is folded.
    assert calls == ["forward", *["input_grad"] * (arguments[0][1] == 1), "weight_grad"]


def test_scratch_memory_is_kept_and_not_shared():
    shape, dtype = (3, 7), np.dtype(np.float32)
    with scratch.scratch() as memory:
        memory.empty(shape, dtype)
        memory.empty(shape, dtype)
    with scratch.scratch() as memory:
        first, second = memory.empty(shape, dtype), memory.empty(shape, dtype)
        assert first.ctypes.data % 64 == second.ctypes.data % 64 == 0
        assert not np.shares_memory(first, second)
        with scratch.scratch() as inner:
            inner.empty(shape, dtype)
            inner.clear()
            assert not np.shares_memory(inner.empty(shape, dtype), first)
        memory.clear()
        assert np.shares_memory(memory.empty(shape, dtype), first)
        large = memory.empty((100 << 20,), np.dtype(np.uint8))
        assert not np.shares_memory(large, first)
    with scratch.scratch() as memory:
        assert len(memory._memory) <= scratch._MOST_BYTES + 64


def views(a):
    """The same values behind other strides."""
    yield np.asfortranarray(a)
    yield np.ascontiguousarray(a[..., ::-1])[..., ::-1]
    yield np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1]
    yield np.repeat(np.repeat(a, 2, axis=1), 3, axis=3)[:, ::2, :, ::3]
    yield np.broadcast_to(a[:1], a.shape)


@pytest.mark.parametrize("case", [*CASES[:7], *INTERLEAVED], ids=str)
def test_any_strides(case):
    x_shape, weight_shape, *arguments = case
    x, weight, make = operands(x_shape, weight_shape)
    dy = make(kernels.conv(x, weight, None, *arguments).shape)
    for vx, vw, vdy in zip(views(x), views(weight), views(dy), strict=True):
        check(vx, vw, lambda shape, vdy=vdy: vdy, arguments)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("axes, groups", [(2, 1), (2, 6), (3, 1)])
def test_a_stride_far_out_of_the_image_is_one_just_out_of_it(axes, groups, dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, *(7, 8, 9)[:axes])).astype(dtype)
    weight = rng.standard_normal((6, 6 // groups, *(3,) * axes)).astype(dtype)
    padding, dilation = ((1, 0),) * axes, (2,) * axes

    def run(last):
        settings = ((2,) * (axes - 1) + (last,), padding, dilation, groups)
        y = kernels.conv(x, weight, None, *settings)
        return (
            y,
            kernels.conv_input_grad(y, weight, x.shape, *settings),
            kernels.conv_weight_grad(y, x, weight.shape, *settings),
        )

    for far, near in zip(run(1 << 40), run(10), strict=True):
        np.testing.assert_array_equal(far, near)


@pytest.mark.parametrize("x_shape, weight_shape", [((0, 3, 5, 5), (4, 3, 3, 3)), ((2, 0, 5, 5), (4, 0, 3, 3))])
def test_empty(x_shape, weight_shape):
    arguments = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    check(*operands(x_shape, weight_shape), arguments)
    bias = np.arange(4.0)
    y = kernels.conv(np.ones(x_shape), np.ones(weight_shape), bias, *arguments)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], (x_shape[0], 4, 5, 5)))


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("case", [*CASES[:5], *INTERLEAVED], ids=str)
def test_what_is_not_finite_stays_in_its_place(case, value):
    x_shape, weight_shape, *arguments = case
    # Padding times a weight that is not finite is NaN; x and dy reach only their own windows.
    unpadded = arguments[1] == ZEROS
    for spoiled in (0, 1, 2) if unpadded else (0, 2):
        x, weight, make = operands(x_shape, weight_shape)
        dy = make(kernels.conv(x, weight, None, *arguments).shape)
        array = (x, weight, dy)[spoiled]
        array[0, 0, 0, -1] = value
        with np.errstate(invalid="ignore"):
            check(x, weight, lambda shape, dy=dy: dy, arguments)


def test_an_infinite_filter_reaches_only_what_it_saw():
    """dy unfolded for the input gradient has zeros around it, which an infinite tap would turn into NaN."""
    x, weight, make = operands((2, 3, 40, 40), (4, 3, 3, 3))
    dy = make((2, 4, 38, 38))
    weight[0, 0, 0, -1] = np.inf
    with np.errstate(invalid="ignore"):
        check(x, weight, lambda shape: dy, ((1, 1), ZEROS, (1, 1), 1))


def test_no_warning_for_infinities():
    x = np.full((1, 1, 4, 4), np.inf)
    with np.errstate(all="raise"):
        y = kernels.conv(x, np.array([[[[1.0, -1.0]]]]), None, *PLAIN)
    assert np.isnan(y).all()


def test_no_warning_for_sums_of_infinities():
    """The planes of a volume are computed one by one, and added."""
    x, weight = np.ones((1, 1, 2, 4, 4)), np.ones((1, 1, 2, 2, 2))
    x[0, 0, :, 1, 1] = np.inf, -np.inf
    settings = ((1, 1, 1), ((0, 0),) * 3, (1, 1, 1), 1)
    with np.errstate(all="raise"):
        y = kernels.conv(x, weight, None, *settings)
    assert np.isnan(y[0, 0, 0, :2, :2]).all() and (y[0, 0, 0, 2] == 8).all()


@pytest.mark.parametrize("case", [CASES[2], CASES[3], CASES[4], CASES[13], CASES[14], *INTERLEAVED], ids=str)
def test_results_repeat_and_do_not_depend_on_threads(case, monkeypatch):
    monkeypatch.setattr(conv_choice, "SMALL_PIECE_BYTES", 20000)
    if case in INTERLEAVED:
        two_images_a_block(case, monkeypatch)
    else:
        for name in ("MOST_OUTPUTS", "MOST_POSITIONS"):
            monkeypatch.setattr(conv_choice, name, 0)
    x_shape, weight_shape, *arguments = case
    x, weight, make = operands((9, *x_shape[1:]), weight_shape, np.float32)
    dy = make(kernels.conv(x, weight, None, *arguments).shape)

    def run():
        return (
            kernels.conv(x, weight, None, *arguments),
            kernels.conv_input_grad(dy, weight, x.shape, *arguments),
            kernels.conv_weight_grad(dy, x, weight_shape, *arguments),
        )

    before = parallel.threads()
    wanted = run()
    try:
        for threads in (1, 2, 3, 1, 5):
            parallel.set_threads(threads)
            for got, want in zip(run(), wanted, strict=True):
                np.testing.assert_array_equal(got, want)
    finally:
        parallel.set_threads(before)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stride": (0, 1)}, r"conv2d: stride must be one to three integers of at least 1, got \(0, 1\)"),
        ({"stride": 2}, r"conv: stride must be one to three integers of at least 1, got 2"),
        ({"dilation": (1, 0)}, r"conv2d: dilation must be two integers of at least 1, got \(1, 0\)"),
        ({"padding": ((0, -1), (0, 0))}, r"padding must be .* not negative, got \(\(0, -1\), \(0, 0\)\)"),
        ({"padding": (1, 1)}, r"padding must be \(\(top, bottom\), \(left, right\)\).*got \(1, 1\)"),
        ({"groups": 0}, r"groups must be a positive integer, got 0"),
        ({"groups": 4}, r"groups must divide the output channels, got 6 output channels .*groups=4"),
        ({"groups": 2}, r"wants 6 input channels, got 3"),
        ({"x": np.zeros((3, 5, 5))}, r"input must have the shape \(N, C, H, W\), got \(3, 5, 5\)"),
        (
            {"weight": np.zeros((6, 3, 3))},
            r"weight must have the shape \(K, C / groups, R, S\), got \(6, 3, 3\)",
        ),
        ({"weight": np.zeros((0, 3, 3, 3))}, r"weight needs at least one filter and one tap"),
        ({"weight": np.zeros((6, 3, 6, 3))}, r"kernel is larger than the padded input: height 6 .* over 5"),
        ({"dilation": (1, 3)}, r"kernel is larger than the padded input: width 7 .* over 5 \(input 5"),
        ({"bias": np.zeros(5)}, r"bias must have the shape \(6,\), one per output channel, got \(5,\)"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else next(iter(value)),
)
def test_wrong_shapes_and_settings(changes, message):
    defaults = {"stride": (1, 1), "padding": ZEROS, "dilation": (1, 1), "groups": 1, "bias": None}
    arguments = {"x": np.zeros((1, 3, 5, 5)), "weight": np.zeros((6, 3, 3, 3))} | defaults | changes
    with pytest.raises(ValueError, match=message) as caught:
        kernels.conv(**arguments)
    assert str(caught.value).startswith("conv2d: " if changes.get("stride") != 2 else "conv: ")


def test_wrong_arrays():
    x, weight = np.zeros((1, 3, 5, 5), np.float32), np.zeros((6, 3, 3, 3), np.float32)
    with pytest.raises(TypeError, match="all arrays must have one dtype, got: x is float32, weight is float64"):
        kernels.conv(x, weight.astype(np.float64), None, *PLAIN)
    with pytest.raises(TypeError, match="conv2d: x must be float32, float64, float16 or bfloat16, got int64"):
        kernels.conv(x.astype(np.int64), weight, None, *PLAIN)
    with pytest.raises(TypeError, match="conv2d: weight must be a NumPy or CuPy array, got list"):
        kernels.conv(x, weight.tolist(), None, *PLAIN)


def test_wrong_gradients():
    x, weight = np.zeros((1, 3, 5, 5)), np.zeros((6, 3, 3, 3))
    arguments = ((1, 1), ZEROS, (1, 1), 1)
    wanted = r"the gradient must have the shape \(1, 6, 3, 3\) of the result, got \(1, 6, 3, 4\)"
    with pytest.raises(ValueError, match="conv2d_input_grad: " + wanted):
        kernels.conv_input_grad(np.zeros((1, 6, 3, 4)), weight, x.shape, *arguments)
    with pytest.raises(ValueError, match="conv2d_weight_grad: " + wanted):
        kernels.conv_weight_grad(np.zeros((1, 6, 3, 4)), x, weight.shape, *arguments)


def test_number_of_threads(monkeypatch):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        parallel.set_threads(0)
    monkeypatch.setattr(parallel, "_threads", None)
    monkeypatch.setenv("ADJOINT_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="ADJOINT_NUM_THREADS must be a positive integer, got 'many'"):
        parallel.threads()
    monkeypatch.setenv("ADJOINT_NUM_THREADS", "3")
    assert parallel.threads() == 3


@pytest.mark.parametrize("guilty", [0, 7])
def test_an_error_in_a_piece_reaches_the_caller(guilty):
    def work(pieces):
        for piece in pieces:
            if piece == guilty:
                raise KeyError(piece)

    with pytest.raises(KeyError, match=str(guilty)):
        parallel.share(work, range(8))
