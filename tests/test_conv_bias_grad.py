"""The bias gradient of a convolution on both sides, against sums in float64, PyTorch and finite differences."""

from __future__ import annotations

from contextlib import nullcontext

import ml_dtypes  # noqa: F401 (gives NumPy the name bfloat16)
import numpy as np
import pytest

import adjoint as ad
from adjoint import kernels
from adjoint.kernels import cpu
from adjoint.kernels.cpu import parallel
from adjoint.kernels.cuda import sums
from adjoint.kernels.cuda.kernel import SOURCE_FOLDER, Kernel
from cuda_on_host import HostLauncher, device_fixture, installed, needs_compiler, run_under_sanitizers, sanitizing

cuda_device = device_fixture()

DTYPES = ("float32", "float64", "float16", "bfloat16")
# One rounding of the result; sums of up to 20,000 numbers.
TOLERANCE = {"float64": 1e-14, "float32": 1e-6, "float16": 6e-4, "bfloat16": 4e-3}
SHAPES = [
    (3, 5, 7, 7),  # channels that begin between vectors
    (4, 8, 2, 2),  # several channels of a warp
    (9, 40, 14, 14),  # several groups of channels
    (2, 3, 70, 70),  # pieces of a plane, the last one shorter
    (5, 64, 1, 1),
    (33, 7, 3),  # rows that are no whole vectors; several parts
    (70, 4, 16, 8),
    (1, 1, 5000),
    (2, 2, 3, 10, 20),
    (4, 6),
    (1, 2049, 1),
]
EMPTY = [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)]


def expected(dy):
    """The sums, and those of absolute values, to which an error is relative."""
    dims = tuple(i for i in range(dy.ndim) if i != 1)
    wide = dy.astype(np.float64)
    return wide.sum(axis=dims), np.abs(wide).sum(axis=dims)


def assert_close(got, dy):
    wanted, size = expected(dy)
    assert got.dtype == dy.dtype and got.shape == wanted.shape
    tolerance = TOLERANCE[dy.dtype.name]
    room = tolerance * (np.abs(wanted) if dy.dtype.itemsize == 2 else size) + 1e-6 * size
    assert (np.abs(got.astype(np.float64) - wanted) <= room).all()


def normal(shape, dtype):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parity(cuda_device, dtype):
    for shape in [*SHAPES, *EMPTY]:
        dy = normal(shape, dtype)
        assert_close(cuda_device.get(sums.conv_bias_grad(cuda_device.put(dy))), dy)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_of_arrays_that_are_not_contiguous_or_aligned(cuda_device, dtype):
    dy = normal((3, 8, 6, 6), dtype)
    memory = np.empty(dy.size + 1, dtype)
    memory[1:] = dy.reshape(-1)
    for view in (
        cuda_device.put(memory)[1:].reshape(dy.shape),
        cuda_device.put(np.ascontiguousarray(dy[::-1, :, ::-1]))[::-1, :, ::-1],
        cuda_device.put(np.ascontiguousarray(dy.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2),
    ):
        assert_close(cuda_device.get(sums.conv_bias_grad(view)), dy)


def test_what_is_not_finite_stays_in_its_channel(cuda_device):
    for shape in ((3, 5, 7, 7), (2, 3, 70, 70), (33, 7, 3)):
        dy = normal(shape, "float32")
        dy[:, 1] = np.nan
        dy[:, 2, ...] = np.inf
        got = cuda_device.get(sums.conv_bias_grad(cuda_device.put(dy)))
        assert np.isnan(got[1]) and got[2] == np.inf
        assert_close(np.delete(got, [1, 2]), np.delete(dy, [1, 2], axis=1))


def test_results_repeat_bit_for_bit(cuda_device):
    on_device = cuda_device.put(normal((70, 4, 16, 8), "float32"))
    first = cuda_device.get(sums.conv_bias_grad(on_device))
    on_host = cuda_device.name != "cuda"
    with installed(HostLauncher(seed=7, sanitize=sanitizing())) if on_host else nullcontext():
        np.testing.assert_array_equal(cuda_device.get(sums.conv_bias_grad(on_device)), first)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 64, 56, 56), (16, 512, 7, 7), (64, 1024, 1, 1)])
