"""Convolution on tensor cores: every tile against plain loops in float64, its numerics, and what it costs in memory."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest
from naive_conv import naive

from adjoint import kernels
from adjoint.kernels import cuda
from adjoint.kernels.cuda import conv_choice
from adjoint.kernels.cuda.conv_choice import FORWARD, TABLE, TensorTile
from adjoint.kernels.precision import set_float32_matmul_precision
from cuda_on_host import device_fixture

cuda_device = device_fixture()

DTYPES = {"float": "float32", "float16": "float16", "bfloat16": "bfloat16"}
TOLERANCE = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
TILES = [
    pytest.param(row.variant, c_type, id=row.variant.kernel(FORWARD, c_type).name)
    for row in TABLE
    if isinstance(row.variant, TensorTile) and FORWARD in row.operations
    for c_type in row.types
]


@dataclass(frozen=True)
class Case:
    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def settings(self):
        return self.stride, self.padding, self.dilation, self.groups


SAME = ((1, 1), (1, 1))
CASES = [
    Case("3 to 5 channels, 7x9", (2, 3, 7, 9), (5, 3, 3, 3), (1, 1), SAME, (1, 1)),
    Case("3x3, runs of four pixels", (3, 17, 6, 6), (34, 17, 3, 3), (1, 1), SAME, (1, 1)),
    Case(
        "stride 2 and 3, dilation, all paddings differ", (2, 9, 13, 11), (10, 9, 3, 2), (2, 3), ((2, 0), (1, 3)), (2, 1)
    ),
    Case("stride 2, groups", (2, 32, 8, 10), (36, 16, 3, 3), (2, 2), SAME, (1, 1), 2),
    Case("several tiles", (1, 40, 13, 11), (140, 40, 1, 2), (1, 1), ((0, 0), (0, 1)), (1, 1)),
    Case("stride larger than the kernel", (1, 16, 9, 8), (16, 16, 2, 1), (3, 4), ((0, 0), (0, 0)), (1, 1)),
    Case("sequence, causal", (3, 20, 30), (24, 20, 4), (1,), ((6, 0),), (2,)),
    Case("volume, stride 2", (1, 18, 5, 6, 7), (20, 18, 2, 3, 3), (2, 1, 2), ((1, 0), (1, 1), (0, 2)), (1, 2, 1)),
]


def exact(rng, shape, dtype):
    """Small integers over 8, exact in tf32 and in every dtype, so that only the sums are rounded."""
    return (rng.integers(-16, 17, shape) / 8).astype(dtype)


def arrays(case, dtype):
    """x, weight, bias, dy; and y, dx in float64."""
    rng = np.random.default_rng(0)
    x, weight, bias = (exact(rng, shape, dtype) for shape in (case.x, case.weight, case.weight[:1]))
    y, dy, dx, _ = naive(x, weight, lambda shape: exact(rng, shape, dtype), *case.settings)
    y += bias.astype(np.float64).reshape(-1, *[1] * (x.ndim - 2))
    return (x, weight, bias, dy), (y, dx)


def assert_close(got, wanted, dtype):
    assert got.dtype == np.dtype(dtype) and got.flags.c_contiguous and got.shape == wanted.shape
    scale = max(np.abs(wanted).max(initial=0), 1)
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.fixture(autouse=True)
def interface(request, monkeypatch):
    """The public functions run on the host too."""
    monkeypatch.setattr("adjoint.kernels.interface.conv.side", lambda array: cuda)


@pytest.fixture
def only(monkeypatch):
    """Lets one variant run everything."""
    return lambda variant: monkeypatch.setattr(conv_choice, "choose", lambda problem: variant)


@pytest.fixture
def high():
    set_float32_matmul_precision("high")
    yield
    set_float32_matmul_precision("highest")


def computed(case, given):
    x, weight, bias, dy = given
    return (
        kernels.conv(x, weight, bias, *case.settings),
        kernels.conv_input_grad(dy, weight, case.x, *case.settings),
    )


@pytest.mark.parametrize("tile, c_type", TILES)
def test_parity(cuda_device, only, tile, c_type):
    only(tile)
    dtype = DTYPES[c_type]
    for case in CASES:
        given, wanted = arrays(case, dtype)
        on_device = [cuda_device.put(array) for array in given]
        for got, reference in zip(computed(case, on_device), wanted, strict=True):
            assert_close(cuda_device.get(got), reference, dtype)
        for array, before in zip(on_device, given, strict=True):
            np.testing.assert_array_equal(cuda_device.get(array), before)
