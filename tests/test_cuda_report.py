"""The report: each case keeps its limits, and the numbers in it are right."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from adjoint.kernels import __main__ as command
from adjoint.kernels import cuda
from adjoint.kernels.cuda import compile as cuda_compile
from adjoint.kernels.report import cases, measure, text
from adjoint.kernels.report.case import Case, normal
from adjoint.kernels.report.occupancy import LIMITS, occupancy, resident_blocks
from cuda_on_host import compiler, needs_compiler, sanitizing

CASES = cases.all_cases()
traced = pytest.mark.skipif(compiler() is None or sanitizing(), reason="needs a C++ compiler, and no sanitizers")


def _missing():
    try:
        cuda_compile.require_compiler()
    except RuntimeError as error:
        return str(error)
    return ""


needs_nvrtc = pytest.mark.skipif(bool(_missing()), reason=_missing())


@pytest.fixture(scope="module")
def measured():
    return {str(measurement.case): measurement for measurement in measure.measure(CASES)}


@traced
@pytest.mark.parametrize("name", [str(case) for case in CASES])
def test_a_case_keeps_its_limits(measured, name):
    assert not measured[name].problems()


@traced
@needs_nvrtc
def test_kernels_of_the_cases_fit_and_do_not_spill(measured):
    # One case of each family: test_cuda_compile.py holds all variants to it.
    fits = measure.fits(list({of.case.family: of for of in measured.values()}.values()))
    spilling = {(str(use.kernel), fit.resources.arch) for use, of in fits.items() for fit in of if fit.spills}
    assert not spilling
    assert all(fit.occupancy > 0 for of in fits.values() for fit in of)


def test_every_family_has_cases_and_names_are_unique():
    families = {case.family for case in CASES}
    assert families >= set(
        "activation batch_norm conv depthwise dropout embedding gemm layer_norm optimizer pooling softmax".split()
    )
    assert len({str(case) for case in CASES}) == len(CASES)


def test_a_case_with_limits_of_its_own_says_why():
    with pytest.raises(ValueError, match="go together"):
        Case("f", "3x3", "float32", lambda: lambda: None, needed=1, most_sectors=2)
    with pytest.raises(ValueError, match="go together"):
        Case("f", "3x3", "float32", lambda: lambda: None, needed=1, why="because")


def _softmax_case(needed, **limits):
    def prepare():
        logits, target = normal((16, 1024), "float32"), np.arange(16)
        return lambda: cuda.softmax_cross_entropy(logits, target, with_grad=True)

    return Case("softmax_cross_entropy", "16x1024", "float32", prepare, needed, **limits)


@traced
def test_the_numbers_of_a_case():
    needed = 2 * 16 * 1024 * 4 + 16 * 8
    (of,) = measure.measure([_softmax_case(needed)])
    assert not of.problems()
    # The targets are read again for the mean's denominator, and partial sums are written and read.
    assert 1 <= of.moved < 1.01 and of.moved <= of.through_l2 < 1.05
    assert of.sectors == pytest.approx(of.least_sectors, rel=0.01)
    assert of.conflicts == 0
    (of,) = measure.measure([_softmax_case(needed // 2)])
    assert of.problems() == [f"moves {of.moved:.2f} x the bytes needed, allowed are 1.1"]
    (of,) = measure.measure([_softmax_case(2 * needed)])
    assert "fewer are" in of.problems()[0]


@traced
@needs_nvrtc
def test_the_command_prints_both_tables():
    options = ["--report", "--match", "softmax_cross_entropy with gradient 8192x1000 float32"]
    result = subprocess.run([sys.executable, "-m", "adjoint.kernels", *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    heading = result.stdout.splitlines()[0].split()
    assert heading[4:] == ["launches", "moved", "L2", "L1", "sectors", "fewest", "conflicts"]
    assert "softmax_cross_entropy_rows<float, false, 32>" in result.stdout
    assert "sm_80" in result.stdout and "sm_90" in result.stdout and "sm_100" in result.stdout
    assert "1 cases" in result.stdout and "no problems" in result.stdout


def test_the_command_says_what_is_missing(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        command.main(["--report", "--match", "no such case"])
    assert "no case's name contains" in capsys.readouterr().err
    options = ["--report", "--match", "softmax_cross_entropy with gradient 8192x1000 float32"]
    with monkeypatch.context() as installed:
        installed.setattr(measure, "_TESTS", tmp_path)
        assert command.main(options) == 2
        assert "not of an installed package" in capsys.readouterr().err
    with monkeypatch.context() as without:
        without.setenv("CXX", "no-such-compiler")
        assert command.main(options) == 2
        assert "install a C++ compiler" in capsys.readouterr().err
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "cuda_on_host", None)
        assert command.main(options) == 2
        assert "pip install" in capsys.readouterr().err


@traced
def test_without_nvrtc_the_command_prints_what_it_can(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert command.main(["--report", "--match", "softmax_cross_entropy with gradient 8192x1000 float32"]) == 2
    out, err = capsys.readouterr()
    assert "moved" in out and "8192x1000" in out
    assert "pip install 'cupy-cuda12x[ctk]'" in err


# ---- occupancy


@pytest.mark.parametrize(
    "arch, threads, registers, shared, blocks",
    [
        # By hand from the limits of the CUDA programming guide.
        ("sm_90", 256, 32, 0, 8),  # 64 warps of 8
        ("sm_90", 256, 33, 0, 6),  # 40 x 32 registers a warp: 12 warps in each quarter of 16,384, 48 in all
        ("sm_90", 256, 255, 0, 1),
        ("sm_90", 1024, 64, 0, 1),
        ("sm_90", 1024, 65, 0, 0),  # does not launch
        ("sm_90", 32, 16, 0, 32),  # as many blocks as there may be
        ("sm_90", 128, 32, 48 * 1024, 4),  # 228 KB by 49 KB: one more for the system
        ("sm_80", 128, 32, 48 * 1024, 3),  # 164 KB by 49 KB
        ("sm_75", 256, 32, 0, 4),  # 32 warps
        ("sm_75", 256, 32, 20 * 1024, 3),
        ("sm_90", 256, 32, 228 * 1024, 0),
    ],
)
def test_blocks_of_a_multiprocessor(arch, threads, registers, shared, blocks):
    assert resident_blocks(arch, threads, registers, shared) == blocks
    assert occupancy(arch, threads, registers, shared) == blocks * (threads // 32) / LIMITS[arch].warps


CALCULATOR = """
#include <climits>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include "cuda_occupancy.h"