def test_memory(dtype, shape):
    """dy is read once, by whole sectors; in shared memory only sums of planes that begin anywhere meet a bank twice."""
    dy = normal(shape, dtype)
    tracing = HostLauncher(trace=True)
    with installed(tracing):
        sums.conv_bias_grad(dy)
    trace = tracing.traces[0]
    (read,) = (array.read for array in trace.arrays if 0 in array.arguments)
    assert read == dy.nbytes
    assert trace.sectors() <= 1.1 * trace.least_sectors()
    assert trace.conflicts() <= (0.4 if shape[2] == 7 else 0) * trace.requests(shared=True)


def test_an_image_beyond_32_bit_offsets_is_refused():
    dy = np.broadcast_to(np.float32(0), (1, 2, 2**15, 2**15))
    with pytest.raises(ValueError, match="conv_bias_grad: an image has 2147483648 elements"):
        sums.conv_bias_grad(dy)


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_numpy(dtype):
    for shape in [*SHAPES, *EMPTY, (2, 3, 300, 310)]:
        dy = normal(shape, dtype)
        assert_close(kernels.conv_bias_grad(dy), dy)
        assert_close(kernels.conv_bias_grad(dy[::-1]), dy)
        assert_close(kernels.conv_bias_grad(np.asfortranarray(dy)), dy)


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_numpy_results_do_not_depend_on_threads(dtype, monkeypatch):
    monkeypatch.setattr(cpu.channel_sums, "_PIECE_BYTES", 1 << 12)
    monkeypatch.setattr(parallel, "_SHARED_BYTES", 0)
    before = parallel.threads()
    try:
        for shape in ((9, 40, 14, 14), (64, 7, 3)):
            dy, results = normal(shape, dtype), []
            for threads in (1, 2, 3):
                parallel.set_threads(threads)
                results.append(kernels.conv_bias_grad(dy))
            assert_close(results[0], dy)
            for other in results[1:]:
                np.testing.assert_array_equal(other, results[0])
    finally:
        parallel.set_threads(before)


def test_wrong_arrays():
    with pytest.raises(ValueError, match=r"conv_bias_grad: the gradient must have the shape .* got \(3,\)"):
        kernels.conv_bias_grad(np.zeros(3))
    with pytest.raises(TypeError, match="conv_bias_grad: dy must be float32, float64, float16 or bfloat16, got int64"):
        kernels.conv_bias_grad(np.zeros((2, 3), np.int64))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_convolution_has_derivatives_by_its_bias_of_first_and_second_order(rank):
    function = (ad.nn.functional.conv1d, ad.nn.functional.conv2d, ad.nn.functional.conv3d)[rank - 1]
    rng = np.random.default_rng(1)

    def random(*shape):
        return ad.tensor(rng.standard_normal(shape), requires_grad=True)

    x, weight, bias = random(2, 3, *[5] * rank), random(4, 3, *[3] * rank), random(4)

    def square(*inputs):  # so that the bias has a second derivative
        return function(*inputs) ** 2

    assert ad.autograd.gradcheck(square, (x, weight, bias))
    assert ad.autograd.gradgradcheck(square, (x, weight, bias))


def test_pytorch_agrees():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    dy = normal((4, 6, 9, 8), "float32")
    bias = torch.zeros(6, requires_grad=True)
    torch.nn.functional.conv2d(torch.ones(4, 2, 9, 8), torch.ones(6, 2, 1, 1), bias).backward(torch.tensor(dy))
    np.testing.assert_allclose(kernels.conv_bias_grad(dy), bias.grad, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_without_its_barrier_the_kernel_is_wrong_here(tmp_path, monkeypatch):
    pieces = (SOURCE_FOLDER / "sums.cu").read_text().split("__syncthreads();")
    assert len(pieces) == 3
    (tmp_path / "sums.cu").write_text(pieces[0] + "__syncthreads();" + pieces[1] + pieces[2])
    monkeypatch.setattr(sums, "Kernel", lambda source, name: Kernel(source, name, tmp_path))
    dy = normal((3, 5, 7, 7), "float32")
    with installed(HostLauncher(seed=1)):
        got = sums.conv_bias_grad(dy)
    with pytest.raises(AssertionError):
        assert_close(got, dy)


@needs_compiler
@pytest.mark.skipif(sanitizing(), reason="starts the run with sanitizers")
def test_under_sanitizers():
    result = run_under_sanitizers(__file__, "-k", "parity")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
