"""The seam to CuPy, with a stand-in for CuPy: what is compiled, cached, checked and passed on."""

from __future__ import annotations

import errno
import inspect
import math
import os
import re
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from adjoint import kernels
from adjoint.kernels import cpu, cuda
from adjoint.kernels.cuda import launch, sums
from adjoint.kernels.cuda.cupy_launcher import CupyLauncher
from adjoint.kernels.cuda.kernel import Kernel
from cuda_on_host import CudaOnHostError, HostLauncher, installed, needs_compiler

SUM = Kernel("sums.cu", "sum_partials<float>")


class FakeDevice:
    current = None

    def __init__(self, number):
        self.id = number

    def __enter__(self):
        self.outer, FakeDevice.current = FakeDevice.current, self

    def __exit__(self, *_):
        FakeDevice.current = self.outer

    def __eq__(self, other):
        return self.id == other.id

    __hash__ = None

    def __str__(self):
        return f"<CUDA Device {self.id}>"

    compute_capability = "90"


class FakeArray:
    def __init__(self, shape=(4,), dtype=np.float32, device=0, contiguous=True):
        self.shape, self.strides, self.dtype = shape, (4,) * len(shape), np.dtype(dtype)
        self.device, self.flags = FakeDevice(device), SimpleNamespace(c_contiguous=contiguous)

    def copy(self, order):
        with self.device:
            return sys.modules["cupy"].empty(self.shape, self.dtype)


class FakeFunction:
    def __init__(self, calls):
        self.calls = calls
        self.limits = []

    @property
    def max_dynamic_shared_size_bytes(self):
        return self.limits[-1]

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, limit):
        self.limits.append(limit)

    def __call__(self, grid, block, args, *, shared_mem):
        self.calls.append((FakeDevice.current.id, grid, block, args, shared_mem))


class CompileException(Exception):
    pass


class OutOfMemoryError(MemoryError):
    """As CuPy's: its message is made from numbers."""

    def __init__(self, size, total, limit=0):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


@pytest.fixture
def cupy(monkeypatch):
    """Stands in for CuPy: `modules` are those made, `functions` those compiled, `calls` the launches.

    `log` is the compiler's complaint, `disk_error` that of the cache folder, `free` and `cached` are bytes of memory.
    """
    fake = SimpleNamespace(modules=[], functions=[], calls=[], log=None, disk_error=None, free=2**40, cached=0)

    class RawModule:
        def __init__(self, **options):
            fake.modules.append(options)

        def get_function(self, name):
            if fake.log:
                raise CompileException(fake.log)
            if fake.disk_error and os.environ.get("CUPY_CACHE_IN_MEMORY") != "1":
                raise fake.disk_error
            fake.functions.append(FakeFunction(fake.calls))
            return fake.functions[-1]

    def free_all_blocks():
        fake.free, fake.cached = fake.free + fake.cached, 0

    def empty(shape, dtype):
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > fake.free:
            raise OutOfMemoryError(size, 0)
        return FakeArray(shape, dtype, FakeDevice.current.id)

    fake.RawModule, fake.ndarray, fake.empty = RawModule, FakeArray, empty
    fake.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=free_all_blocks)
    fake.cuda = SimpleNamespace(
        compiler=SimpleNamespace(CompileException=CompileException),
        Device=FakeDevice,
        runtime=SimpleNamespace(getDeviceProperties=lambda device: {"name": b"GeForce GTX 1080"}),
    )
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "0")
    monkeypatch.setitem(sys.modules, "cupy", fake)
    with installed(CupyLauncher()):
        yield fake


def test_a_launch_goes_to_the_arrays_device_with_every_argument(cupy):
    x, y = FakeArray(device=3), FakeArray(device=3)
    launch.launch(SUM, (2, 5), (64,), [x, y, None, np.int32(7)], shared_bytes=128)
    ((device, grid, block, args, shared),) = cupy.calls
    assert (device, grid, block, shared) == (3, (2, 5, 1), (64, 1, 1), 128)
    assert args[:2] == (x, y)
    assert args[2] == 0 and args[2].itemsize == 8  # a null pointer
    assert type(args[3]) is np.int32