int main() {
    int major, minor, warps, threads, registers;
    size_t of_multiprocessor, of_block, reserved, shared;
    while (scanf("%d%d%d%zu%zu%zu%d%d%zu", &major, &minor, &warps, &of_multiprocessor, &of_block, &reserved, &threads,
                 &registers, &shared) == 9) {
        cudaOccDeviceProp device;
        device.computeMajor = major, device.computeMinor = minor;
        device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = 32 * warps;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536, device.warpSize = 32;
        device.sharedMemPerBlock = 48 << 10, device.sharedMemPerMultiprocessor = of_multiprocessor;
        device.numSms = 1, device.sharedMemPerBlockOptin = of_block, device.reservedSharedMemPerBlock = reserved;
        cudaOccFuncAttributes function;
        function.maxThreadsPerBlock = 1024, function.numRegs = registers, function.sharedSizeBytes = 0;
        function.partitionedGCConfig = PARTITIONED_GC_OFF, function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        function.maxDynamicSharedSizeBytes = of_block, function.numBlockBarriers = 1;
        cudaOccDeviceState state;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult result;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state, threads, shared)) return 1;
        printf("%d\\n", result.activeBlocksPerMultiprocessor);
    }
}
"""


@needs_compiler
def test_occupancy_agrees_with_nvidias_calculator(tmp_path):
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="finds CUDA's headers")
    folder = pathfinder.find_nvidia_header_directory("cudart")
    if folder is None:
        pytest.skip("needs CUDA's headers: pip install nvidia-cuda-runtime-cu12")
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    program = tmp_path / "calculator"
    build = [compiler(), "-w", "-I", folder, str(tmp_path / "calculator.cpp"), "-o", str(program)]
    subprocess.run(build, check=True)
    rng = np.random.default_rng(0)
    questions = [
        (arch, int(threads), int(registers), int(shared))
        for arch in LIMITS
        for threads, registers, shared in zip(
            32 * rng.integers(1, 33, 400),
            rng.integers(1, 256, 400),
            rng.integers(0, 2**18, 400) * (rng.random(400) < 0.6),
            strict=True,
        )
    ]
    lines = []
    for arch, threads, registers, shared in questions:
        limits, number = LIMITS[arch], int(arch[3:])
        sizes = (limits.shared_bytes, limits.block_bytes, limits.reserved_bytes)
        lines.append(" ".join(map(str, (number // 10, number % 10, limits.warps, *sizes, threads, registers, shared))))
    answers = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    assert [resident_blocks(*question) for question in questions] == [int(answer) for answer in answers.split()]


def test_columns_are_aligned():
    assert text._aligned([("a", "bb"), ("ccc", "1")], left=1) == "a    bb\nccc   1"
