"""Runs cases: one row for each, with both sides' times, the floor and the error."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np

from .case import Case, Counted, Leaving, Step, Timed
from .ceilings import Ceilings
from .library import Library
from .timing import Plan, Sampler, Summary, measure_in_turn, relative_error, summary

ROOT = Path(__file__).resolve().parent.parent
# Steps on a GPU go round over so many bytes of separate buffers: well beyond any L2 cache.
ROTATED_BYTES = 256 << 20
MOST_COPIES = 32
STEPS_BEFORE_A_REPLAY = 3  # the first ones run as they are, or are captured
PROCESSES = 7  # fresh processes for each side of a counted case


@dataclass(frozen=True)
class Row:
    """One case measured. Seconds (or bytes, see `unit`) per run. Of the peer's layouts the fastest counts."""

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
    peer_error: float | None = None
    arithmetic: str = ""
    layouts: Mapping[str, Summary] = field(default_factory=dict)  # the peer's in each, where there are several

    @property
    def layout(self) -> str:
        """The peer's fastest layout, where there are several."""
        return next((name for name, summary in self.layouts.items() if summary is self.peer), "")

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
        error, peer_error = self._errors(case) if case.check else (None, None)
        sides = [self.ours.variant(captures=case.captured)]
        if self.peer is not None:
            sides += [self.peer.variant(layout, case.captured) for layout in case.layouts]
        with ExitStack() as stack:
            for library in self.sides:
                stack.enter_context(library.precision(case.precision))
            ours, *theirs = measure_in_turn([_sampler(case, library) for library in sides], self.plan)
        for library in self.sides:
            library.release()
        named = dict(zip((layout or "channels_first" for layout in case.layouts), theirs, strict=False))
        return Row(
            *(suite, case.operation, case.shape, case.dtype),
            precision=_precision(case, self.ours.device),
            unit="s",
            ours=ours,
            peer=min(theirs, key=lambda summary: summary.median, default=None),
            floor=self.ceilings.floor(case.bytes, case.operations, case.arithmetic),
            error=error,
            peer_error=peer_error,
            arithmetic=case.arithmetic,
            layouts=named if len(named) > 1 else {},
        )

    def _errors(self, case: Timed) -> tuple[float, float | None]:
        """Ours, as it is timed, and the peer's, as it comes; both against the peer's float64 results or else ours."""
        with (self.peer or self.ours).once():
            exact = _outputs(case, self.peer or self.ours, "float64")
        error = relative_error(_outputs(case, self.ours.variant(captures=case.captured), case.dtype), exact)
        if self.peer is None:
            return error, None
        return error, relative_error(_outputs(case, self.peer, case.dtype), exact)

    def _counted(self, suite: str, case: Counted) -> Row:
        processes = PROCESSES if self.plan.settle else 1
        values: list[list[float]] = [[] for _ in self.sides]
        for _ in range(processes):
            for taken, library in zip(values, self.sides, strict=True):
                taken.append(_number_from_process(case, library.name))
        ours, *theirs = map(summary, values)
        labels = (suite, case.operation, case.shape, case.dtype, "", case.unit)
        return Row(*labels, ours, theirs[0] if theirs else None)


def _sampler(case: Timed, library: Library) -> Sampler:
    copies = 1
    if library.device == "cuda" and case.bytes:
        copies = max(1, min(MOST_COPIES, math.ceil(ROTATED_BYTES / case.bytes)))
    steps = cycle([library.captured(case.make(library, case.dtype)) for _ in range(copies)])

    def sample(count: int) -> float:
        return library.elapsed(lambda: _repeat(steps.__next__, count))

    return sample


def _outputs(case: Timed, library: Library, dtype: str) -> list[np.ndarray]:
    """The first results, in float64 on the CPU; of a captured step the first ones that a graph makes."""
    with library.precision(case.precision):
        made = case.make(library, dtype)
        step = library.captured(made)
        for _ in range(STEPS_BEFORE_A_REPLAY if case.captured else 0):
            step()
        outputs = [*step(), *(made.left() if isinstance(made, Leaving) else ())]
        arrays = [library.array(output) for output in outputs]
    library.release()
    return arrays


def _repeat(next_step: Callable[[], Step], count: int) -> None:
    for _ in range(count):
        next_step()()


def _precision(case: Timed, device: str) -> str:
    """What sums and products are computed in, on both sides."""
    if case.dtype in ("float16", "bfloat16"):
        return "float32 sums"
    if device == "cpu" or case.dtype != "float32":
        return case.dtype
    return "TF32" if case.precision == "high" else "strict float32"


def _number_from_process(case: Counted, library: str) -> float:
    command = [sys.executable, *(part.format(library=library) for part in case.arguments)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{case.operation}: {' '.join(command)} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])