def test_each_variant_is_a_module_of_its_own_compiled_once_for_each_device(cupy):
    other = Kernel("sums.cu", "sum_partials<double>")
    for kernel, device in [(SUM, 0), (SUM, 0), (other, 0), (SUM, 1), (SUM, 1)]:
        launch.launch(kernel, (1,), (32,), [FakeArray(device=device)])
    assert [m["name_expressions"] for m in cupy.modules] == [(SUM.name,), (other.name,), (SUM.name,)]
    assert len(cupy.calls) == 5
    options = cupy.modules[0]["options"]
    assert "--std=c++17" in options and "--use_fast_math" not in options


def test_the_text_holds_our_headers_because_the_cache_on_disk_knows_the_text_only(cupy):
    launch.launch(Kernel("conv_direct.cu", "gather_direct<float>"), (1,), (32,), [FakeArray()])
    code = cupy.modules[0]["code"]
    assert '#include "' not in code
    assert code.count("struct AccumulatorOf {") == 1 and "struct Gather {" in code


def test_much_shared_memory_is_asked_for_once_for_each_device_and_larger_size(cupy):
    for size in (1000, 48 * 1024, 50_000, 50_000, 60_000, 50_000):
        launch.launch(SUM, (1,), (32,), [FakeArray()], shared_bytes=size)
    launch.launch(SUM, (1,), (32,), [FakeArray(device=1)], shared_bytes=50_000)
    assert [function.limits for function in cupy.functions] == [[50_000, 60_000], [50_000]]


def test_a_kernel_that_does_not_compile_is_named_with_the_log(cupy):
    cupy.log = "error: identifier is undefined"
    with pytest.raises(RuntimeError, match=r"(?s)sum_partials<float> \(sums.cu\).*is undefined"):
        launch.launch(SUM, (1,), (32,), [FakeArray()])
    cupy.log = 'could not open source file "cuda_fp16.h"'
    with pytest.raises(RuntimeError, match="pip install"):
        launch.launch(SUM, (1,), (32,), [FakeArray()])


def test_an_unknown_architecture_says_what_to_install(cupy):
    cupy.log = "nvrtc: error: invalid value for --gpu-architecture (-arch)"
    with pytest.raises(RuntimeError, match=r"(?s)sum_partials<float>.*cupy-cuda12x"):
        launch.launch(SUM, (1,), (32,), [FakeArray()])


def test_a_device_that_is_too_old_is_named_and_nothing_is_compiled(cupy, monkeypatch):
    monkeypatch.setattr(FakeDevice, "compute_capability", "61")
    message = r"sum_partials<float> .* needs compute capability 7\.0 .* device 2, GeForce GTX 1080, has 6\.1"
    with pytest.raises(RuntimeError, match=message):
        launch.launch(SUM, (1,), (32,), [FakeArray(device=2)])
    assert not cupy.modules
    for capability in ("70", "100", "120"):
        monkeypatch.setattr(FakeDevice, "compute_capability", capability)
        launch.launch(SUM, (1,), (32,), [FakeArray(device=2)])


def test_a_kernel_may_need_a_newer_device_than_others(cupy, monkeypatch):
    newer = replace(SUM, least=80)
    for capability, runs in (("75", False), ("80", True), ("120", True)):
        monkeypatch.setattr(FakeDevice, "compute_capability", capability)
        with installed(CupyLauncher()):
            assert launch.capability(FakeArray()) == int(capability)
            with nullcontext() if runs else pytest.raises(RuntimeError, match=r"needs compute capability 8\.0"):
                launch.launch(newer, (1,), (32,), [FakeArray()])
    assert len(cupy.modules) == 2


