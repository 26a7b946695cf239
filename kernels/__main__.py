"""`python -m adjoint.kernels`: compile every CUDA kernel and print what it uses; with `--report`, what it costs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import chain

from .cuda import compile as cuda_compile
from .cuda.cupy_launcher import CupyLauncher
from .cuda.kernel import Kernel
from .cuda.variants import all_variants
from .report import cases, measure, text
from .report.case import Case


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0; 1 where a kernel spills, does not compile or breaks a case's limits; 2 where something is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m adjoint.kernels",
        description="Compile every variant of every CUDA kernel, which needs no GPU, and print what it uses.",
    )
    parser.add_argument(
        "--arch",
        action="extend",
        nargs="+",
        metavar="sm_90",
        help="architectures to compile for (default: all that the project supports and NVRTC knows)",
    )
    parser.add_argument("--match", default="", metavar="TEXT", help="only kernels (or cases) whose name contains TEXT")
    parser.add_argument(
        "--report",
        action="store_true",
        help="run the benchmark's cases on the host, every memory access counted, and print bytes, sectors, bank "
        "conflicts, registers and occupancy",
    )
    parser.add_argument(
        "--warm",
        action="store_true",
        help="compile for the GPU of this machine into CuPy's cache, so that no later program has to wait",
    )
    options = parser.parse_args(arguments)
    if options.report:
        chosen = [case for case in cases.all_cases() if options.match in str(case)]
        if not chosen:
            parser.error(f"no case's name contains {options.match!r}")
        return _report(chosen)
    kernels = [kernel for kernel in all_variants() if options.match in str(kernel)]
    if not kernels:
        parser.error(f"no kernel's name contains {options.match!r}")
    try:
        cuda_compile.require_compiler()
        if options.warm:
            _require_device()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        if options.warm:
            return _warm(kernels)
        return _compile(kernels, options.arch or cuda_compile.architectures())
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _require_device() -> None:
    import cupy

    if not cupy.is_available():
        raise RuntimeError("--warm needs a GPU: CuPy finds no CUDA device")


def _report(chosen: Sequence[Case]) -> int:
    start = time.perf_counter()
    try:
        measurements = list(measure.measure(chosen))
        print(text.cases_table(measurements), flush=True)
        fits = measure.fits(measurements)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{text.kernels_table(fits)}")
    problems = [f"{m.case}: {problem}" for m in measurements for problem in m.problems()]
    spilling = (f"{fit.use.kernel} spills on {fit.resources.arch}" for fit in chain(*fits.values()) if fit.spills)
    problems += dict.fromkeys(spilling)
    print("", *problems, sep="\n")
    seconds = time.perf_counter() - start
    print(f"{len(measurements)} cases, {len(fits)} kernels, {len(problems) or 'no'} problems, {seconds:.0f} s")
    return 1 if problems else 0


def _compile(kernels: Sequence[Kernel], archs: Sequence[str]) -> int:
    start = time.perf_counter()
    rows = list(cuda_compile.compile_kernels(kernels, archs))
    print(cuda_compile.table(rows))
    spilling = [row for row in rows if row.spill_bytes or row.stack_bytes]
    print(
        f"\n{len(kernels)} kernels for {', '.join(archs)} in {time.perf_counter() - start:.0f} s; "
        f"{len(spilling) or 'none'} spill registers or have a stack"
    )
    return 1 if spilling else 0


def _warm(kernels: Sequence[Kernel]) -> int:
    import cupy

    device = cupy.cuda.Device()
    launcher = CupyLauncher()
    start = time.perf_counter()
    for number, kernel in enumerate(kernels, 1):
        print(f"[{number}/{len(kernels)}] {kernel}", flush=True)
        launcher.load(kernel, device.id)
    seconds = time.perf_counter() - start
    print(f"{len(kernels)} kernels are ready for sm_{device.compute_capability}, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
