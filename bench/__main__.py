"""The benchmark runner. From the repository's root:

    python -m bench                                   every suite on the CPU, adjoint alone
    python -m bench conv train --against torch        two suites, both libraries in turn in one process
    python -m bench --device cuda --against torch     on a GPU; the results go to bench/results

Columns: ours and peer are medians per run; ratio is the peer's over ours (above 1 ours is faster; ~ where a
side's quartiles are more than 1.5 times apart); floor is the least time for the bytes and operations that
the job needs at this machine's measured rates (with data in a cache it can be less); of floor is the floor
over ours; error is the largest relative error of a result against float64.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from . import ceilings, chart, machine, report
from .library import load_ours, load_peer
from .runner import ROOT, Row, Runner
from .suites import SUITES
from .timing import FULL, QUICK


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
    """Measure, print the table, write JSON and chart; 1 where a library or the device is missing."""
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
    runner = Runner(ours, peer, limits, QUICK if options.quick else FULL)
    rows: list[Row] = []
    judged: list[report.Verdict] = []
    for name in options.suites or SUITES:
        suite = SUITES[name]
        measured = []
        others = machine.Others()
        for case in suite.cases(options.device):
            _progress(f"{name}: {case.operation} {case.shape}")
            measured.append(runner.run(name, case))
        _progress("")
        if measured:
            verdicts = report.verdicts(measured, suite.goals if options.device == "cpu" else ())
            print(f"\n{name}\n{report.table(measured)}", *verdicts, sep="\n", flush=True)
            facts["others"][name] = busy = others.processors()
            if busy is not None and busy > machine.QUIET:
                print(f"other processes used {busy:.1f} processors meanwhile: do not quote these times")
            rows += measured
            judged += verdicts
    _write(options, facts, rows, judged)
    return 0


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _write(options: argparse.Namespace, facts: dict, rows: list[Row], judged: list[report.Verdict]) -> None:
    """Results of a GPU are kept in the repository; those of a CPU go where nothing is committed."""
    kept = options.device == "cuda" and not options.quick
    folder = ROOT / "bench" / "results" if kept else ROOT / "build" / "bench"
    stem = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")
    numbers, picture = options.json or folder / f"{stem}.json", options.chart or folder / f"{stem}.png"
    report.write_json(numbers, facts, rows, judged)
    print(f"\nnumbers: {numbers}")
    if not rows:
        return
    try:
        chart.draw(picture, rows, machine.headline(facts), options.against)
    except ImportError as error:
        print(f"no chart: {error}; pip install '.[examples]'")
    else:
        print(f"chart: {picture}")


if __name__ == "__main__":
    sys.exit(main())
