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
from bench.case import LAYOUTS, Counted, Goal, Suite, Timed
from bench.ceilings import Ceilings
from bench.library import BLOCK, CHANNELS_LAST, Library, load_peer
from bench.runner import Row, Runner
from bench.suites import SUITES, conv, gemm, pooling, train
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
    zero = [np.array([3.0, 4.0]), np.array([1e-15])]
    assert relative_error([np.array([3.0, 4.0]), np.array([1e-4])], zero) == pytest.approx(1e-4 / 5)
    assert math.isnan(relative_error([np.array([3.0, 4.0]), np.array([np.nan])], exact))


def test_relative_error_does_not_broadcast():
    with pytest.raises(ValueError, match=r"shape \(1,\), its exact value \(2,\)"):
        relative_error([np.ones(1)], [np.ones(2)])
    with pytest.raises(ValueError, match="1 outputs, but 2"):
        relative_error([np.ones(1)], [np.ones(1), np.ones(1)])


def test_the_floor_is_the_tighter_of_bytes_and_operations():
    ceilings = Ceilings(bandwidth=100.0, rates={"float32": 10.0})
    assert ceilings.floor(bytes=200, operations=5, arithmetic="float32") == 2.0
    assert ceilings.floor(bytes=200, operations=50, arithmetic="float32") == 5.0
    assert ceilings.floor(bytes=0, operations=0, arithmetic="float32") is None


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
    lenet = conv.square(64, 1, 28, 6, 5)
    assert conv.case(lenet).operations == 3 * 2 * 64 * 6 * 24 * 24 * 25
    assert conv.case(lenet).bytes == 4 * (3 * 64 * 28 * 28 + 3 * 6 * 25 + 2 * 64 * 6 * 24 * 24)
    for part in conv.PARTS:
        assert conv.case(lenet, part=part).bytes == 4 * (64 * 28 * 28 + 6 * 25 + 64 * 6 * 24 * 24)
    strided = conv.square(1, 8, 9, 8, 3, stride=2, padding=1, groups=4)
    assert (strided.y, str(strided)) == ((1, 8, 5, 5), "(1,8,9²)→8 3×3/2 p1 g4")
    video = conv.Conv((2, 3, 16, 112, 112), 64, (3, 7, 7), stride=2, padding=3)
    assert (video.y, str(video)) == ((2, 64, 10, 56, 56), "(2,3,16,112,112)→64 3×7×7/2 p3")
    product = gemm.matmul(gemm.Product(4, 5, 6, batch=2, transposed=True), "bfloat16")
    assert (product.operations, product.bytes) == (2 * 2 * 4 * 5 * 6, 2 * 2 * (20 + 30 + 24))
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
    shown = [column for column in report.COLUMNS if column != "peer's layout"]
    assert head.split() == [word for column in shown for word in column.split()]
    assert full.split() == "add (4,) float32 float32 2.00 ms 3.00 ms 1.50 1.00 ms 50% 2e-07 –".split()
    assert bare.split() == "multiply (4,) float32 float32 1.00 µs – – – – – –".split()
    assert full.index("float32") == bare.index("float32")
    shaken = replace(rows[0], ours=Summary(0.002, 0.001, 0.003, 9))
    assert "~1.50" in report.table([shaken])
    times = {name: Summary(seconds, seconds, seconds, 1) for name, seconds in (("first", 0.004), ("last", 0.003))}
    of_two = replace(rows[0], peer=times["last"], layouts=times)
    head, _, line = report.table([of_two]).splitlines()
    assert head.index("peer's layout") == line.index("last")


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


def test_kinds_of_products_have_means_and_goals_of_their_own():
    rows = [row(ours=2.0, peer=1.0, arithmetic="float32"), row(ours=1.0, peer=2.0, arithmetic="tf32")]
    strict, rounded = report.verdicts(rows, [Goal("add", ratio=1.0, arithmetic="tf32")])
    assert (strict.operation, strict.reached, strict.met) == ("add float32", pytest.approx(2.0), None)
    assert (rounded.operation, rounded.reached, rounded.met) == ("add tf32", pytest.approx(0.5), True)


def test_a_goal_against_another_operations_peer():
    rows = [row("step", ours=1.0, peer=6.0), row("step captured", ours=1.5, peer=1.0)]
    goals = [Goal("step captured", ratio=1 / 3, against="step"), Goal("step captured", ratio=1.0)]
    eager, graph, faster = report.verdicts(rows, goals)
    assert eager.reached == pytest.approx(1 / 6)
    assert (graph.operation, graph.reached, graph.met) == ("step captured", pytest.approx(1.5), False)
    assert (faster.operation, faster.reached, faster.met) == ("step captured against step", pytest.approx(0.25), True)


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


