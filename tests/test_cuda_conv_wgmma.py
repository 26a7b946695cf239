"""Convolution by bulk tensor copies and wgmma: results, waits that must be there, where it is chosen, tensor maps."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from adjoint.kernels import cpu, cuda
from adjoint.kernels.cuda import conv_choice, conv_wgmma, cupy_launcher, launch, tensor_map
from adjoint.kernels.cuda.conv_choice import FORWARD, INPUT_GRAD, BulkTile, Problem
from adjoint.kernels.cuda.kernel import Compiled, Kernel
from adjoint.kernels.cuda.tensor_map import TensorMap, Window
from cuda_on_host import (
    CudaOnHostError,
    HostLauncher,
    device_fixture,
    installed,
    needs_compiler,
    run_under_sanitizers,
    sanitizing,
)

HALVES = [np.float16, ml_dtypes.bfloat16]
ROUNDING = {np.float16: 1e-3, ml_dtypes.bfloat16: 5e-3}

# Source, filters, window, stride, padding, dilation: tiles that span images, end within one, have channels left over.
SHAPES = {
    "3x3": ((2, 64, 9, 8), 130, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    "strides": ((3, 24, 10, 11), 40, (3, 2), (2, 3), ((1, 0), (0, 2)), (1, 1)),
    "1x1": ((1, 72, 12, 12), 128, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    "dilated": ((2, 70, 15, 13), 66, (3, 5), (1, 2), ((2, 2), (3, 1)), (2, 2)),
    "one line": ((4, 100, 1, 45), 70, (1, 4), (1, 2), ((0, 0), (1, 2)), (1, 1)),
    "larger than the source": ((1, 16, 3, 2), 8, (5, 5), (1, 1), ((3, 3), (4, 4)), (1, 1)),
}

cuda_device = device_fixture()


def _problem_of(name, dtype, seed=0):
    shape, filters, window, *rest = SHAPES[name]
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(dtype)
    weight = (rng.standard_normal((filters, shape[1], *window)) / 8).astype(dtype)
    return x, weight, rest


def _put(device, *arrays):
    if device.name == "cuda" and launch.capability(device.put(np.zeros(1))) != 90:
        pytest.skip("wgmma needs compute capability 9.0")
    return [None if array is None else device.put(array) for array in arrays]


def _assert_near(got, expected, dtype):
    error = np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected)
    assert error < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", SHAPES)
def test_forward(cuda_device, name, dtype):
    x, weight, (stride, padding, dilation) = _problem_of(name, dtype)
    bias = np.arange(len(weight)).astype(dtype)
    arguments = _put(cuda_device, x, weight, bias)
    with conv_choice.only(BulkTile()):
        y = cuda_device.get(cuda.conv(*arguments, stride, padding, dilation, 1))
    wide = [array.astype(np.float64) for array in (x, weight, bias)]
    _assert_near(y, cpu.conv(*wide, stride, padding, dilation, 1), dtype)


@pytest.mark.parametrize("activation", ["relu", "silu", None])
def test_bias_residual_and_activation_are_in_it(cuda_device, activation):
    x, weight, (stride, padding, dilation) = _problem_of("3x3", np.float16)
    bias = np.linspace(-1, 1, len(weight)).astype(np.float16)
    residual = np.random.default_rng(1).standard_normal((2, 130, 9, 8)).astype(np.float16)
    *given, residual_there = _put(cuda_device, x, weight, bias, residual)
    with conv_choice.only(BulkTile()):
        y = cuda_device.get(cuda.conv(*given, stride, padding, dilation, 1, activation, residual_there))
    wide = [array.astype(np.float64) for array in (x, weight, bias)]
    expected = cpu.conv(*wide, stride, padding, dilation, 1) + residual
    if activation == "relu":
        expected = np.maximum(expected, 0)
    elif activation == "silu":
        expected = expected / (1 + np.exp(-expected))
    _assert_near(y, expected, np.float16)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", SHAPES)
def test_input_gradient(cuda_device, name, dtype):
    x, weight, (stride, padding, dilation) = _problem_of(name, dtype)
    dy = np.random.default_rng(2).standard_normal(cpu.conv(x, weight, None, stride, padding, dilation, 1).shape)
    dy = dy.astype(dtype)
    given = _put(cuda_device, dy, weight)
    with conv_choice.only(BulkTile()):
        dx = cuda_device.get(cuda.conv_input_grad(*given, x.shape, stride, padding, dilation, 1))
    wide = [array.astype(np.float64) for array in (dy, weight)]
    _assert_near(dx, cpu.conv_input_grad(*wide, x.shape, stride, padding, dilation, 1), dtype)


@needs_compiler
def test_results_are_the_same_bits_in_every_order():
    x, weight, rest = _problem_of("3x3", np.float16)
    results = []
    for seed in (None, 0, 1, 2):
        with installed(HostLauncher(seed=seed)), conv_choice.only(BulkTile()):
            results.append(cuda.conv(x, weight, None, *rest, 1).tobytes())
    assert len(set(results)) == 1


class _Changed(HostLauncher):
    """Takes the kernel's source from another folder."""

    def __init__(self, folder, seed):
        super().__init__(seed=seed)
        self.folder = folder

    def run(self, kernel, *args):
        super().run(replace(kernel, folder=self.folder) if kernel.source == "conv_wgmma.cu" else kernel, *args)


