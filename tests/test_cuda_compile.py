"""Every kernel compiles for every architecture, without a GPU, and keeps its variables in registers."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest

from adjoint.kernels import __main__ as command
from adjoint.kernels.cuda import compile as cuda_compile
from adjoint.kernels.cuda.kernel import SOURCE_FOLDER, Kernel, compile_for
from adjoint.kernels.cuda.variants import all_variants

SUM = Kernel("sums.cu", "sum_partials<float>")


def _missing():
    try:
        cuda_compile.require_compiler()
    except RuntimeError as error:
        return str(error)
    return ""


# On the shortest way through the inner loop. A product takes a scheduler's tensor cores eight cycles on sm_80 and four
# on sm_90, in each of which one instruction can begin.
LEAST_TENSOR_SHARE = 0.08
LEAST_BULK_SHARE = 0.03  # a product of wgmma takes 32 cycles of a multiprocessor's tensor cores
NEWER = ("sm_80", "sm_90", "sm_100")
needs_nvrtc = pytest.mark.skipif(bool(_missing()), reason=_missing())


def _compile(kernels, archs):
    rows = list(cuda_compile.resources_of(kernels, archs))
    wanted = {pair for pair in itertools.product(kernels, archs) if cuda_compile.runs_on(*pair)}
    assert {(row.kernel, row.arch) for row in rows} == wanted
    spilling = [row for row in rows if row.spill_bytes or row.stack_bytes]
    assert not spilling, "\n" + cuda_compile.table(spilling)
    idle = [row for row in rows if "mma<" in row.kernel.name and _is_idle(row)]
    assert not idle, "\n" + cuda_compile.table(idle)


def _is_idle(row):
    least = LEAST_BULK_SHARE if row.kernel.only else LEAST_TENSOR_SHARE
    return (row.most_tensor_share or 0) < least


@needs_nvrtc
def test_every_variant_compiles_without_spills():
    _compile(all_variants(), NEWER)


@needs_nvrtc
def test_a_fifth_of_the_variants_compile_for_older_architectures():
    """`make kernels` compiles all of them, which takes minutes more."""
    archs = cuda_compile.architectures()
    assert {"sm_75", *NEWER} <= set(archs)
    _compile(all_variants()[::5], [arch for arch in archs if arch not in NEWER])


@needs_nvrtc
def test_what_compiled_before_is_read_from_the_cache_and_a_failure_never_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "half.cu"
    source.write_text("__global__ void good(float* p) { p[threadIdx.x] = 1; }\n__global__ void bad(float* p) { no; }")
    good, bad = (Kernel("half.cu", name, tmp_path) for name in ("good", "bad"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"good \(half.cu\), bad \(half.cu\): compilation failed"):
            list(cuda_compile.resources_of([good, bad], ["sm_90"]))
    assert not list(tmp_path.glob("cache/**/*.json"))

    source = tmp_path / "whole.cu"
    source.write_text("__global__ void good(float* p) { p[threadIdx.x] = 1; }")
    good = Kernel("whole.cu", "good", tmp_path)
    first = list(cuda_compile.resources_of([good], ["sm_80", "sm_90"]))
    assert [row.arch for row in first] == ["sm_80", "sm_90"]
    with monkeypatch.context() as without_compiler:
        without_compiler.setattr(cuda_compile, "compile_kernels", lambda kernels, *_: iter(kernels and [None]))
        assert list(cuda_compile.resources_of([good], ["sm_80", "sm_90"])) == first
    # Another text or option is another kernel.
    other = tmp_path / "other" / "whole.cu"
    other.parent.mkdir()
    other.write_text(source.read_text() + "// changed")
    assert cuda_compile._kept(Kernel("whole.cu", "good", other.parent), "sm_80") is None
    monkeypatch.setattr(cuda_compile, "OPTIONS", ("--std=c++20",))
    assert cuda_compile._kept(good, "sm_80") is None


@needs_nvrtc
def test_kernels_are_compiled_for_the_architectures_that_run_them():
    newer = replace(SUM, least=90)
    for compiled in (cuda_compile.compile_kernels, cuda_compile.resources_of):
        rows = compiled([SUM, newer], ["sm_80", "sm_90"])
        assert sorted((row.kernel.least, row.arch) for row in rows) == [(70, "sm_80"), (70, "sm_90"), (90, "sm_90")]


@needs_nvrtc
def test_spills_are_seen(tmp_path):
    (tmp_path / "spills.cu").write_text(
        """
        __global__ void __launch_bounds__(1024) spills(float* p) {
            float a[128];
            for (int i = 0; i < 128; ++i) a[i] = p[i * 1024 + threadIdx.x];
            __syncthreads();
            for (int k = 0; k < 8; ++k)
        #pragma unroll
                for (int i = 0; i < 128; ++i) a[i] = a[i] * a[(i + 7) % 128] + a[(i + 77) % 128];
            for (int i = 0; i < 128; ++i) p[i * 1024 + threadIdx.x] = a[i];
        }
        """
    )
    kernel = Kernel("spills.cu", "spills", tmp_path)
    (row,) = cuda_compile.compile_kernels([kernel], ["sm_90"])
    assert row.spill_bytes > 0 and row.registers == 64


@needs_nvrtc
def test_a_kernel_that_does_not_compile_is_named_with_the_log(tmp_path):
    (tmp_path / "wrong.cu").write_text("__global__ void wrong(float* p) { p[0] = undefined_name; }")
    with pytest.raises(RuntimeError, match=r"(?s)wrong \(wrong.cu\).* for sm_90:.*undefined_name"):
        compile_for([Kernel("wrong.cu", "wrong", tmp_path)], "sm_90")


@needs_nvrtc
def test_the_command_prints_a_table():
    options = ["--arch", "sm_80", "sm_90", "--match", "sum_partials<float> (sums"]
    result = subprocess.run([sys.executable, "-m", "adjoint.kernels", *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["kernel", "arch", "registers", "shared", "stack", "spills", "tensor", "seconds"]
    assert sum("sum_partials<float> (sums.cu)" in line for line in lines) == 2
    assert "1 kernels for sm_80, sm_90" in lines[-1] and "none spill" in lines[-1]


@needs_nvrtc
def test_the_command_fails_where_a_kernel_spills(monkeypatch, capsys):
    row = cuda_compile.Resources(SUM, "sm_90", 255, 0, 8, 16, 0.1)
    monkeypatch.setattr(cuda_compile, "compile_kernels", lambda *_: iter([row]))
    assert command.main(["--arch", "sm_90"]) == 1
    assert "1 spill" in capsys.readouterr().out


@needs_nvrtc
def test_an_unknown_architecture_is_an_error(capsys):
    for arch, message in (("sm_999", "sum_partials<float>"), ("sm_61", "need sm_70 or newer"), ("90", "as in sm_90")):
        assert command.main(["--arch", arch, "--match", "sum_partials<float>"]) == 1
        assert message in capsys.readouterr().err


def test_without_cupy_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert command.main([]) == 2
    assert "pip install 'cupy-cuda12x[ctk]'" in capsys.readouterr().err


def test_warming_the_cache_needs_a_gpu(capsys):
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    if cupy.is_available():
        pytest.skip("has a GPU")
    assert command.main(["--warm", "--match", "sum_partials<float>"]) == 2
    assert "needs a GPU" in capsys.readouterr().err


def test_every_source_has_variants_and_every_variant_a_source():
    in_variants = {kernel.source for kernel in all_variants()}
    assert in_variants == {path.name for path in SOURCE_FOLDER.glob("*.cu")}