def test_a_failing_case_is_named_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    def make(library: Library, dtype: str):
        raise MemoryError("too small a device")

    good = tiny_suite()
    bad = replace(good, cpu=[Timed("huge", "(9,)", make), *good.cpu])
    monkeypatch.setattr(command, "SUITES", {"tiny": bad})
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "png")}
    assert command.main(["--quick", "--json", str(files["json"]), "--chart", str(files["png"])]) == 1
    message = "tiny: huge (9,) float32 failed: MemoryError: too small a device"
    assert message in capsys.readouterr().err
    content = json.loads(files["json"].read_text())
    assert content["machine"]["failed"] == [message]
    assert [entry["operation"] for entry in content["rows"]] == ["square", "seven"]


class FakeLibrary(Library):
    """PyTorch's names on the CPU; writes down what it was asked for, and takes a layout's own time."""

    def __init__(self, seconds: dict[str, float]):
        super().__init__("adjoint")
        self.seconds, self.log = seconds, []

    def elapsed(self, run):
        run()
        return self.seconds[self.layout]

    def set_precision(self, name):
        super().set_precision(name)
        self.log.append(name)

    def _finished(self, tensor, dtype, requires_grad):
        return (
            self.variant()._finished(tensor, dtype, requires_grad)
            if self.layout
            else super()._finished(tensor, dtype, requires_grad)
        )


def test_of_the_peers_layouts_the_fastest_counts_and_precision_ends_with_the_case():
    def make(library: Library, dtype: str):
        x = library.normal((2, 3, 4, 4), dtype)
        return lambda: (x + library.captures,)

    ours, peer = FakeLibrary({"": 1.0}), FakeLibrary({"": 3.0, CHANNELS_LAST: 2.0})
    case = Timed("add", "(4,)", make, precision="high", layouts=LAYOUTS)
    measured = Runner(ours, peer, Ceilings(1.0, {"tf32": 1.0}), QUICK).run("tiny", case)
    assert (measured.ours.median, measured.peer.median, measured.layout) == (1.0, 2.0, CHANNELS_LAST)
    assert {name: of.median for name, of in measured.layouts.items()} == {"channels_first": 3.0, CHANNELS_LAST: 2.0}
    assert measured.arithmetic == "tf32"
    assert (ours.log[-2:], peer.log[-2]) == (["high", "highest"], "high")
    assert ad.get_float32_matmul_precision() == "highest"


def test_large_random_tensors_repeat_a_block():
    ours = Library("adjoint")
    small, large = ours.normal((5,), seed=3), ours.normal((3, BLOCK), seed=3, scale=2.0)
    np.testing.assert_array_equal(ours.array(small), np.random.default_rng(3).standard_normal(5, np.float32))
    block = 2 * np.random.default_rng(3).standard_normal(BLOCK, np.float32)
    np.testing.assert_array_equal(large.numpy(), np.stack([block] * 3))
    assert ours.normal((4, 2), "bfloat16", requires_grad=True).dtype == ad.bfloat16


def test_of_a_large_result_places_all_over_are_compared(monkeypatch):
    monkeypatch.setattr("bench.library.MOST_COMPARED", 100)
    got = Library("adjoint").array(ad.arange(1000).reshape(10, 100))
    assert len(got) <= 100
    assert np.diff(got).min() == np.diff(got).max() == 11  # ten, made odd
    assert len({int(place) % 8 for place in got}) == 8


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


SMALL = (
    *(
        conv.case(of, dtype, part=part)
        for of in (
            conv.Conv((2, 4, 9), 6, (3,), stride=2, padding=1),
            conv.square(2, 4, 6, 6, 3, dilation=2, groups=2),
            conv.Conv((2, 4, 3, 5, 5), 6, (2, 3, 3), padding=1),
        )
        for dtype in ("float32", "bfloat16")
        for part in ("", *conv.PARTS)
    ),
    *(gemm.matmul(gemm.Product(3, 4, 5, batch, transposed)) for batch in (1, 2) for transposed in (False, True)),
    gemm.linear(gemm.Linear(3, 4, 5)),
    gemm.scores(2, 5, 3, 4),
    train.mlp(3).case(captured=True),
)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.operation} {case.shape} {case.dtype}")
def test_cases_of_a_gpu_at_small_sizes_agree_with_the_peer(case):
    pytest.importorskip("torch", reason="compares with PyTorch")
    limits = Ceilings(1e9, {"float32": 1e9, "bfloat16": 1e9})
    ours, peer = Runner(Library("adjoint"), load_peer("torch", "cpu"), limits, QUICK)._errors(case)
    if case.captured:
        assert max(ours, peer) < 1e-3  # after some steps of Adam
    else:
        assert max(ours, peer) < (1e-6 if case.dtype == "float32" else 1e-2)


@pytest.mark.parametrize("suite", SUITES)
def test_cases_of_a_gpu_have_names_of_their_own_and_goals_name_their_operations(suite):
    suite = SUITES[suite]
    for device in ("cpu", "cuda"):
        rows = [(case.operation, case.shape, getattr(case, "arithmetic", "")) for case in suite.cases(device)]
        assert len(set(rows)) == len(rows)
        operations = {operation for operation, *_ in rows}
        assert {goal.operation for goal in suite.goals_of(device)} <= operations
        assert {goal.against for goal in suite.goals_of(device)} <= operations | {None}


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
