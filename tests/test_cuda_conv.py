"""The CUDA convolution against plain loops in float64, on every device there is."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest

from adjoint import kernels
from adjoint.kernels import cpu, cuda, geometry
from adjoint.kernels.cuda import conv_choice, launch
from adjoint.kernels.cuda.conv_choice import FORWARD, INPUT_GRAD, WEIGHT_GRAD, Direct, Problem, Tile, choose
from adjoint.kernels.cuda.kernel import Kernel
from cuda_on_host import (
    HostLauncher,
    device_fixture,
    installed,
    needs_compiler,
    run_under_sanitizers,
    sanitizing,
)

cuda_device = device_fixture()

TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


@dataclass(frozen=True)
class Case:
    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    padding: geometry.Pads = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dtypes: tuple[str, ...] = ("float32",)
    settings: tuple = field(init=False, default=())

    def __post_init__(self):
        object.__setattr__(self, "settings", (self.stride, self.padding, self.dilation, self.groups))

    @property
    def y(self):
        return geometry.conv(self.x, self.weight, None, *self.settings)


ALL = ("float32", "float64", "float16", "bfloat16")
SAME = ((1, 1), (1, 1))
CASES = [
    # The direct kernels: too few rows or columns for a tile.
    Case("one filter", (2, 3, 7, 6), (1, 3, 3, 3), padding=SAME, dtypes=ALL),
    Case("depthwise", (2, 6, 9, 8), (6, 1, 3, 3), padding=SAME, groups=6, dtypes=ALL),
    Case("depthwise stride 2, two filters each", (2, 5, 9, 8), (10, 1, 3, 3), (2, 2), SAME, groups=5),
    Case("narrow groups, dilation", (1, 6, 10, 9), (9, 2, 3, 2), (1, 2), ((2, 1), (0, 3)), (2, 3), groups=3),
    Case("one pixel, one tap", (3, 1, 1, 1), (1, 1, 1, 1)),
    Case("kernel as large as the input", (2, 2, 5, 4), (3, 2, 5, 4)),
    # Tiles: rows, columns and steps that do not fill them.
    Case("1x1", (2, 19, 6, 7), (21, 19, 1, 1), dtypes=ALL),
    Case("3x3", (2, 9, 8, 8), (10, 9, 3, 3), padding=SAME, dtypes=ALL),
    Case("3x3, stride 2", (2, 8, 9, 10), (12, 8, 3, 3), (2, 2), SAME, dtypes=ALL),
    Case("5x4, stride 3 and 2, all paddings differ", (2, 8, 13, 11), (9, 8, 5, 4), (3, 2), ((2, 1), (0, 3))),
    Case("dilation 2", (1, 8, 11, 12), (8, 8, 3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2)),
    Case("dilation 2 and 3, stride 2 and 3", (1, 8, 14, 15), (8, 8, 3, 3), (2, 3), ((2, 3), (1, 0)), (2, 3)),
    Case("dilation 3, stride 2", (1, 8, 14, 15), (8, 8, 3, 4), (2, 2), ((3, 0), (4, 2)), (3, 3)),
    Case("stride larger than the kernel", (2, 8, 11, 12), (8, 8, 2, 1), (3, 4)),
    Case("groups", (2, 24, 6, 5), (27, 8, 3, 3), padding=SAME, groups=3, dtypes=("float32", "float16")),
    Case("kernel as large as the input, tiled", (3, 8, 5, 4), (20, 8, 5, 4)),
    Case("rows that stop early", (1, 8, 6, 9), (8, 8, 3, 3), (2, 2)),
    # Of one line, as large as its gradient: by none of the filter's taps, or by one of its two.
    Case("a line that only padding meets", (1, 2, 1, 128), (3, 2, 1, 1), (3, 1), ((1, 1), (0, 0))),
    Case("a line that one of two taps meets", (1, 2, 1, 128), (3, 2, 2, 1), (2, 1), ((1, 1), (0, 0))),
    Case("more padding than input", (1, 8, 2, 3), (8, 8, 3, 3), padding=((3, 4), (5, 2))),
    Case("many images of few pixels", (70, 8, 2, 2), (8, 8, 2, 2)),
    # Wide tiles; the weight gradient in parts.
    Case("several tiles down", (1, 12, 5, 5), (140, 12, 3, 3), dtypes=("float32", "float64")),
    Case("several parts", (9, 8, 12, 12), (8, 8, 3, 3), padding=SAME, dtypes=ALL),
    Case("several parts, direct", (9, 2, 12, 12), (2, 2, 3, 3), padding=SAME, dtypes=ALL),
    Case("first layer", (2, 3, 32, 32), (6, 3, 5, 5)),
    Case("LeNet's second layer", (4, 6, 14, 14), (16, 6, 5, 5)),
]  # fmt: skip
ROWS = [pytest.param(case, dtype, id=f"{case.name}-{dtype}") for case in CASES for dtype in case.dtypes]
EMPTY = [
    Case("no images", (0, 8, 6, 6), (8, 8, 3, 3), padding=SAME),
    Case("no channels", (2, 0, 6, 6), (8, 0, 3, 3), padding=SAME),
    Case("no pixels before padding", (2, 8, 0, 4), (8, 8, 3, 3), padding=((2, 1), (1, 1))),
]


def arrays(case, dtype, seed=0):
    """x, weight, bias, dy: small integers over 8, exact in every dtype, so that only the sums are rounded."""
    rng = np.random.default_rng(seed)
    shapes = (case.x, case.weight, case.weight[:1], case.y)
    return [(rng.integers(-16, 17, shape) / 8).astype(dtype) for shape in shapes]


def taps_of(case):
    """For each tap (r, s): its slices of the padded input, so that the output lies under its values."""
    (sh, sw), _, (dh, dw), _ = case.settings
    p, q = case.y[2:]
    for r in range(case.weight[2]):
        for s in range(case.weight[3]):
            rows = slice(r * dh, r * dh + (p - 1) * sh + 1, sh)
            yield r, s, (..., rows, slice(s * dw, s * dw + (q - 1) * sw + 1, sw))


def grouped(case, x, weight, dy):
    """x padded (N, G, C, H, W), weight (G, M, C, R, S), dy (N, G, M, P, Q), in float64."""
    n, g, m, c = case.x[0], case.groups, case.weight[0] // case.groups, case.weight[1]
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    x = np.pad(x.reshape(n, g, c, *case.x[2:]), ((0, 0), (0, 0), (0, 0), *case.padding))
    return x, weight.reshape(g, m, *case.weight[1:]), dy.reshape(n, g, m, *case.y[2:])


def expected(case, x, weight, bias, dy):
    x, weight, dy = grouped(case, x, weight, dy)
    y, dx, dw = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(weight.shape)
    for r, s, under in taps_of(case):
        y += np.einsum("gmc,ngcpq->ngmpq", weight[..., r, s], x[under])
        dx[under] += np.einsum("gmc,ngmpq->ngcpq", weight[..., r, s], dy)
        dw[..., r, s] = np.einsum("ngmpq,ngcpq->gmc", dy, x[under])
    (top, bottom), (left, right) = case.padding
    dx = dx[..., top : dx.shape[3] - bottom, left : dx.shape[4] - right]
    y = y.reshape(case.y) + bias.astype(np.float64)[:, None, None]
    return y, dx.reshape(case.x), dw.reshape(case.weight)


def assert_close(got, wanted, dtype):
    assert got.dtype == np.dtype(dtype) and got.flags.c_contiguous and got.shape == wanted.shape
    scale = max(np.abs(wanted).max(initial=0), 1)
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=0, atol=TOLERANCE[dtype] * scale)


def computed(side, case, given):
    x, weight, bias, dy = given
    return (
        side.conv(x, weight, bias, *case.settings),
        side.conv_input_grad(dy, weight, case.x, *case.settings),
        side.conv_weight_grad(dy, x, case.weight, *case.settings),
    )


@pytest.mark.parametrize("case, dtype", ROWS)
def test_parity(cuda_device, case, dtype):
    given = arrays(case, dtype)
    before = [array.copy() for array in given]
    wanted = expected(case, *given)
    on_device = [cuda_device.put(array) for array in given]
    for got, reference in zip(computed(cuda, case, on_device), wanted, strict=True):
        assert_close(cuda_device.get(got), reference, dtype)
    for array, copy in zip(on_device, before, strict=True):
        np.testing.assert_array_equal(cuda_device.get(array), copy)


@pytest.mark.parametrize("case", EMPTY, ids=lambda case: case.name)
def test_parity_of_empty_arrays(cuda_device, case):
    given = arrays(case, "float32")
    on_device = [cuda_device.put(array) for array in given]
    for got, wanted in zip(computed(cuda, case, on_device), expected(case, *given), strict=True):
        assert_close(cuda_device.get(got), wanted, "float32")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parity_with_the_numpy_kernels(cuda_device, case):
    given = arrays(case, "float32", seed=1)
    on_device = [cuda_device.put(array) for array in given]
    for got, wanted in zip(computed(cuda, case, on_device), computed(cpu, case, given), strict=True):
        assert_close(cuda_device.get(got), wanted.astype(np.float64), "float32")


def problem(operation, c_type, groups=1, rows=64, channels=64, taps=1, pixels=1000, **settings):
    """A convolution on a device without tensor cores."""
    settings = {"precision": "highest", "capability": 70, "places": 1000} | settings
    return Problem(operation, c_type, groups=groups, rows=rows, channels=channels, taps=taps, pixels=pixels, **settings)


TILED = Case("every tile", (2, 18, 7, 9), (20, 18, 2, 3), (1, 2), ((1, 0), (1, 2)))


@pytest.mark.parametrize("dtype", ALL)
def test_parity_of_every_tile(cuda_device, dtype, monkeypatch):
    """Whatever the sizes for which a tile would be chosen."""
    given = arrays(TILED, dtype)
    y, dx, dw = expected(TILED, *given)
    x, weight, bias, dy = (cuda_device.put(array) for array in given)
    c_type, settings = launch.c_type(dtype), TILED.settings
    for operation, wanted, compute in (
        (FORWARD, y, lambda: cuda.conv(x, weight, bias, *settings)),
        (INPUT_GRAD, dx, lambda: cuda.conv_input_grad(dy, weight, TILED.x, *settings)),
        (WEIGHT_GRAD, dw, lambda: cuda.conv_weight_grad(dy, x, TILED.weight, *settings)),
    ):
        for variant in conv_choice.candidates(problem(operation, c_type)):
            monkeypatch.setattr(conv_choice, "choose", lambda _, variant=variant: variant)
            assert_close(cuda_device.get(compute()), wanted, dtype)


def test_results_repeat_bit_for_bit(cuda_device):
    """In shuffled order too: no sum depends on which thread or block comes first."""
    case = next(case for case in CASES if case.name == "several parts")
    rng = np.random.default_rng(2)
    given = [rng.standard_normal(a.shape).astype(a.dtype) for a in arrays(case, "float32")]
    on_device = [cuda_device.put(array) for array in given]
    first = [cuda_device.get(a) for a in computed(cuda, case, on_device)]
    on_host = cuda_device.name != "cuda"
    with installed(HostLauncher(seed=7, sanitize=sanitizing())) if on_host else nullcontext():
        second = [cuda_device.get(a) for a in computed(cuda, case, on_device)]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_strided_inputs(cuda_device):
    case = Case("", (2, 8, 6, 7), (9, 8, 3, 3), (2, 1), SAME)
    x, weight, bias, dy = given = arrays(case, "float32")
    views = [
        np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        np.ascontiguousarray(weight[::-1, :, ::-1])[::-1, :, ::-1],
        np.repeat(bias, 2)[::2],
        np.pad(dy, ((0, 0), (0, 0), (0, 0), (1, 1)))[..., 1:-1],
    ]
    on_device = [cuda_device.put(a) for a in views]
    if cuda_device.name == "cuda":
        on_device[0] = cuda_device.put(x.transpose(0, 2, 3, 1).copy()).transpose(0, 3, 1, 2)
    for got, wanted in zip(computed(cuda, case, on_device), expected(case, *given), strict=True):
        assert_close(cuda_device.get(got), wanted, "float32")


def test_through_the_interface(cuda_device, monkeypatch):
    if cuda_device.name != "cuda":
        monkeypatch.setattr("adjoint.kernels.interface.conv.side", lambda array: cuda)
    case = CASES[1]
    given = arrays(case, "float32")
    on_device = [cuda_device.put(array) for array in given]
    for got, wanted in zip(computed(kernels, case, on_device), expected(case, *given), strict=True):
        assert_close(cuda_device.get(got), wanted, "float32")


@needs_compiler
@pytest.mark.parametrize("which", [0, 1])
def test_without_one_of_its_barriers_the_tiled_kernel_is_wrong_here(which, tmp_path, monkeypatch):
    """The host run would show a missing barrier."""
    pieces = Kernel("conv_gemm.cu", "").text().split("__syncthreads();")
    text = "__syncthreads();".join(pieces[: which + 1]) + "__syncthreads();".join(pieces[which + 1 :])
    (tmp_path / "conv_gemm.cu").write_text(text)
    monkeypatch.setattr(conv_choice, "Kernel", lambda source, name, **least: Kernel(source, name, tmp_path, **least))
    case = next(case for case in CASES if case.name == "3x3")
    x, weight, bias, _ = given = arrays(case, "float32")
    with installed(HostLauncher(seed=1)):
        y = cuda.conv(x, weight, bias, *case.settings)
    with pytest.raises(AssertionError):
        assert_close(y, expected(case, *given)[0], "float32")


def test_the_choice_of_tile():
    wide, middle, narrow = Tile(128, 128, 8, 8), Tile(64, 128, 4, 8), Tile(32, 128, 4, 4)
    resnet = 64 * 56 * 56
    for c_type, groups, rows, channels, taps, pixels, wanted in (
        ("float", 1, 256, 64, 1, resnet, wide),
        ("float", 1, 64, 64, 9, resnet, middle),
        ("float", 1, 512, 512, 9, 64 * 49, middle),  # 100 wide blocks would be too few
        ("double", 1, 256, 64, 1, resnet, middle),
        ("float", 1, 16, 6, 25, 64 * 100, narrow),
        ("float", 96, 1, 1, 9, resnet, Direct()),
    ):
        assert choose(problem(FORWARD, c_type, groups, rows, channels, taps, pixels)) == wanted
    assert choose(problem(WEIGHT_GRAD, "float", rows=64, channels=64, taps=9)) == Tile(64, 64, 4, 4)
    assert choose(problem(WEIGHT_GRAD, "float", rows=128, channels=64, taps=9)) == wide
    assert choose(problem(WEIGHT_GRAD, "float", rows=1, channels=1, taps=9)) == Direct()


def test_an_image_beyond_32_bit_offsets_is_refused():
    x = np.broadcast_to(np.float32(0), (1, 2, 2**15, 2**15))
    with pytest.raises(ValueError, match="conv2d: an image has 2147483648 elements"):
        cuda.conv(x, np.zeros((1, 2, 1, 1), np.float32), None, (2**14, 2**14), ((0, 0), (0, 0)), (1, 1), 1)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    result = run_under_sanitizers(__file__, "-k", "(parity or strided) and not numpy")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