CHANGES = {
    "nothing": (r"$^", ""),
    "the wait for copies": (r"barrier_wait\(loaded \+ number, step / kStages % 2\);", ""),
    "the wait for products": (r"wgmma_wait<0>\(\);", ""),
    "the wait for products that read a stage": (r"wgmma_wait<1>\(\);", "wgmma_wait<4>();"),
    "the barrier before a stage is loaded anew": (r"__syncthreads\(\);  // none reads the stage[^\n]*", ""),
}


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="builds sources of its own")
@pytest.mark.parametrize("what", CHANGES)
def test_a_kernel_without_a_wait_is_found_out(tmp_path, what):
    text = Kernel("conv_wgmma.cu", "").text()
    changed, count = re.subn(*CHANGES[what], text)
    assert count == (what != "nothing")
    (tmp_path / "conv_wgmma.cu").write_text(changed)
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(np.float16) for s in ((1, 64, 9, 8), (128, 64, 3, 3)))
    expected = cpu.conv(x.astype(np.float64), weight.astype(np.float64), None, (1, 1), ((1, 1), (1, 1)), (1, 1), 1)

    def right(seed):
        with installed(_Changed(tmp_path, seed)), conv_choice.only(BulkTile()):
            try:
                y = cuda.conv(x, weight, None, (1, 1), ((1, 1), (1, 1)), (1, 1), 1).astype(np.float64)
            except CudaOnHostError:
                return False
        return np.linalg.norm(y - expected) < 1e-3 * np.linalg.norm(expected)

    assert all(map(right, (None, 0, 1, 2))) == (what == "nothing")


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    result = run_under_sanitizers(__file__, "-k", "test_forward or test_bias or test_input_gradient")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="a traced build has no sanitizers")
def test_a_block_copies_each_tile_once():
    x = np.zeros((1, 128, 16, 8), np.float16)
    weight = np.zeros((128, 128, 3, 3), np.float16)
    launcher = HostLauncher(trace=True)
    with installed(launcher), conv_choice.only(BulkTile()):
        cuda.conv(x, weight, None, (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    trace = launcher.traces[-1]
    assert trace.kernel.source == "conv_wgmma.cu"
    read = sum(array.read for array in trace.arrays)
    assert (read, trace.bytes_moved) == (x.nbytes + weight.nbytes, 2 * x.nbytes + weight.nbytes)
    assert trace.conflicts() == 0
    # Pieces of 8 channels: pixels outside of the image are not read.
    pieces = sum(i.requests for i in trace.instructions if not i.write and not i.shared and i.bytes == 16)
    of_x = sum((16 - abs(r - 1)) * (8 - abs(s - 1)) for r in range(3) for s in range(3)) * 128 // 8
    assert pieces == of_x + weight.size // 8


# ---- where it is chosen


def _problem(**changes):
    fields = {
        "operation": FORWARD,
        "c_type": "bfloat16",
        "precision": "highest",
        "capability": 90,
        "groups": 1,
        "rows": 256,
        "channels": 256,
        "taps": 9,
        "pixels": 64 * 14 * 14,
        "places": 196,
        "bulk": True,
    }
    return Problem(**{**fields, **changes})


def test_it_is_chosen_on_capability_90_and_nowhere_else():
    bulk = BulkTile()
    assert conv_choice.choose(_problem()) == conv_choice.choose(_problem(operation=INPUT_GRAD)) == bulk
    others = [
        *({"capability": capability} for capability in (80, 89, 100, 120)),
        *({"c_type": "float"}, {"bulk": False}, {"operation": conv_choice.WEIGHT_GRAD}),
    ]
    for changes in others:
        assert bulk not in conv_choice.candidates(_problem(**changes)), changes
    # Small ones can run, but are left to smaller tiles.
    for changes in ({"rows": 64}, {"pixels": 4096}, {"channels": 8, "taps": 9}, {"channels": 24}):
        assert conv_choice.choose(_problem(**changes)) != bulk
        assert bulk in conv_choice.candidates(_problem(**changes))


def _fields(**changes):
    fields = {"groups": 1, "source": (1, 20, 30), "taps": (1, 3, 5), "out": (1, 20, 30), "step": (1, 1, 1)}
    return {**fields, "tap": (1, 1, 1), "first": (0, -1, -2), **changes}


def test_what_tensor_maps_describe():
    assert conv_wgmma.possible([_fields()])
    assert conv_wgmma.possible([_fields(step=(1, 8, 8), out=(1, 3, 4))])
    impossible = [
        *({"groups": 2}, {"source": (2, 20, 30)}, {"taps": (3, 3, 5)}, {"out": (2, 20, 30)}),
        *({"step": (1, 9, 1), "out": (1, 3, 30)}, {"first": (0, -129, 0)}, {"out": (1, 20, 300)}),
        *({"taps": (1, 1, 258)}, {"tap": (1, 1, -100)}),
    ]
    for changes in impossible:
        assert not conv_wgmma.possible([_fields(), _fields(**changes)]), changes


def test_a_window_holds_as_many_pixels_as_there_are_results():
    for step, first, out, tap in [(1, -2, 30, 1), (2, -1, 14, 3), (3, 0, 9, -2), (8, -7, 4, 1)]:
        window = conv_wgmma._window(_fields(step=(1, 1, step), first=(0, 0, first), out=(1, 20, out), tap=(1, 1, tap)))
        lower, upper = window.lower[0], 29 + window.upper[0]
        assert len(range(lower, upper + 1, step)) == out
        assert lower == first + min(0, 4 * tap)


# ---- the driver


class _Driver:
    def __init__(self, result=0):
        self.calls, self.result = [], result

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, [getattr(argument, "value", argument) for argument in arguments]))
            ctypes.memset(arguments[0].value, 7, 128)
            return self.result

        return call


