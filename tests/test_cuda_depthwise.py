"""Depthwise convolution on CUDA, and convolution of sequences and volumes, against plain loops in float64."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest
from naive_conv import naive

from adjoint import kernels
from adjoint.kernels import cuda
from adjoint.kernels.cuda import depthwise
from cuda_on_host import HostLauncher, device_fixture, installed, needs_compiler, run_under_sanitizers, sanitizing

cuda_device = device_fixture()

TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
F32 = ("float32",)
NOT_DOUBLE = ("float32", "float16", "bfloat16")
ALL = (*NOT_DOUBLE, "float64")


@dataclass(frozen=True)
class Case:
    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...] | int = 1
    padding: tuple[tuple[int, int], ...] | int = 0
    dilation: tuple[int, ...] | int = 1
    groups: int | None = None  # None: depthwise
    dtypes: tuple[str, ...] = F32

    @property
    def settings(self):
        rank = len(self.x) - 2
        stride, dilation = (v if isinstance(v, tuple) else (v,) * rank for v in (self.stride, self.dilation))
        padding = self.padding if isinstance(self.padding, tuple) else ((self.padding, self.padding),) * rank
        return stride, padding, dilation, self.x[1] if self.groups is None else self.groups


CASES = [
    # Widths of whole vectors and others, planes that share a block, planes in bands and in several tiles of columns.
    Case("3x3", (2, 3, 8, 12), (3, 1, 3, 3), padding=1, dtypes=NOT_DOUBLE),
    Case("3x3, 14 wide", (2, 5, 14, 14), (5, 1, 3, 3), padding=1, dtypes=NOT_DOUBLE),
    Case("3x3, 7 wide, many planes", (5, 20, 7, 7), (20, 1, 3, 3), padding=1, dtypes=("float32", "bfloat16")),
    Case("3x3, bands and columns", (1, 2, 41, 132), (2, 1, 3, 3), padding=1, dtypes=("float32", "float16")),
    Case("3x3, bands and columns, odd", (2, 2, 37, 133), (2, 1, 3, 3), padding=1),
    Case("3x3, other paddings", (2, 3, 9, 8), (3, 1, 3, 3), padding=((0, 2), (4, 1))),
    Case("3x3, two filters each", (2, 3, 8, 8), (6, 1, 3, 3), padding=1, dtypes=("float32", "float16")),
    Case("3x3, one pixel", (3, 2, 1, 1), (2, 1, 3, 3), padding=1),
    Case("3x3/2", (2, 3, 16, 16), (3, 1, 3, 3), 2, 1, dtypes=NOT_DOUBLE),
    Case("3x3/2, odd", (3, 4, 15, 13), (4, 1, 3, 3), 2, 1, dtypes=("float32", "bfloat16")),
    Case("3x3/2, bands and columns", (1, 2, 70, 136), (2, 1, 3, 3), 2, 1),
    Case("3x3/2, without padding", (2, 3, 10, 12), (3, 1, 3, 3), 2),
    Case("3x3/2, padding after", (2, 3, 10, 12), (3, 1, 3, 3), 2, ((0, 1), (0, 1))),
    Case("5x5", (2, 3, 9, 16), (3, 1, 5, 5), padding=2, dtypes=NOT_DOUBLE),
    Case("5x5, 14 wide", (3, 2, 14, 14), (2, 1, 5, 5), padding=2),
    Case("7x7", (2, 3, 8, 12), (3, 1, 7, 7), padding=3, dtypes=NOT_DOUBLE),
    Case("7x7, 7 wide", (3, 4, 7, 7), (4, 1, 7, 7), padding=3),
    Case("7x7, bands", (1, 2, 60, 56), (2, 1, 7, 7), padding=3),
    Case("4 taps, causal", (3, 5, 20), (5, 1, 4), padding=((3, 0),), dtypes=NOT_DOUBLE),
    Case("3 taps", (2, 3, 33), (3, 1, 3), padding=1, dtypes=("float32", "float16")),
    Case("7 taps, long", (2, 2, 1100), (2, 1, 7), padding=3),
    Case("8 taps", (2, 3, 24), (3, 1, 8)),
    Case("1 tap, two filters each", (2, 3, 9), (6, 1, 1)),
    Case("3 taps of a row of images", (2, 3, 6, 9), (3, 1, 1, 3), padding=((2, 1), (1, 1))),
    Case("3x3x3", (2, 3, 5, 6, 8), (3, 1, 3, 3, 3), padding=1, dtypes=NOT_DOUBLE),
    Case("3x3x3, 7 wide, other paddings", (2, 2, 6, 5, 7), (2, 1, 3, 3, 3), padding=((2, 0), (1, 2), (0, 3))),
    Case("3x3x3, chunks", (1, 2, 11, 4, 4), (2, 1, 3, 3, 3), padding=1, dtypes=("float32", "bfloat16")),
    Case("1x3x3", (2, 2, 3, 6, 8), (2, 1, 1, 3, 3), padding=1),
    # The general kernels.
    Case("5x5/2", (2, 3, 11, 12), (3, 1, 5, 5), 2, 2, dtypes=ALL),
    Case("dilation", (2, 3, 11, 12), (3, 1, 3, 3), 1, 2, 2),
    Case("double", (2, 3, 8, 9), (3, 1, 3, 3), 1, 1, dtypes=("float64",)),
    Case("two strides", (2, 3, 9, 10), (6, 1, 3, 4), (3, 1), ((0, 1), (2, 3)), (1, 2), dtypes=("float32", "float64")),
    Case("9 taps, stride 2", (2, 3, 40), (3, 1, 9), 2, 4, 2),
    Case("3x3x3/2", (2, 3, 7, 6, 8), (3, 1, 3, 3, 3), 2, 1, dtypes=ALL),
    Case("4x2x3", (2, 3, 6, 7, 5), (6, 1, 4, 2, 3), (1, 2, 1), ((3, 0), (0, 1), (2, 2)), (1, 1, 2)),
    # Several channels a group.
    Case("sequence", (2, 9, 21), (10, 9, 5), 2, 2, groups=1, dtypes=ALL),
    Case("sequence, groups", (2, 6, 12), (4, 3, 3), 1, ((2, 0),), 2, groups=2),
    Case("volume", (2, 3, 5, 6, 7), (4, 3, 3, 3, 3), 1, 1, groups=1, dtypes=ALL),
    Case("volume, everything", (1, 4, 7, 6, 5), (6, 2, 2, 3, 1), (2, 1, 3), ((3, 0), (0, 1), (2, 2)), (2, 1, 1), 2),
    Case("volume of many channels", (1, 16, 3, 4, 4), (16, 16, 1, 3, 3), 1, ((0, 0), (1, 1), (1, 1)), groups=1),
]
ROWS = [pytest.param(case, dtype, id=f"{case.name}-{dtype}") for case in CASES for dtype in case.dtypes]
FIXED = [case for case in CASES if case.groups is None][:28]


def arrays(case, dtype, seed=0):
    """x, weight, bias, dy: small integers over 8, exact in every dtype, so that only the sums are rounded."""
    rng = np.random.default_rng(seed)

    def make(shape):
        return (rng.integers(-16, 17, shape) / 8).astype(dtype)

    x, weight, bias = make(case.x), make(case.weight), make(case.weight[:1])
    y, dy, dx, dw = naive(x, weight, make, *case.settings)
    y += bias.astype(np.float64).reshape(-1, *[1] * (len(case.x) - 2))
    return (x, weight, bias, dy), (y, dx, dw)


def assert_close(got, wanted, dtype):
    assert got.dtype == np.dtype(dtype) and got.flags.c_contiguous and got.shape == wanted.shape
    scale = max(np.abs(wanted).max(initial=0), 1)
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.fixture
def interface(cuda_device, monkeypatch):
    """The public functions, for NumPy arrays too where the kernels run on the host."""
    if cuda_device.name != "cuda":
        monkeypatch.setattr("adjoint.kernels.interface.conv.side", lambda array: cuda)
    return kernels


def computed(side, case, given):
    x, weight, bias, dy = given
    return (
        side.conv(x, weight, bias, *case.settings),
        side.conv_input_grad(dy, weight, case.x, *case.settings),
        side.conv_weight_grad(dy, x, case.weight, *case.settings),
    )


@pytest.mark.parametrize("case, dtype", ROWS)
def test_parity(cuda_device, interface, case, dtype):
    given, wanted = arrays(case, dtype)
    before = [array.copy() for array in given]
    on_device = [cuda_device.put(array) for array in given]
    for got, reference in zip(computed(interface, case, on_device), wanted, strict=True):
        assert_close(cuda_device.get(got), reference, dtype)
    for array, copy in zip(on_device, before, strict=True):
        np.testing.assert_array_equal(cuda_device.get(array), copy)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_parity_of_empty_arrays(cuda_device, interface, rank):
    for x, weight in (((0, 3), (3, 1)), ((2, 0), (2, 0))):
        case = Case("", (*x, *[5] * rank), (*weight, *[3] * rank), padding=1, groups=3 if x[1] else 1)
        given, wanted = arrays(case, "float32")
        on_device = [cuda_device.put(array) for array in given]
        for got, reference in zip(computed(interface, case, on_device), wanted, strict=True):
            assert_close(cuda_device.get(got), reference, "float32")


@pytest.mark.parametrize("dtype", NOT_DOUBLE)
@pytest.mark.parametrize("case", [CASES[0], CASES[8], CASES[18], CASES[24]], ids=lambda case: case.name)
def test_parity_of_misaligned_and_strided_arrays(cuda_device, interface, case, dtype):
    given, wanted = arrays(case, dtype)

    def shifted(a):
        memory = np.empty(a.size + 1, a.dtype)
        memory[1:] = a.reshape(-1)
        return cuda_device.put(memory)[1:].reshape(a.shape)

    def backwards(a):
        return cuda_device.put(np.ascontiguousarray(a[..., ::-1]))[..., ::-1]

    for view in (shifted, backwards):
        for got, reference in zip(computed(interface, case, [view(a) for a in given]), wanted, strict=True):
            assert_close(cuda_device.get(got), reference, dtype)


@pytest.mark.parametrize("case", FIXED, ids=lambda case: case.name)
def test_common_windows_have_kernels_of_their_own(case):
    dtype = np.dtype(np.float32)
    settings, groups = case.settings[::2], case.settings[3]
    assert depthwise.window_of(dtype, case.weight, *settings, groups) is not None
    assert depthwise.window_of(np.dtype(np.float64), case.weight, *settings, groups) is None


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("spoiled", ["x", "dy"])
@pytest.mark.parametrize(
    "case", [CASES[1], CASES[2], CASES[9], CASES[11], CASES[14], CASES[19], CASES[25]], ids=lambda case: case.name
)
def test_what_is_not_finite_stays_in_its_place(cuda_device, interface, case, spoiled, value):
    (x, weight, bias, dy), _ = arrays(case, "float32")
    array = x if spoiled == "x" else dy
    array[0, 0].flat[array[0, 0].size // 2] = array[-1, -1].flat[-1] = value
    with np.errstate(invalid="ignore"):
        y, _, dx, dw = naive(x, weight, lambda shape: dy, *case.settings)
    y += bias.reshape(-1, *[1] * (len(case.x) - 2))
    given = [cuda_device.put(array) for array in (x, weight, bias, dy)]
    for got, reference in zip(computed(interface, case, given), (y, dx, dw), strict=True):
        np.testing.assert_allclose(cuda_device.get(got), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["3x3, 7 wide, many planes", "7x7, bands", "3x3x3, chunks", "5x5/2", "volume"])
def test_results_repeat_bit_for_bit(cuda_device, interface, name):
    """In shuffled order too: no sum depends on which thread or block comes first."""
    case = next(case for case in CASES if case.name == name)
    rng = np.random.default_rng(2)
    given = [cuda_device.put(rng.standard_normal(a.shape).astype(a.dtype)) for a in arrays(case, "float32")[0]]
    first = [cuda_device.get(a) for a in computed(interface, case, given)]
    on_host = cuda_device.name != "cuda"
    with installed(HostLauncher(seed=7, sanitize=sanitizing())) if on_host else nullcontext():
        second = [cuda_device.get(a) for a in computed(interface, case, given)]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_weight_gradient_in_parts(cuda_device, interface, monkeypatch):
    monkeypatch.setattr(depthwise, "_WANTED_BLOCKS", 7)
    case = Case("", (9, 2, 41, 132), (2, 1, 3, 3), padding=1)
    given, wanted = arrays(case, "float32")
    on_device = [cuda_device.put(array) for array in given]
    got = interface.conv_weight_grad(on_device[3], on_device[0], case.weight, *case.settings)
    assert_close(cuda_device.get(got), wanted[2], "float32")


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="maps more memory than the sanitizer shadows")
def test_more_than_2_31_elements():
    """The last blocks of a batch whose arrays lie beyond 32-bit offsets; all other pages stay untouched."""
    planes, size = 2**17 + 96, 128
    x = np.empty((planes // 32, 32, size, size), np.float16)
    assert x.size > 2**31
    rng = np.random.default_rng(0)
    x[-1, -1] = rng.integers(-4, 5, (size, size))
    weight = rng.integers(-4, 5, (32, 1, 3, 3)).astype(np.float16)
    settings = ((1, 1), ((1, 1), (1, 1)), (1, 1), 32)
    with installed(HostLauncher(ends_only=4)):
        y, dx = cuda.conv(x, weight, None, *settings), cuda.conv_input_grad(x, weight, x.shape, *settings)
    with installed(HostLauncher(ends_only=lambda grid: [(grid[0] - 1, 0, 0)])):
        window = depthwise.window_of(x.dtype, weight.shape, (1, 1), (1, 1), 32)
        last_part = depthwise.weight_grad(window, x, x, (3, 3), (0, 1, 1))[-1]
    wanted = naive(x[-1:, -1:], weight[-1:], lambda shape: x[-1:, -1:], *settings[:3], 1)
    np.testing.assert_array_equal(y[-1, -1], wanted[0][0, 0])
    np.testing.assert_array_equal(dx[-1, -1], wanted[2][0, 0])
    np.testing.assert_array_equal(last_part[-9:], wanted[3].reshape(-1))


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    result = run_under_sanitizers(__file__, "-k", "parity or parts or in_its_place")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout


def test_every_variant_has_a_case(monkeypatch):
    launched = set()

    class Recorder(HostLauncher):
        def run(self, kernel, *args):
            launched.add(kernel)

    monkeypatch.setattr("adjoint.kernels.interface.conv.side", lambda array: cuda)
    with installed(Recorder()):
        for case in CASES:
            for dtype in case.dtypes:
                computed(kernels, case, arrays(case, dtype)[0])
    assert set(depthwise.VARIANTS) <= launched
