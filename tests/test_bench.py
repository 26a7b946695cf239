"""The benchmark runner: its arithmetic by known numbers, and a run from the command line to the files."""

import json
import math
import struct
import sys
from dataclasses import replace

import numpy as np
import pytest

import adjoint as ad
from bench import __main__ as command
from bench import machine, report
from bench.case import Counted, Goal, Suite, Timed
from bench.ceilings import Ceilings
from bench.library import Library, load_peer
from bench.runner import Row, Runner
from bench.suites import SUITES, conv, pooling
from bench.timing import QUICK, Plan, Summary, geometric_mean, measure_in_turn, relative_error, summary

PLAN = Plan(samples=5, least=2, seconds=1.0, settle=0.0, budget=60.0)


def row(operation="add", ours=1.0, peer=None, unit="s", **rest) -> Row:
    sides = [seconds and Summary(seconds, seconds, seconds, 1) for seconds in (ours, peer)]
    return Row("suite", operation, "(4,)", "float32", "float32", unit, *sides, **rest)


class FakeSide:
    """Takes exactly `seconds` for a run, and writes down who ran."""

    def __init__(self, name: str, seconds: float, log: list):
        self.name, self.seconds, self.log = name, seconds, log

    def __call__(self, count: int) -> float:
        self.log.append((self.name, count))
        return self.seconds * count


# ---- arithmetic


def test_summary_and_means():
    assert summary([5.0, 1.0, 2.0, 3.0, 4.0]) == Summary(median=3.0, low=2.0, high=4.0, samples=5)
    assert geometric_mean([1.0, 4.0, 16.0]) == pytest.approx(4.0)
    assert math.isnan(geometric_mean([]))
    assert not Summary(1.2, low=1.0, high=1.4, samples=9).unsteady
    assert Summary(1.2, low=1.0, high=1.6, samples=9).unsteady


def test_relative_error_is_of_the_worst_output():
    exact = [np.array([3.0, 4.0]), np.array([10.0])]
    assert relative_error([np.array([3.0, 4.0]), np.array([11.0])], exact) == pytest.approx(0.1)
    assert relative_error([np.array([3.0, 4.5]), np.array([10.0])], exact) == pytest.approx(0.1)
    assert relative_error([np.array([1.0])], [np.array([0.0])]) == 1.0
    assert math.isnan(relative_error([np.array([3.0, 4.0]), np.array([np.nan])], exact))


def test_relative_error_does_not_broadcast():
    with pytest.raises(ValueError, match=r"shape \(1,\), its exact value \(2,\)"):
        relative_error([np.ones(1)], [np.ones(2)])
    with pytest.raises(ValueError, match="1 outputs, but 2"):
        relative_error([np.ones(1)], [np.ones(1), np.ones(1)])


def test_the_floor_is_the_tighter_of_bytes_and_operations():
    ceilings = Ceilings(bandwidth=100.0, rates={"float32": 10.0})
    assert ceilings.floor(bytes=200, operations=5, dtype="float32") == 2.0
    assert ceilings.floor(bytes=200, operations=50, dtype="float32") == 5.0
    assert ceilings.floor(bytes=0, operations=0, dtype="float32") is None


def test_sides_take_turns_and_change_who_begins():
    log: list = []
    fast, slow = measure_in_turn([FakeSide("fast", 0.25, log), FakeSide("slow", 2.0, log)], PLAN)
    assert (fast.median, fast.samples) == (0.25, 5)
    assert (slow.median, slow.samples) == (2.0, 5)
    # Each sample is a single run and then as many as fill a second.
    assert "".join(name[0] for name, _ in log[-20::2]) == "fssffssffs"
    assert {count for name, count in log[-19::2] if name == "fast"} == {4}


def test_the_budget_ends_a_measurement_but_not_below_the_least():
    log: list = []
    (only,) = measure_in_turn([FakeSide("only", 1.0, log)], PLAN._replace(budget=0.0))
    assert only.samples == PLAN.least


