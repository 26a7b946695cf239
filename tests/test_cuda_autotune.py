"""ADJOINT_CONV_AUTOTUNE: the fastest kernel of a convolution is found, remembered, and read back."""

import json
import os
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest

from adjoint.kernels import cuda
from adjoint.kernels.cuda import autotune, conv_choice, user_cache
from adjoint.kernels.cuda.conv_choice import Problem
from cuda_on_host import HostLauncher, installed, needs_compiler

X = np.zeros(1, np.float32)
PROBLEM = Problem(
    operation="forward",
    c_type="float",
    precision="highest",
    capability=70,  # no tensor cores: what is there today is there for good
    groups=1,
    rows=64,
    channels=64,
    taps=9,
    pixels=56 * 56,
    places=56 * 56,
)
CANDIDATES = conv_choice.candidates(PROBLEM)
TABLE, FAST = conv_choice.choose(PROBLEM), CANDIDATES[-1]


class Device(HostLauncher):
    """A launcher whose clock moves by what a variant takes."""

    def __init__(self):
        super().__init__()
        self.now, self.capturing, self.ran = 0.0, False, []
        self.clock = lambda: self.now
        self.times = dict.fromkeys(CANDIDATES, 1.0) | {FAST: 0.5}
        self.errors = {}

    def captures(self, array):
        return self.capturing

    def run_variant(self, variant):
        self.ran.append(variant)
        if variant in self.errors:
            raise self.errors[variant]
        self.now += self.times[variant]


