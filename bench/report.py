"""Rows as a table for people and as JSON for programs, and the goals they are held to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .case import Goal
from .runner import Row
from .timing import geometric_mean

COLUMNS = (
    *("operation", "shape", "dtype", "precision", "peer's layout"),
    *("ours", "peer", "ratio", "floor", "of floor", "error", "peer's"),
)
SCALES = {
    "s": ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")),
    "B": ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")),
}
LEFT = 5  # so many columns are text, the others numbers


def quantity(value: float | None, unit: str) -> str:
    """Three digits with a prefix: 12.3 µs, 1.20 MB; a dash for None."""
    if value is None:
        return "–"
    factor, prefix = next((scale for scale in SCALES[unit] if abs(value) >= scale[0]), SCALES[unit][-1])
    number = value / factor
    digits = 0 if number >= 100 else 1 if number >= 10 else 2
    return f"{number:.{digits}f} {prefix}{unit}"


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, in the order of COLUMNS; a tilde at the ratio marks unsteady samples."""
    tilde = "~" if row.unsteady else ""
    return (
        row.operation,
        row.shape,
        row.dtype,
        row.precision,
        row.layout,
        quantity(row.ours.median, row.unit),
        quantity(row.peer.median if row.peer else None, row.unit),
        "–" if row.ratio is None else f"{tilde}{row.ratio:.2f}",
        quantity(row.floor, row.unit),
        "–" if row.part_of_floor is None else f"{row.part_of_floor:.0%}",
        *("–" if error is None else f"{error:.0e}" for error in (row.error, row.peer_error)),
    )


def table(rows: Sequence[Row]) -> str:
    """All rows under one heading, in columns as wide as they need; without columns in which no row has anything."""
    lines = [COLUMNS, *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    shown = [i for i in range(len(COLUMNS)) if any(line[i] for line in lines[1:])]

    def text(line: Sequence[str]) -> str:
        padded = (line[i].ljust(widths[i]) if i < LEFT else line[i].rjust(widths[i]) for i in shown)
        return "  ".join(padded).rstrip()

    return "\n".join([text(lines[0]), text(["─" * width for width in widths]), *map(text, lines[1:])])


@dataclass(frozen=True)
class Verdict:
    """An operation over its rows: ours over the peer's in the geometric mean, or our number; its goal."""

    operation: str
    rows: int
    reached: float
    goal: float | None
    unit: str  # "×", or that of the rows for a goal without a peer

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.goal is None else self.reached <= self.goal

    def __str__(self) -> str:
        def number(value: float) -> str:
            return f"{value:.2f}×" if self.unit == "×" else quantity(value, self.unit)

        mean = f" (geometric mean of {self.rows})" if self.rows > 1 else ""
        what = "of the peer's" if self.unit == "×" else "ours"
        goal = "" if self.goal is None else f", goal ≤ {number(self.goal)}: {'met' if self.met else 'missed'}"
        return f"{self.operation}: {number(self.reached)} {what}{mean}{goal}"


def verdicts(rows: Sequence[Row], goals: Sequence[Goal]) -> list[Verdict]:
    """For each operation its mean against the peer, and for goals in seconds or bytes our own number.

    Where an operation has rows of several kinds of products, each kind has its mean.
    """
    result = []
    for operation, arithmetic in dict.fromkeys((row.operation, row.arithmetic) for row in rows):
        same = [row for row in rows if (row.operation, row.arithmetic) == (operation, arithmetic)]
        several = len({row.arithmetic for row in rows if row.operation == operation}) > 1
        name = f"{operation} {arithmetic}" if several else operation
        of_row = [g for g in goals if g.operation == operation and g.arithmetic in (None, arithmetic)]
        plain = next((goal for goal in of_row if goal.against is None), Goal(operation))
        ratios = [1 / row.ratio for row in same if row.ratio]
        if ratios:
            result.append(Verdict(name, len(ratios), geometric_mean(ratios), plain.ratio, "×"))
        if plain.value is not None:
            worst = max(row.ours.median for row in same)
            result.append(Verdict(name, 1, worst, plain.value, same[0].unit))
        result += [verdict for goal in of_row if goal.against and (verdict := _against(name, same, rows, goal))]
    return result


def _against(name: str, same: Sequence[Row], rows: Sequence[Row], goal: Goal) -> Verdict | None:
    """Our times over the peer's of another operation, for the same shapes and products."""
    others = {(row.shape, row.arithmetic): row.peer for row in rows if row.operation == goal.against}
    pairs = [(row.ours, others.get((row.shape, row.arithmetic))) for row in same]
    ratios = [ours.median / peer.median for ours, peer in pairs if peer]
    if not ratios:
        return None
    return Verdict(f"{name} against {goal.against}", len(ratios), geometric_mean(ratios), goal.ratio, "×")


def write_json(path: Path, machine: dict[str, Any], rows: Sequence[Row], judged: Sequence[Verdict]) -> None:
    """Everything that was measured."""
    entries = []
    for row in rows:
        entry = asdict(row) | {"ratio": row.ratio, "part_of_floor": row.part_of_floor}
        entry["unsteady"] = row.unsteady
        entry["ours"] = row.ours._asdict()
        entry["peer"] = row.peer and row.peer._asdict()
        entry["layouts"] = {layout: summary._asdict() for layout, summary in row.layouts.items()}
        entries.append(entry)
    summaries = [asdict(verdict) | {"met": verdict.met} for verdict in judged]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "rows": entries, "summaries": summaries}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
