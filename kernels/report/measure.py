"""Run the cases on the host with every memory access counted, and read registers from the compiler."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..cuda import compile as cuda_compile
from ..cuda.compile import Resources, runs_on
from ..cuda.kernel import Kernel
from .case import Case
from .occupancy import occupancy

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
CAPABILITY = 80  # of the device to stand in for: the oldest of these, so that all can launch what it launches
SECTOR_BYTES = 32

_TESTS = Path(__file__).resolve().parents[2] / "tests"


class Missing(RuntimeError):
    """The report cannot be made here; the message says what is missing and how to get it."""


def host() -> Any:
    """The package of the checkout that runs kernels on the host."""
    if not (_TESTS / "cuda_on_host" / "__init__.py").exists():
        raise Missing(
            "the report runs the kernels on the host with tests/cuda_on_host, which is part of a checkout and not of "
            f"an installed package: {_TESTS} does not have it. Run `make kernels` in a checkout."
        )
    if str(_TESTS) not in sys.path:
        sys.path.append(str(_TESTS))
    try:
        package = importlib.import_module("cuda_on_host")
    except ImportError as error:
        raise Missing(f"the report needs what the tests need: {error}. pip install -e '.[test]'") from error
    if package.compiler() is None:
        raise Missing("the report runs the kernels on the host: install a C++ compiler (g++, or set CXX)")
    return package


@dataclass(frozen=True)
class Use:
    """A kernel as it was launched."""

    kernel: Kernel
    threads: int
    dynamic_bytes: int


@dataclass(frozen=True)
class Measurement:
    """One case and the traces of its launches."""

    case: Case
    traces: Sequence[Any]

    def _sum(self, value: Any) -> int:
        return sum(value(trace) for trace in self.traces)

    @cached_property
    def moved(self) -> float:
        """Bytes to and from device memory, if the L2 keeps everything, over those needed."""
        return self._sum(lambda trace: trace.bytes_moved) / self.case.needed

    @cached_property
    def through_l2(self) -> float:
        """Bytes that blocks get from the L2, if each gets everything once, over those needed."""
        return self._sum(lambda trace: trace.bytes_by_block) / self.case.needed

    @cached_property
    def asked(self) -> float:
        """Bytes of the sectors of all requests, which the L1 may answer, over those needed."""
        return self._sum(lambda trace: trace.sectors()) * SECTOR_BYTES / self.case.needed

    @cached_property
    def sectors(self) -> float:
        """Sectors of a request."""
        return self._sum(lambda trace: trace.sectors()) / self._requests

    @cached_property
    def least_sectors(self) -> float:
        """The fewest that hold as many bytes."""
        return self._sum(lambda trace: trace.least_sectors()) / self._requests

    @cached_property
    def _requests(self) -> int:
        return max(1, self._sum(lambda trace: trace.requests()))

    @cached_property
    def conflicts(self) -> float | None:
        """Cycles lost in a request to shared memory; None where there is none."""
        requests = self._sum(lambda trace: trace.requests(shared=True))
        return self._sum(lambda trace: trace.conflicts()) / requests if requests else None

    @property
    def uses(self) -> list[Use]:
        uses = (Use(t.kernel, t.block[0] * t.block[1] * t.block[2], t.shared_bytes) for t in self.traces)
        return list(dict.fromkeys(uses))

    def problems(self) -> list[str]:
        """Which of its limits the case breaks."""
        case, found = self.case, []
        if self.moved > case.most_bytes:
            found.append(f"moves {self.moved:.2f} x the bytes needed, allowed are {case.most_bytes}")
        if self.moved < 0.99:
            found.append(f"moves {self.moved:.2f} x the bytes that the case calls needed: fewer are")
        if self.sectors > case.most_sectors * self.least_sectors:
            times = self.sectors / self.least_sectors
            found.append(f"touches {times:.2f} x the fewest sectors a request can, allowed are {case.most_sectors}")
        if (self.conflicts or 0) > case.most_conflicts:
            found.append(f"{self.conflicts:.2f} conflicts a request, allowed are {case.most_conflicts}")
        return found


def measure(cases: Sequence[Case]) -> Iterator[Measurement]:
    """Trace each case. Raises `Missing` where that cannot be done."""
    package = host()
    package.build_traced(_launched(cases, package))
    for case in cases:
        capability = case.capability or CAPABILITY
        with package.installed(package.HostLauncher(trace=True, capability=capability)):
            call = case.prepare()
        launcher = package.HostLauncher(trace=True, capability=capability)
        with package.installed(launcher):
            call()
        yield Measurement(case, launcher.traces)


def _launched(cases: Sequence[Case], package: Any) -> list[Kernel]:
    """The kernels that the cases launch, without running them: so that they are built together."""
    launches: list[Kernel] = []
    for case in cases:
        launcher = package.HostLauncher(dry=True, capability=case.capability or CAPABILITY)
        with package.installed(launcher):
            case.prepare()()
        launches += launcher.launches
    return list(dict.fromkeys(launches))


@dataclass(frozen=True)
class Fit:
    """What a launched kernel uses, and how much of a multiprocessor it can fill."""

    use: Use
    resources: Resources

    @property
    def spills(self) -> bool:
        return self.resources.spill_bytes > 0 or self.resources.stack_bytes > 0

    @property
    def occupancy(self) -> float:
        used = self.resources
        return occupancy(used.arch, self.use.threads, used.registers, used.shared_bytes + self.use.dynamic_bytes)


def fits(measurements: Sequence[Measurement], archs: Sequence[str] = ARCHITECTURES) -> dict[Use, list[Fit]]:
    """For every kernel and architecture that runs it. Raises RuntimeError where NVRTC is missing."""
    uses = list(dict.fromkeys(use for measurement in measurements for use in measurement.uses))
    kernels = list(dict.fromkeys(use.kernel for use in uses))
    rows = {(row.kernel, row.arch): row for row in cuda_compile.resources_of(kernels, archs)}
    return {use: [Fit(use, rows[use.kernel, arch]) for arch in archs if runs_on(use.kernel, arch)] for use in uses}
