"""The benchmark runner. From the repository's root:

    python -m bench                                   every suite on the CPU, adjoint alone
    python -m bench conv train --against torch        two suites, both libraries in turn in one process
    python -m bench --device cuda --against torch     on a GPU; the results go to bench/results

Columns: ours and peer are medians per run, the peer's in its faster layout where it has two; ratio is the
peer's over ours (above 1 ours is faster; ~ where a side's quartiles are more than 1.5 times apart); floor is
the least time for the bytes and operations that the job needs at this machine's measured rates (with data in
a cache it can be less); of floor is the floor over ours; error and peer's are the largest relative error of a
result against float64. A case that fails is named, and the others go on.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import ceilings, chart, machine, report
from .case import Case
from .library import load_ours, load_peer
from .runner import ROOT, Row, Runner
from .suites import SUITES
from .timing import FULL, GPU, QUICK


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"{', '.join(SUITES)}; all if none is given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--against", choices=("torch",), help="the library to compare with")
    parser.add_argument("--quick", action="store_true", help="few and short samples, not to be quoted")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="where the chart goes, a PNG")
    options = parser.parse_args(given)
    unknown = [name for name in options.suites if name not in SUITES]
    if unknown:
        parser.error(f"no suite {', '.join(map(repr, unknown))}; there are {', '.join(SUITES)}")
    return options


def main(given: list[str] | None = None) -> int:
    """Measure, print the table, write JSON and chart; 1 where something is missing or a case fails."""
    options = arguments(given)
    try:
        ours = load_ours(options.device)
        peer = load_peer(options.against, options.device) if options.against else None
    except RuntimeError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    limits = ceilings.measure(options.device, peer, options.quick)
    facts = machine.describe(ours, peer, limits)
    print(machine.headline(facts), flush=True)
    plan = QUICK if options.quick else GPU if options.device == "cuda" else FULL
    runner = Runner(ours, peer, limits, plan)
    rows: list[Row] = []
    judged: list[report.Verdict] = []
    for name in options.suites or SUITES:
        others, start = machine.Others(), time.perf_counter()
        measured, failed = _run(runner, name, SUITES[name].cases(options.device))
        facts["seconds"][name] = time.perf_counter() - start
        facts["failed"] += failed
        if measured:
            verdicts = report.verdicts(measured, SUITES[name].goals_of(options.device))
            print(f"\n{name}\n{report.table(measured)}", *verdicts, sep="\n", flush=True)
            facts["others"][name] = busy = others.processors()
            if busy is not None and busy > machine.QUIET:
                print(f"other processes used {busy:.1f} processors meanwhile: do not quote these times")
            rows += measured
            judged += verdicts
        # After each suite: what is measured is kept, whatever ends the rest.
        report.write_json(_place(options, facts, "json"), facts, rows, judged)
    print(f"\nnumbers: {_place(options, facts, 'json')}")
    _draw(options, facts, rows)
    print(*facts["failed"], sep="\n", file=sys.stderr)
    return 1 if facts["failed"] else 0


def _run(runner: Runner, name: str, cases: Sequence[Case]) -> tuple[list[Row], list[str]]:
    """The rows of a suite, and what failed."""
    rows, failed = [], []
    for case in cases:
        title = f"{name}: {case.operation} {case.shape} {case.dtype}"
        _progress(title)
        try:
            rows.append(runner.run(name, case))
        except Exception as error:  # a device may be too small for one case, or miss what another one needs
            failed.append(f"{title.rstrip()} failed: {type(error).__name__}: {error}")
    _progress("")
    return rows, failed


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _place(options: argparse.Namespace, facts: dict, kind: str) -> Path:
    """Results of a GPU are kept in the repository; those of a CPU go where nothing is committed."""
    given = options.json if kind == "json" else options.chart
    kept = options.device == "cuda" and not options.quick
    folder = ROOT / "bench" / "results" if kept else ROOT / "build" / "bench"
    stem = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    return given or folder / f"{stem}.{kind}"


def _draw(options: argparse.Namespace, facts: dict, rows: list[Row]) -> None:
    if not rows:
        return
    picture = _place(options, facts, "png")
    try:
        chart.draw(picture, rows, machine.headline(facts), options.against)
    except ImportError as error:
        print(f"no chart: {error}; pip install '.[examples]'")
    else:
        print(f"chart: {picture}")


if __name__ == "__main__":
    sys.exit(main())
