"""Which way a convolution takes on NumPy, in boxes of any size, and the memory that it takes."""

import importlib
import threading
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_conv import naive

from adjoint import kernels
from adjoint.kernels.cpu import conv_choice, results, scratch
from adjoint.kernels.cpu.conv_choice import FORWARD, INPUT_GRAD, WEIGHT_GRAD


def problem(operation, x_shape, weight_shape, padding=0, stride=1, dilation=1, groups=1, dtype=np.float32):
    axes = len(x_shape) - 2
    arguments = ((stride,) * axes, ((padding, padding),) * axes, (dilation,) * axes, groups)
    y_shape = kernels.geometry.conv(x_shape, weight_shape, None, *arguments)
    return conv_choice.Problem(operation, x_shape, weight_shape, y_shape, *arguments, np.dtype(dtype))


ALL = (FORWARD, INPUT_GRAD, WEIGHT_GRAD)


@pytest.mark.parametrize(
    "x_shape, weight_shape, others, wanted",
    [
        ((64, 1, 28, 28), (13, 1, 5, 5), {}, "interleaved"),
        ((64, 6, 14, 14), (16, 6, 5, 5), {}, "joined"),
        ((32, 3, 32, 32), (32, 3, 3, 3), {"padding": 1}, "columns"),
        ((32, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}, "winograd tiles"),
        ((8, 256, 14, 14), (256, 256, 3, 3), {"padding": 1}, "winograd lines"),
        ((8, 64, 56, 56), (256, 64, 1, 1), {}, "columns"),
        ((16, 96, 28, 28), (96, 1, 3, 3), {"padding": 1, "groups": 96}, "planes"),
        ((16, 96, 28, 28), (192, 1, 3, 3), {"padding": 1, "groups": 96}, "depthwise"),
        ((16, 96, 28, 28), (96, 1, 3, 3), {"groups": 96}, "depthwise"),
        ((16, 96, 28, 28), (96, 1, 3, 3), {"padding": 1, "stride": 2, "groups": 96}, "depthwise"),
        ((16, 96, 28, 28), (96, 1, 3, 3), {"padding": 1, "groups": 96, "dtype": np.float16}, "depthwise"),
        ((16, 96, 28, 28), (960, 1, 3, 3), {"padding": 1, "groups": 96}, "columns"),
        ((4, 16, 16, 16, 16), (32, 16, 3, 3, 3), {"padding": 1}, "volumes"),
        ((4, 16, 9, 9, 9), (16, 1, 3, 3, 3), {"groups": 16}, "depthwise"),
        # Around Winograd's limits.
        ((8, 64, 28, 28), (64, 64, 3, 3), {"padding": 1, "dtype": np.float16}, "winograd lines"),
        ((8, 64, 28, 28), (64, 64, 3, 3), {"padding": 1, "dtype": np.float64}, "columns"),
        ((8, 64, 28, 28), (64, 64, 5, 5), {"padding": 2}, "columns"),
        ((8, 64, 28, 28), (64, 16, 3, 3), {"padding": 1, "groups": 4}, "interleaved"),
        ((8, 64, 28, 28), (512, 64, 3, 3), {"padding": 1}, "winograd lines"),
        ((8, 512, 28, 28), (512, 512, 3, 3), {"padding": 1}, "winograd lines"),
        ((8, 512, 36, 28), (512, 512, 3, 3), {"padding": 1}, "columns"),
        ((16, 1024, 28, 28), (1024, 512, 3, 3), {"padding": 1, "groups": 2}, "columns"),
        ((2, 1024, 28, 28), (64, 1024, 3, 3), {"padding": 1}, "winograd tiles"),
        ((8, 64, 40, 40), (64, 64, 3, 3), {"padding": 1, "stride": 2}, "columns"),
        ((8, 64, 28, 28), (64, 64, 3, 3), {"padding": 1, "stride": 2}, "joined"),
        ((8, 64, 28, 28), (64, 64, 3, 3), {"padding": 2, "dilation": 2}, "columns"),
        ((1, 64, 14, 14), (64, 64, 3, 3), {"padding": 1}, "joined"),
        ((0, 64, 14, 14), (64, 64, 3, 3), {"padding": 1}, "columns"),
        ((1000, 64, 5, 5), (64, 64, 3, 3), {"padding": 1}, "winograd lines"),
        ((1000, 64, 3, 5), (64, 64, 3, 3), {"padding": 1}, "joined"),
        ((64, 32, 8, 8), (32, 32, 3, 3), {"padding": 1}, "winograd lines"),
        ((8, 64, 33, 30), (64, 64, 3, 3), {"padding": 1}, "winograd tiles"),
        ((1, 64, 4, 20000), (64, 64, 3, 3), {"padding": 1}, "columns"),
    ],
    ids=str,
)
def test_the_table(x_shape, weight_shape, others, wanted):
    for operation in ALL:
        ways = list(conv_choice.ways(problem(operation, x_shape, weight_shape, **others)))
        assert ways[-1] == "columns"  # what can always take over
        assert ways[0] == ("flipped" if ways[0] == "flipped" and operation == INPUT_GRAD else wanted)