@pytest.fixture
def device(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(autotune.VARIABLE, "1")
    autotune.forget()
    launcher = Device()
    with installed(launcher):
        yield launcher
    autotune.forget()


def chosen(device, problem=PROBLEM, details=(1, 64, 56, 56)):
    return autotune.choose(problem, details, device.run_variant, X)


def files(tmp_path):
    return [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_fastest_is_found_and_remembered(device, tmp_path):
    assert TABLE != FAST and len(CANDIDATES) > 2
    assert chosen(device) == FAST
    assert set(device.ran) == set(CANDIDATES)
    device.ran.clear()
    assert chosen(device) == FAST
    assert not device.ran
    (path,) = files(tmp_path)
    content = json.loads(path.read_text())
    assert content["variant"] == repr(FAST)
    assert content["seconds"] == {repr(variant): taken for variant, taken in device.times.items()}


def test_a_later_process_reads_it_and_measures_nothing(device):
    chosen(device)
    autotune.forget()
    device.ran.clear()
    assert chosen(device) == FAST
    assert not device.ran


def test_without_the_variable_the_table_chooses(device, monkeypatch, tmp_path):
    for value in ("0", ""):
        monkeypatch.setenv(autotune.VARIABLE, value)
        assert chosen(device) == TABLE
    monkeypatch.delenv(autotune.VARIABLE)
    assert chosen(device) == TABLE
    assert not device.ran and not files(tmp_path)


def test_each_problem_its_details_and_each_device_are_measured_for_themselves(device):
    chosen(device)
    for problem, details in ((replace(PROBLEM, pixels=49), (1, 64, 56, 56)), (PROBLEM, (1, 64, 28, 112))):
        device.ran.clear()
        chosen(device, problem, details)
        assert device.ran
    device.ran.clear()
    device.of_device = 80
    chosen(device)
    assert device.ran


def test_a_median_of_some_runs_counts_and_the_hopeless_run_twice(device):
    slow = CANDIDATES[1]
    device.times[slow] = 10.0
    hiccup = iter([0.5, 60.0, 0.5, 0.5, 0.5, 0.5])  # the first one warms up
    usual = device.run_variant

    def run(variant):
        usual(variant)
        if variant == FAST:
            device.now += next(hiccup) - device.times[FAST]

    assert autotune.choose(PROBLEM, (), run, X) == FAST
    assert device.ran.count(FAST) == 1 + autotune.MEASUREMENTS
    assert device.ran.count(slow) == 1 + 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"variant": "Gone()"}', '{"variant": 3}', "\0\xff"])
def test_a_corrupt_or_stale_file_is_measured_anew(device, tmp_path, content):
    chosen(device)
    (path,) = files(tmp_path)
    path.write_bytes(content.encode("latin1"))
    autotune.forget()
    device.ran.clear()
    assert chosen(device) == FAST
    assert device.ran
    assert json.loads(path.read_text())["variant"] == repr(FAST)


def test_changed_kernels_are_measured_anew(device, monkeypatch, tmp_path):
    chosen(device)
    autotune.forget()
    device.ran.clear()
    monkeypatch.setattr(autotune, "_sources", lambda: "another text")
    chosen(device)
    assert device.ran
    assert len(files(tmp_path)) == 2


def test_nothing_is_measured_while_a_stream_is_captured(device, tmp_path):
    device.capturing = True
    assert chosen(device) == TABLE
    assert not device.ran and not files(tmp_path)
    device.capturing = False
    assert chosen(device) == FAST
    device.capturing = True
    device.ran.clear()
    assert chosen(device) == FAST  # what is known holds in a capture
    autotune.forget()
    assert chosen(device) == FAST  # and what is on disk
    assert not device.ran


def test_a_variant_that_fails_does_not_stop_the_others(device, tmp_path):
    device.errors = {FAST: RuntimeError("does not compile"), CANDIDATES[0]: MemoryError("too large")}
    device.times[CANDIDATES[1]] = 0.7
    with pytest.warns(RuntimeWarning, match=r"(?s)left out:.*MemoryError: too large.*RuntimeError: does not compile"):
        assert chosen(device) == CANDIDATES[1]
    (path,) = files(tmp_path)
    assert json.loads(path.read_text())["seconds"].keys() == {repr(variant) for variant in CANDIDATES[1:-1]}


def test_where_none_runs_the_tables_choice_meets_its_own_error(device, tmp_path):
    device.errors = dict.fromkeys(CANDIDATES, RuntimeError("no such device"))
    with pytest.warns(RuntimeWarning, match="no such device"):
        assert chosen(device) == TABLE
    assert not files(tmp_path)


def test_an_interrupt_is_not_a_failure_of_a_variant(device, tmp_path):
    device.errors = {FAST: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        chosen(device)
    assert not files(tmp_path)
    device.errors = {}
    assert chosen(device) == FAST


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_stop(device, monkeypatch, tmp_path):
    (tmp_path / "adjoint").write_text("a file where a folder should be")
    assert chosen(device) == FAST
    device.ran.clear()
    assert chosen(device) == FAST
    assert not device.ran  # this process remembers


def test_a_full_disk_leaves_no_half_file(device, monkeypatch, tmp_path):
    def full(self, text):
        self.write_bytes(text.encode()[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("pathlib.Path.write_text", full)
        assert chosen(device) == FAST
    assert not files(tmp_path)


def test_many_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / "folder" / "file.json"
    contents = [{"variant": str(number) * 10_000} for number in range(8)]
    seen = []

    def write(content):
        for _ in range(20):
            user_cache.write(path, content)
            seen.append(user_cache.read(path))

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(content in contents for content in seen)
    assert os.listdir(path.parent) == ["file.json"]


def test_threads_measure_once(device):
    threads = [threading.Thread(target=chosen, args=(device,)) for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert device.ran.count(FAST) == 1 + autotune.MEASUREMENTS


@needs_compiler
def test_convolutions_find_their_kernel_and_repeat_bit_for_bit(monkeypatch, tmp_path):
    monkeypatch.setattr(user_cache, "folder", lambda: tmp_path)  # kernels for the host stay where they are
    rng = np.random.default_rng(0)
    x, weight, dy = (rng.standard_normal(shape, np.float32) for shape in ((2, 8, 9, 9), (9, 8, 3, 3), (2, 9, 5, 5)))
    settings = ((2, 2), ((1, 1), (1, 1)), (1, 1), 1)

    def passes():
        return (
            cuda.conv(x, weight, weight[:, 0, 0, 0], *settings),
            cuda.conv_input_grad(dy, weight, x.shape, *settings),
            cuda.conv_weight_grad(dy, x, weight.shape, *settings),
        )

    with installed(HostLauncher(capability=70)):
        by_table = passes()
    monkeypatch.setenv(autotune.VARIABLE, "1")
    autotune.forget()
    measuring, knowing, reading = (HostLauncher(capability=70) for _ in range(3))
    with installed(measuring):
        tuned = passes()
    assert len(files(tmp_path)) == 3
    with installed(knowing):
        again = passes()
    autotune.forget()
    with installed(reading):
        later = passes()
    autotune.forget()
    assert knowing.launches == reading.launches and len(measuring.launches) > 5 * len(knowing.launches)
    for results in zip(tuned, again, later, strict=True):
        assert len({result.tobytes() for result in results}) == 1
    for result, wanted in zip(tuned, by_table, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
