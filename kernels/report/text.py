"""The report as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .measure import ARCHITECTURES, Fit, Measurement, Use

LEGEND = """\
moved      bytes to and from device memory over those that any implementation needs, if the L2 keeps everything
L2         the same between blocks and the L2, if a block gets everything once
L1         the same for all requests, if none is answered by another one's sectors
sectors    of 32 bytes that a warp's request to global memory touches, and the fewest that hold its bytes
conflicts  cycles that a warp's request to shared memory loses to others of the same bank
tensor     products on tensor cores among the instructions of the inner loop: among all, and on the shortest way"""


def cases_table(measurements: Sequence[Measurement]) -> str:
    """One line for each case, and the reason where one has limits of its own."""
    heading = (
        "family",
        "operation",
        "shape",
        "dtype",
        "launches",
        "moved",
        "L2",
        "L1",
        "sectors",
        "fewest",
        "conflicts",
    )
    rows = [
        (
            m.case.family,
            m.case.operation,
            m.case.shape,
            m.case.dtype,
            str(len(m.traces)),
            f"{m.moved:.2f}",
            f"{m.through_l2:.2f}",
            f"{m.asked:.2f}",
            f"{m.sectors:.2f}",
            f"{m.least_sectors:.2f}",
            "-" if m.conflicts is None else f"{m.conflicts:.2f}",
        )
        for m in measurements
    ]
    return "\n".join([_aligned([heading, *rows], left=4), "", LEGEND, *_reasons(measurements)])


def _reasons(measurements: Sequence[Measurement]) -> list[str]:
    """Why cases have limits of their own, each reason once, with the cases that give it."""
    reasons: dict[str, list[str]] = {}
    for m in measurements:
        if m.case.why:
            reasons.setdefault(m.case.why, []).append(f"  {m.case}")
    return [line for why, given in reasons.items() for line in ("", f"Allowed because {why}:", *given)]


def kernels_table(fits: Mapping[Use, Sequence[Fit]]) -> str:
    """One line for each launched kernel: registers, spilled bytes, occupancy and the share of tensor instructions.

    Shared memory is that of the newest architecture, static and dynamic.
    """
    of_each = ("registers", "spills", "occupancy", "tensor")
    first = ("kernel", "threads", "shared", *(text for arch in ARCHITECTURES for text in (arch, "", "", "")))
    second = ("", "", "", *of_each * len(ARCHITECTURES))
    rows = [
        (
            str(use.kernel),
            str(use.threads),
            str(of_archs[-1].resources.shared_bytes + use.dynamic_bytes),
            *(text for arch in ARCHITECTURES for text in _fit_cells(of_archs, arch)),
        )
        for use, of_archs in fits.items()
    ]
    return _aligned([first, second, *rows], left=1)


def _fit_cells(of_archs: Sequence[Fit], arch: str) -> Sequence[str]:
    for fit in of_archs:
        used = fit.resources
        if used.arch == arch:
            return str(used.registers), str(used.spill_bytes), f"{fit.occupancy:.0%}", used.tensor_share
    return ("-",) * 4  # it does not run there


def _aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns of the same width, the first `left` of them aligned to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