def test_maps_are_encoded_by_the_driver(monkeypatch):
    driver = _Driver()
    monkeypatch.setattr(tensor_map, "_driver", lambda: driver)
    of_filters = TensorMap("bfloat16", (72, 5, 3, 130), (72, 360, 1080), 128)
    of_pixels = TensorMap("float16", (72, 30, 20, 4), (72, 2160, 43200), 128, Window((-2, -1), (-3, -2), (1, 2)))
    for one in (of_filters, of_pixels):
        encoded = tensor_map.encode(one, 0x1000)
        assert encoded.shape == (1,) and encoded.tobytes() == b"\x07" * 128
    (tiled, arguments), (im2col, of_window) = driver.calls
    assert (tiled, im2col) == ("cuTensorMapEncodeTiled", "cuTensorMapEncodeIm2col")
    assert arguments[0] % 64 == 0  # where the driver writes to
    values = [list(value) if isinstance(value, ctypes.Array) else value for value in arguments[1:]]
    # bfloat16, rank, address, dims, strides in bytes, box, steps; plain, swizzled over 128 bytes, L2 by 256, zeros.
    assert values[:3] == [9, 4, 0x1000]
    assert values[3:7] == [[72, 5, 3, 130], [144, 720, 2160], [64, 1, 1, 128], [1, 1, 1, 1]]
    assert values[7:] == [0, 3, 3, 0]
    values = [list(value) if isinstance(value, ctypes.Array) else value for value in of_window[1:]]
    assert values[:3] == [6, 4, 0x1000]
    assert values[3:] == [[72, 30, 20, 4], [144, 4320, 86400], [-2, -1], [-3, -2], 64, 128, [1, 1, 2, 1], 0, 3, 3, 0]


def test_a_map_that_the_driver_refuses_is_an_error(monkeypatch):
    monkeypatch.setattr(tensor_map, "_driver", lambda: _Driver(result=1))
    with pytest.raises(RuntimeError, match=r"cuTensorMapEncodeTiled: the driver's error 1 for TensorMap\(.* at 0x1008"):
        tensor_map.encode(TensorMap("float16", (64, 1, 1, 128), (64, 64, 64), 128), 0x1008)


def test_the_kernel_is_compiled_for_sm_90a_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "0")
    asked, loaded = [], []

    def compile_for(kernels, arch):
        asked.append(arch)
        return {kernels[0]: Compiled(b"machine code", "_Z6symbol", "")}

    class RawModule:
        def __init__(self, path):
            loaded.append(Path(path).read_bytes())

        def get_function(self, name):
            return name

    monkeypatch.setattr(cupy_launcher, "compile_for", compile_for)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=RawModule))
    nvrtc = SimpleNamespace(getVersion=lambda: (12, 9))
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs.nvrtc", nvrtc)
    kernel = BulkTile().kernel(FORWARD, "float16")
    assert [cupy_launcher._compiled(kernel) for _ in range(2)] == ["_Z6symbol"] * 2
    assert (asked, loaded) == (["sm_90a"], [b"machine code"] * 2)
    cupy_launcher._compiled(BulkTile().kernel(FORWARD, "bfloat16"))
    assert asked == ["sm_90a"] * 2
