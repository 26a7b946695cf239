"""Runs cases: one row for each, with both sides' times, the floor and the error."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from .case import Case, Counted, Step, Timed
from .ceilings import Ceilings
from .library import Library
from .timing import Plan, Sampler, Summary, measure_in_turn, relative_error, summary

ROOT = Path(__file__).resolve().parent.parent
# Steps on a GPU go round over so many bytes of separate buffers: well beyond any L2 cache.
ROTATED_BYTES = 512 << 20
MOST_COPIES = 64
PROCESSES = 7  # fresh processes for each side of a counted case


@dataclass(frozen=True)
class Row:
    """One case measured. Seconds (or bytes, see `unit`) per run."""

    suite: str
    operation: str
    shape: str
    dtype: str
    precision: str
    unit: str
    ours: Summary
    peer: Summary | None = None
    floor: float | None = None
    error: float | None = None

    @property
    def ratio(self) -> float | None:
        """The peer's time over ours: above 1 ours is faster."""
        return self.peer.median / self.ours.median if self.peer else None

    @property
    def unsteady(self) -> bool:
        """Whether either side's samples spread widely."""
        return self.ours.unsteady or (self.peer is not None and self.peer.unsteady)

    @property
    def part_of_floor(self) -> float | None:
        """The floor over our time: 1 is as fast as this machine can be."""
        return self.floor / self.ours.median if self.floor else None


@dataclass(frozen=True)
class Runner:
    """What every case of a run has in common."""

    ours: Library
    peer: Library | None
    ceilings: Ceilings
    plan: Plan

    @property
    def sides(self) -> list[Library]:
        """Our library, and the peer if there is one."""
        return [self.ours] if self.peer is None else [self.ours, self.peer]

    def run(self, suite: str, case: Case) -> Row:
        """The row of one case."""
        return self._timed(suite, case) if isinstance(case, Timed) else self._counted(suite, case)

    def _timed(self, suite: str, case: Timed) -> Row:
        error = self._error(case) if case.check else None
        samplers = [self._sampler(case, library) for library in self.sides]
        ours, peer = _pair(measure_in_turn(samplers, self.plan))
        floor = self.ceilings.floor(case.bytes, case.operations, case.dtype)
        labels = (suite, case.operation, case.shape, case.dtype, _precision(case.dtype, self.ours.device))
        return Row(*labels, "s", ours, peer, floor, error)

    def _sampler(self, case: Timed, library: Library) -> Sampler:
        copies = 1
        if library.device == "cuda" and case.bytes:
            copies = max(1, min(MOST_COPIES, math.ceil(ROTATED_BYTES / case.bytes)))
        steps = cycle([case.make(library, case.dtype) for _ in range(copies)])

        def sample(count: int) -> float:
            return library.elapsed(lambda: _repeat(steps.__next__, count))

        return sample

    def _error(self, case: Timed) -> float:
        """Against the peer's float64 result, or without a peer against our own."""
        reference = self.peer or self.ours
        got = [self.ours.array(output) for output in case.make(self.ours, case.dtype)()]
        exact = [reference.array(output) for output in case.make(reference, "float64")()]
        return relative_error(got, exact)

    def _counted(self, suite: str, case: Counted) -> Row:
        processes = PROCESSES if self.plan.settle else 1
        values: list[list[float]] = [[] for _ in self.sides]
        for _ in range(processes):
            for taken, library in zip(values, self.sides, strict=True):
                taken.append(_number_from_process(case, library.name))
        ours, peer = _pair([summary(taken) for taken in values])
        return Row(suite, case.operation, case.shape, case.dtype, "", case.unit, ours, peer)


def _pair(sides: Sequence[Summary]) -> tuple[Summary, Summary | None]:
    return sides[0], sides[1] if len(sides) > 1 else None


def _repeat(next_step: Callable[[], Step], count: int) -> None:
    for _ in range(count):
        next_step()()


def _precision(dtype: str, device: str) -> str:
    """What sums and products are computed in, on both sides."""
    if dtype in ("float16", "bfloat16"):
        return "float32 sums"
    return f"{dtype}, TF32 off" if device == "cuda" and dtype == "float32" else dtype


def _number_from_process(case: Counted, library: str) -> float:
    command = [sys.executable, *(part.format(library=library) for part in case.arguments)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{case.operation}: {' '.join(command)} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])