axis = st.tuples(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.integers(0, 5),
    st.integers(1, 5),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(axis, min_size=1, max_size=3), st.integers(0, 3), st.sampled_from([(1, 2, 3), (2, 2, 2), (3, 1, 2)]))
def test_boxes_of_any_size_make_the_same(axes, n, channels):
    groups, inside, outputs = channels
    size = [max(size, gap * (taps - 1) + 1 - low - high, 1) for size, taps, _, gap, low, high, _ in axes]
    taps, stride, dilation = (tuple(axis[i] for axis in axes) for i in (1, 2, 3))
    arguments = (stride, tuple((axis[4], axis[5]) for axis in axes), dilation, groups)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, groups * inside, *size))
    weight, bias = rng.standard_normal((groups * outputs, inside, *taps)), rng.standard_normal(groups * outputs)
    y, dy, dx, dw = naive(x, weight, rng.standard_normal, *arguments)
    y += bias.reshape(-1, *(1 for _ in axes))
    real = conv_choice.box

    def small_box(problem, way):
        images, sizes = real(problem, way)
        most = [5, *(axis[6] for axis in axes)][-len(sizes) :]
        return max(1, min(images, 2)), tuple(min(pair) for pair in zip(sizes, most, strict=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_choice, "box", small_box)
        got = (
            kernels.conv(x, weight, bias, *arguments),
            kernels.conv_input_grad(dy, weight, x.shape, *arguments),
            kernels.conv_weight_grad(dy, x, weight.shape, *arguments),
        )
    for result, wanted in zip(got, (y, dx, dw), strict=True):
        np.testing.assert_allclose(result, wanted, 1e-10, 1e-10)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_boxes_of_half_types_are_rounded_once(dtype, monkeypatch):
    monkeypatch.setattr(conv_choice, "box", lambda problem, way: (1, (2,) * len(problem.stride)))
    arguments = ((2, 1), ((1, 1), (2, 0)), (1, 2), 1)
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((3, 4, 11, 12)).astype(dtype), rng.standard_normal((5, 4, 3, 3)).astype(dtype)
    y, dy, dx, dw = naive(x, weight, lambda shape: rng.standard_normal(shape).astype(dtype), *arguments)
    step = {"rtol": 0.5 * float(ml_dtypes.finfo(dtype).eps) * 1.001, "atol": 1e-4}
    got = (
        kernels.conv(x, weight, None, *arguments),
        kernels.conv_input_grad(dy, weight, x.shape, *arguments),
        kernels.conv_weight_grad(dy, x, weight.shape, *arguments),
    )
    for result, wanted in zip(got, (y, dx, dw), strict=True):
        assert result.dtype == dtype
        np.testing.assert_allclose(result.astype(np.float64), wanted, **step)


# (x shape, weight shape, stride, padding, groups): whole unfolded they would take 50 MB to 1.6 GB.
LARGE = [
    ((8, 64, 112, 112), (64, 64, 3, 3), 1, 1, 1),
    ((2, 128, 56, 56), (128, 128, 3, 3), 2, 1, 1),
    ((1, 3, 768, 1024), (64, 3, 7, 7), 2, 3, 1),
    ((1, 3, 1024, 768), (16, 3, 3, 3), 1, 1, 1),
    ((1, 512, 14, 14), (512, 512, 3, 3), 1, 1, 1),
    ((32, 256, 14, 14), (256, 256, 3, 3), 1, 1, 1),
    ((2, 512, 32, 32), (512, 512, 3, 3), 1, 1, 1),
    ((16, 64, 32, 32), (512, 64, 3, 3), 1, 1, 1),
    ((4, 256, 64, 64), (64, 256, 1, 1), 1, 0, 1),
    ((4, 256, 64, 64), (64, 256, 1, 1), 4, 0, 1),
    ((4, 64, 100, 128), (64, 1, 7, 7), 1, 3, 64),
    ((64, 256, 14, 14), (256, 8, 3, 3), 1, 1, 32),
    ((2, 64, 40_000), (64, 64, 5), 1, 2, 1),
    ((1, 1, 1_000_000), (16, 1, 9), 1, 4, 1),
    ((1, 2, 1200, 1000), (2, 1, 5, 5), 1, 2, 2),
    ((2, 4, 900, 1100), (4, 1, 3, 3), 1, 1, 4),
    ((1, 1, 2048, 2048), (4, 1, 11, 11), 4, 5, 1),
    ((1, 16, 32, 32, 32), (16, 16, 3, 3, 3), 1, 1, 1),
    ((1, 4, 8, 300, 300), (4, 4, 3, 3, 3), 1, 1, 1),
    ((64, 512, 4, 4), (1024, 512, 3, 3), 1, 1, 1),
    ((256, 256, 2, 2), (256, 256, 3, 3), 1, 1, 1),
    ((128, 64, 8, 8), (512, 64, 5, 5), 2, 2, 1),
    ((1, 64, 8, 56, 56), (64, 64, 3, 3, 3), 1, 1, 1),
    ((1, 2, 64, 128, 128), (2, 1, 3, 3, 3), 1, 1, 2),
]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_no_convolution_takes_32_mb_of_its_own(case, dtype, monkeypatch):
    x_shape, weight_shape, stride, padding, groups = case
    axes = len(x_shape) - 2
    arguments = ((stride,) * axes, ((padding, padding),) * axes, (1,) * axes, groups)
    y_shape = kernels.geometry.conv(x_shape, weight_shape, None, *arguments)
    x, weight, dy = (np.ones(shape, dtype) for shape in (x_shape, weight_shape, y_shape))
    for compute in (
        lambda: kernels.conv(x, weight, None, *arguments),
        lambda: kernels.conv_input_grad(dy, weight, x_shape, *arguments),
        lambda: kernels.conv_weight_grad(dy, x, weight_shape, *arguments),
    ):
        # What is kept between calls counts too.
        monkeypatch.setattr(scratch, "_kept", threading.local())
        monkeypatch.setattr(results, "_kept", {})
        tracemalloc.start()
        try:
            result = compute()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak - result.nbytes < 32 << 20


def test_a_plan_is_kept_for_shapes_settings_and_types(monkeypatch):
    conv = importlib.import_module("adjoint.kernels.cpu.conv")
    monkeypatch.undo()
    chosen = []
    monkeypatch.setattr(conv_choice, "ways", lambda problem: chosen.append(problem) or ["columns"])
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 3, 9, 11)), rng.standard_normal((4, 3, 3, 3))
    conv._ways.cache_clear()
    try:
        for _ in range(2):
            for dtype, pad in ((np.float32, 0), (np.float64, 0), (np.float32, 1)):
                settings = ((1, 1), ((pad, pad), (pad, pad)), (1, 1), 1)
                y = kernels.conv(x.astype(dtype), weight.astype(dtype), None, *settings)
                assert y.dtype == dtype and y.shape == (2, 4, 7 + 2 * pad, 9 + 2 * pad)
        assert len(chosen) == 3
    finally:
        conv._ways.cache_clear()