def test_bytes_and_operations_of_a_case():
    lenet = conv.case(conv.Conv(64, 1, 28, 6, 5))
    assert lenet.operations == 3 * 2 * 64 * 6 * 24 * 24 * 25
    assert lenet.bytes == 4 * (3 * 64 * 28 * 28 + 4 * 6 * 25 + 2 * 64 * 6 * 24 * 24)
    strided = conv.Conv(1, 8, 9, 8, 3, stride=2, padding=1, groups=4)
    assert (strided.out, str(strided)) == (5, "(1,8,9²)→8 3×3/2 p1 g4")
    half = pooling.case("max_pool2d", pooling.Pool(2, 3, 8, 2, 2), "bfloat16")
    assert half.bytes == 2 * 2 * (2 * 3 * 64 + 2 * 3 * 16) + 2 * (2 * 3 * 16)


def test_processors_used_by_others(monkeypatch):
    # Seconds of wall-clock time, of all processors' work, and of our own.
    readings = iter([(100.0, 40.0, 7.0), (102.0, 43.5, 8.5)])
    monkeypatch.setattr(machine.Others, "_now", staticmethod(lambda: next(readings)))
    assert machine.Others().processors() == pytest.approx((3.5 - 1.5) / 2)


@pytest.mark.skipif(not machine.STAT.exists(), reason="there is no /proc/stat")
def test_the_work_of_others_is_known_here():
    assert machine.Others().processors() >= 0


# ---- report


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.5, "s", "1.50 s"),
        (0.0123, "s", "12.3 ms"),
        (2.5e-5, "s", "25.0 µs"),
        (3.21e-10, "s", "0.32 ns"),
        (234e6, "B", "234 MB"),
        (12.0, "B", "12.0 B"),
        (None, "s", "–"),
    ],
)
def test_quantities(value, unit, text):
    assert report.quantity(value, unit) == text


def test_table_columns():
    rows = [row(ours=0.002, peer=0.003, floor=0.001, error=2.4e-7), row("multiply", ours=1e-6)]
    head, _, full, bare = report.table(rows).splitlines()
    assert head.split() == [word for column in report.COLUMNS for word in column.split()]
    assert full.split() == "add (4,) float32 float32 2.00 ms 3.00 ms 1.50 1.00 ms 50% 2e-07".split()
    assert bare.split() == "multiply (4,) float32 float32 1.00 µs – – – – –".split()
    assert full.index("float32") == bare.index("float32")
    shaken = replace(rows[0], ours=Summary(0.002, 0.001, 0.003, 9))
    assert "~1.50" in report.table([shaken])


def test_goals_are_held_against_the_geometric_mean():
    rows = [row(ours=1.0, peer=1.0), row(ours=4.0, peer=1.0), row("import", ours=0.2)]
    goals = [Goal("add", ratio=2.0), Goal("import", value=0.3)]
    add, load = report.verdicts(rows, goals)
    assert (add.reached, add.met, add.rows) == (pytest.approx(2.0), True, 2)
    assert (load.reached, load.met, load.unit) == (0.2, True, "s")
    (missed,) = report.verdicts(rows[:2], [Goal("add", ratio=1.9)])
    assert missed.met is False
    assert str(missed) == "add: 2.00× of the peer's (geometric mean of 2), goal ≤ 1.90×: missed"
    assert str(load) == "import: 200 ms ours, goal ≤ 300 ms: met"
    (no_goal,) = report.verdicts(rows[:2], [])
    assert no_goal.met is None


# ---- runs


def tiny_suite() -> Suite:
    def make(library: Library, dtype: str):
        x = library.tensor(np.arange(1, 5, dtype=np.float32), dtype, requires_grad=True)

        def step():
            y = x * x
            return (y, *library.grad(y.sum(), (x,)))

        return step

    timed = Timed("square", "(4,)", make, bytes=32, operations=4)
    counted = Counted("seven", "", ("-c", "print('{library}' and 7000)"), "B")
    return Suite("tiny", cpu=[timed, counted], goals=[Goal("square", ratio=1e6), Goal("seven", value=1.0)])