@needs_compiler
def test_the_host_stands_in_for_a_device_of_any_capability():
    x = np.zeros(4, np.float32)
    with installed(HostLauncher(capability=75)):
        assert launch.capability(x) == 75 and launch.shared_bytes(x) == 64 * 1024
        with pytest.raises(CudaOnHostError, match="needs capability 80, the device has 75"):
            launch.launch(replace(SUM, least=80), (1,), (32,), [x])
        with pytest.raises(CudaOnHostError, match="65537 bytes of shared memory, a block can have 65536"):
            launch.launch(SUM, (1,), (32,), [x], shared_bytes=65537)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_without_a_cache_folder_kernels_stay_in_memory_with_one_warning(cupy, number):
    cupy.disk_error = OSError(number, os.strerror(number), "/home/user/.cupy/kernel_cache/tmp1")
    with pytest.warns(RuntimeWarning, match=f"cannot keep compiled kernels in .*{os.strerror(number)}.*CUPY_CACHE_DIR"):
        launch.launch(SUM, (1,), (32,), [FakeArray()])
    other = Kernel("sums.cu", "sum_partials<double>")
    launch.launch(other, (1,), (32,), [FakeArray()])  # no second warning: it would be an error here
    assert len(cupy.calls) == 2


def test_an_error_that_is_not_about_the_cache_is_not_hidden(cupy, monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")

    def get_function(self, name):
        raise OSError("libnvrtc.so is damaged")

    monkeypatch.setattr(cupy.RawModule, "get_function", get_function)
    with pytest.raises(OSError, match="damaged"):
        launch.launch(SUM, (1,), (32,), [FakeArray()])


@pytest.mark.parametrize("number", [0, 1])
def test_import_and_use_of_cupy_survive_a_cache_folder_that_cannot_be_made(tmp_path, number):
    pytest.importorskip("cupy", reason="needs CuPy")
    (tmp_path / "file").write_text("")
    cache = [tmp_path / "file" / "cache", Path("/proc/no/cache")][number]
    program = (
        "import warnings, sys, os; warnings.simplefilter('always')\n"
        "from adjoint.engine import backend\n"
        "backend.cuda_is_available(); backend.cuda_is_available()\n"
        "import cupy.cuda.compiler; print(os.environ['CUPY_CACHE_IN_MEMORY'])"
    )
    environment = {**os.environ, "CUPY_CACHE_DIR": str(cache)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "1" and run.stderr.count("cannot keep compiled kernels") == 1


def test_memory_that_is_only_cached_is_given_back_before_an_error(cupy):
    cupy.free, cupy.cached = 100, 4000
    assert launch.empty((1000,), np.float32, FakeArray()).shape == (1000,)
    assert cupy.cached == 0


def test_out_of_memory_names_the_operation_and_the_bytes_and_leaves_room_for_smaller_work(cupy):
    cupy.free = 2**20
    with pytest.raises(OutOfMemoryError) as caught:
        _pooled(2**14)
    message = str(caught.value)
    assert re.match(
        r"max_pool\w*: out of memory on <CUDA Device 0>: wanted 134,217,728 bytes for an array of shape", message
    )
    assert "float16" in message and "Out of memory allocating 134,217,728 bytes" in message
    assert isinstance(caught.value, MemoryError)
    with pytest.raises(OutOfMemoryError, match=r"contiguous: out of memory .* wanted 2,097,152 bytes"):
        launch.contiguous(FakeArray((2**20,), np.float16, contiguous=False))
    _pooled(2**8)
    assert len(cupy.calls) == 1


def _pooled(size):
    return cuda.max_pool(FakeArray((1, 1, size, size), np.float16), (2, 2), (2, 2), (0, 0), (1, 1))


def test_new_arrays_are_made_on_the_device_of_another(cupy):
    array = launch.empty((2, 3), np.float64, FakeArray(device=2))
    assert (array.device.id, array.shape, array.dtype) == (2, (2, 3), np.float64)
    with pytest.raises(TypeError, match=r"CuPy arrays, got numpy.ndarray"):
        launch.empty((2,), np.float32, np.zeros(2))


def test_an_empty_grid_runs_and_compiles_nothing(cupy):
    launch.launch(SUM, (3, 0), (32,), [FakeArray((0,))])
    assert not cupy.calls and not cupy.modules


@pytest.mark.parametrize(
    "error, message, arg",
    [
        (TypeError, "argument 1 is int;", 3),
        (TypeError, "argument 1 is float;", 3.0),
        (TypeError, "argument 1 is ndarray;", np.zeros(3, np.float32)),
        (TypeError, "argument 1 is complex64;", np.complex64(1)),
        (TypeError, "no kernel takes complex64", FakeArray(dtype=np.complex64)),
        (ValueError, "argument 1 is not C-contiguous", FakeArray(contiguous=False)),
        (ValueError, "different devices", FakeArray(device=1)),
    ],
)
def test_what_no_kernel_can_take_is_refused_before_anything_runs(cupy, error, message, arg):
    with pytest.raises(error, match=message):
        launch.launch(SUM, (1,), (32,), [FakeArray(), arg])
    assert not cupy.modules


@pytest.mark.parametrize(
    "grid, block",
    [((1, 65536), (32,)), ((1, 1, 65536), (32,)), ((2**31,), (32,)), ((1,), (1025,)), ((1,), (0,))],
)
def test_launches_beyond_the_limits_of_cuda_are_refused(cupy, grid, block):
    with pytest.raises(ValueError, match="outside CUDA's limit"):
        launch.launch(SUM, grid, block, [FakeArray()])
    assert not cupy.calls


def test_a_launch_needs_an_array_and_a_struct_needs_every_field(cupy):
    with pytest.raises(TypeError, match="at least one array"):
        launch.launch(SUM, (1,), (32,), [np.int32(1), None])
    dtype = np.dtype([("a", np.int32), ("b", np.int64)], align=True)
    with pytest.raises(TypeError, match="has the fields"):
        launch.struct(dtype, a=1)
    assert launch.struct(dtype, b=2, a=1).tobytes() == np.array([1, 0, 2, 0], np.int32).tobytes()


def test_contiguous_copies_only_what_is_not():
    x = np.arange(12.0).reshape(3, 4)
    assert launch.contiguous(x) is x
    np.testing.assert_array_equal(launch.contiguous(x.T), x.T)
    assert launch.contiguous(x.T).flags.c_contiguous
    misaligned = np.frombuffer(bytes(17), np.uint8)[1:].view(np.float64)
    assert launch.contiguous(misaligned).flags.aligned
    assert launch.c_type(ml_dtypes.bfloat16) == "bfloat16"


def test_importing_the_kernels_imports_no_cupy():
    program = "import sys, adjoint.kernels.cuda; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@contextmanager
def _on_gpu():
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    if not cupy.is_available():
        pytest.skip("needs a GPU: CuPy finds no CUDA device")
    with installed(CupyLauncher()):
        yield cupy


def test_a_launch_on_a_gpu_uses_the_current_stream():
    with _on_gpu() as cupy:
        partial = cupy.ones((5, 1000), cupy.float32)
        y = launch.empty((1000,), cupy.float32, partial)
        with cupy.cuda.Stream(non_blocking=True) as stream:
            sums.sum_partials(partial, y)
            stream.synchronize()
        assert (y == 5).all()


def test_both_sides_have_the_same_functions_with_the_same_signatures():
    for name in kernels.__all__:
        on_cpu, on_cuda = (inspect.signature(getattr(side, name)) for side in (cpu, cuda))
        interface = inspect.signature(getattr(kernels, name))
        for side in (on_cpu, on_cuda):
            assert [(p.name, p.default) for p in side.parameters.values()] == [
                (p.name, p.default) for p in interface.parameters.values()
            ], name
