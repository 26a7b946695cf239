"""The rows as bars: how many times faster or slower than the peer, or without a peer how long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .report import quantity
from .runner import Row

BLUE, ORANGE, GREY = "#2a6f97", "#d1495b", "#8d99ae"


def draw(path: Path, rows: Sequence[Row], title: str, peer: str | None) -> None:
    """A PNG with one bar for each row, the first on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    labels = [" ".join(filter(None, (row.operation, row.shape, row.dtype))) for row in rows]
    figure, axes = plt.subplots(figsize=(10, 1.4 + 0.3 * len(rows)), layout="constrained")
    positions = range(len(rows))
    if peer is None:
        axes.barh(positions, [row.ours.median for row in rows], color=GREY)
        axes.set_xlabel("seconds per run (memory: bytes)")
        notes = [quantity(row.ours.median, row.unit) for row in rows]
        axes.set_xscale("log")
    else:
        ratios = [row.ratio or 1.0 for row in rows]
        axes.set_xscale("log", base=2)
        axes.barh(positions, [r - 1 for r in ratios], left=1, color=[BLUE if r >= 1 else ORANGE for r in ratios])
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlabel(f"{peer}'s time (or memory) / adjoint's: right of 1 adjoint is better")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(0.5, *ratios) / 1.25, max(2.0, *ratios) * 1.5)
        times = [quantity(row.ours.median, row.unit) for row in rows]
        notes = [f"{ratio:.2f}× ({ours})" for ratio, ours in zip(ratios, times, strict=True)]
    for position, row, note in zip(positions, rows, notes, strict=True):
        end = row.ours.median if peer is None else max(row.ratio or 1.0, 1.0)
        axes.annotate(note, (end, position), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(list(positions), labels, fontsize=7)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.01)
    figure.suptitle(title, fontsize=8, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