def run_tiny(monkeypatch, tmp_path, *given: str) -> dict:
    monkeypatch.setattr(command, "SUITES", {"tiny": tiny_suite()})
    files = {name: tmp_path / "out" / f"bench.{name}" for name in ("json", "png")}
    assert command.main(["--quick", "--json", str(files["json"]), "--chart", str(files["png"]), *given]) == 0
    header = files["png"].read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n")
    assert min(struct.unpack(">II", header[16:24])) > 100
    return json.loads(files["json"].read_text())


@pytest.mark.parametrize("against", [None, "torch"])
def test_a_run_prints_a_table_and_writes_json_and_chart(monkeypatch, tmp_path, capsys, against):
    pytest.importorskip("matplotlib", reason="the chart needs matplotlib")
    if against:
        pytest.importorskip("torch", reason="compares with PyTorch")
    content = run_tiny(monkeypatch, tmp_path, "tiny", *(["--against", against] if against else []))
    printed = capsys.readouterr().out
    square, seven = content["rows"]
    assert square["operation"] == "square"
    assert square["ours"]["median"] > 0
    assert square["error"] == 0
    assert square["floor"] > 0
    assert seven["ours"]["median"] == 7000
    assert "7.00 kB" in printed
    assert "goal ≤ 1.00 B: missed" in printed
    assert content["machine"]["threads"] >= 1
    assert content["machine"]["others"].keys() == {"tiny"}
    assert content["machine"]["versions"]["adjoint"] == ad.__version__
    if against:
        assert square["ratio"] == pytest.approx(square["peer"]["median"] / square["ours"]["median"])
        assert "goal ≤ 1000000.00×: met" in printed
        assert "torch" in content["machine"]["versions"]
    else:
        assert square["ratio"] is None
        assert square["peer"] is None


def test_wrong_results_show_in_the_error():
    def make(library: Library, dtype: str):
        x = library.tensor(np.ones(4, np.float32), dtype)
        return lambda: (x * (1.5 if dtype == "float32" else 1.0),)

    ours = Library("adjoint")
    runner = Runner(ours, None, Ceilings(1.0, {"float32": 1.0}), QUICK)
    assert runner.run("tiny", Timed("wrong", "(4,)", make)).error == pytest.approx(0.5)


@pytest.mark.parametrize("suite", SUITES)
def test_the_first_case_of_each_suite_agrees_with_the_peer(suite):
    pytest.importorskip("torch", reason="compares with PyTorch")
    case = SUITES[suite].cpu[0]
    if not case.check:
        pytest.skip("random numbers, which differ between libraries")
    limits = Ceilings(1e9, {"float32": 1e9})
    measured = Runner(Library("adjoint"), load_peer("torch", "cpu"), limits, QUICK).run(suite, case)
    assert measured.error is not None
    assert measured.error < 1e-5


def test_a_failing_process_is_named():
    runner = Runner(Library("adjoint"), None, Ceilings(1.0, {}), QUICK)
    with pytest.raises(RuntimeError, match=r"broken: .*\n(.*\n)*.*no adjoint here"):
        runner.run("tiny", Counted("broken", "", ("-c", "raise SystemExit('no {library} here')"), "s"))


def test_an_unknown_suite_is_an_error_that_lists_them(capsys):
    with pytest.raises(SystemExit):
        command.main(["convolution"])
    message = capsys.readouterr().err
    assert "no suite 'convolution'" in message
    assert all(name in message for name in SUITES)


def test_a_missing_peer_is_an_error(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert command.main(["--against", "torch"]) == 1
    assert "torch cannot be imported" in capsys.readouterr().err


@pytest.mark.skipif(ad.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error(capsys):
    assert command.main(["--device", "cuda"]) == 1
    assert "bench: " in capsys.readouterr().err
