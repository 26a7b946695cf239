"""`cuda.capture` with a stand-in for CuPy whose graphs replay the kernels on the host; the same on a GPU."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
from capture_cases import OPTIMIZERS, LeNet, Training, assert_same, device_fixture, host_fixture, numbers, parameter

import adjoint as ad
import adjoint.nn as nn
import adjoint.nn.functional as F
from bench import networks
from bench.library import Library
from bench.suites import train

device = device_fixture()
host = host_fixture()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_captured_step_is_the_eager_one_bit_for_bit(device: str, name: str) -> None:
    def run(captured: bool) -> tuple[list[Any], dict[str, Any]]:
        training = Training(device, OPTIMIZERS[name])
        step = ad.cuda.capture(training.step) if captured else training.step
        results = []
        for i in range(7):
            results.append([value.detach().cpu().numpy().copy() for value in step(*training.batch(i))])
            training.schedule.step()
        if captured:
            assert step.graphs == 1
        return results, training.state()

    (eager, wanted), (replayed, found) = run(False), run(True)
    np.testing.assert_array_equal(replayed, eager)
    assert np.isfinite(eager).all() and len({str(losses) for losses in eager}) == 7
    assert_same(found, wanted)


@pytest.mark.parametrize(
    ("training", "dtype"),
    [
        (train.mlp(8), "float32"),
        (
            train.Training(
                "ResNet", partial(networks.resnet, blocks=(1,), bottleneck=True, small=True), 2, (3, 4, 4), 10, 0
            ),
            "float32",
        ),
        (train.transformer(2, 8, layers=2, width=32, heads=2, vocabulary=50), "bfloat16"),
    ],
    ids=["mlp", "resnet", "transformer"],
)
def test_the_steps_that_are_measured_are_the_eager_ones(device: str, training: train.Training, dtype: str) -> None:
    library = Library("adjoint", device)

    def run(captured: bool) -> Any:
        eager = training.step(library, dtype)
        step = ad.cuda.capture(lambda: eager()) if captured else eager
        losses = [numbers(step()[0]) for _ in range(4)]
        assert not captured or step.graphs == 1
        return losses, [numbers(gradient) for gradient in eager.left()]

    eager = run(False)
    assert run(True) == eager and eager[0][3] < eager[0][0]


def test_each_kind_of_call_has_a_graph_of_its_own(device: str) -> None:
    eager, captured = Training(device, OPTIMIZERS["Adam"]), Training(device, OPTIMIZERS["Adam"])
    step = ad.cuda.capture(captured.step)
    ad.cuda.manual_seed(7)
    sizes = [4, 3, 4, 3, 4, 3, 4, 2]
    found = [numbers(step(*captured.batch(i, size))[0]) for i, size in enumerate(sizes)]
    ad.cuda.manual_seed(7)
    assert found == [numbers(eager.step(*eager.batch(i, size))[0]) for i, size in enumerate(sizes)]
    assert step.graphs == 2  # the size that came once has none
    assert_same(captured.state(), eager.state())


def test_arguments_of_any_nesting_and_their_other_values(device: str) -> None:
    calls = []

    def combine(pair: Any, *, scale: float, more: Any) -> Any:
        calls.append(scale)
        return {"sum": (pair[0] + pair[1]["b"]) * scale, "names": [more[0], pair[0] - more[1]]}

    step = ad.cuda.capture(combine)
    a, b = ad.tensor([1.0, 2.0], device=device), ad.tensor([10.0, 20.0], device=device)
    for scale in (2.0, 3.0):
        for i in range(4):
            found = step((a + i, {"b": b}), scale=scale, more=("x", b))
            assert numbers(found["sum"]) == [(11 + i) * scale, (22 + i) * scale]
            assert found["names"][0] == "x" and numbers(found["names"][1]) == [i - 9.0, i - 18.0]
    assert calls == [2.0, 2.0, 3.0, 3.0] and step.graphs == 2
    step((a, {"b": b}), scale=2, more=("x", b))  # an integer is another value
    assert calls[-1] == 2 and len(calls) == 5


def test_layout_dtype_and_repeated_arguments_are_part_of_the_kind(device: str) -> None:
    calls = []

    def add(x: ad.Tensor, y: ad.Tensor) -> ad.Tensor:
        calls.append(x is y)
        return x + y

    step = ad.cuda.capture(add)
    x = ad.tensor([[1.0, 2.0], [3.0, 4.0]], device=device)
    for _ in range(3):
        assert numbers(step(x, x)) == [[2, 4], [6, 8]]
        assert numbers(step(x, x.clone())) == [[2, 4], [6, 8]]
        assert numbers(step(x.t(), x.clone())) == [[2, 5], [5, 8]]
        assert numbers(step(x.double(), x.double())) == [[2, 4], [6, 8]]
    assert calls == [True, False, False, False] * 2 and step.graphs == 4


def test_what_a_step_returns_is_the_callers(device: str) -> None:
    w = parameter(device, 3.0)

    def scaled(x: ad.Tensor) -> Any:
        y = x * w
        return y, y[:1], x, w

    step = ad.cuda.capture(scaled)
    given = [ad.tensor([float(i), 1.0], device=device) for i in range(5)]
    results = [step(x) for x in given]
    for i, (y, part, x, known) in enumerate(results):
        assert numbers(y) == [3.0 * i, 3.0] and numbers(part) == [3.0 * i]
        assert x is given[i] and known is w
        assert not y.requires_grad
    results[3][0].zero_()
    assert numbers(step(given[2])[0]) == [6.0, 3.0]


def test_an_argument_changed_in_place_is_the_callers(device: str) -> None:
    def grow(x: ad.Tensor) -> None:
        x.add_(1)

    step = ad.cuda.capture(grow)
    x, other = ad.zeros(2, device=device), ad.zeros(2, device=device)
    for i in range(1, 5):
        step(x)
        assert numbers(x) == [i, i] and x._version == i
    step(other)
    assert numbers(other) == [1, 1] and numbers(x) == [4, 4]


def test_the_grad_mode_and_the_precision_are_part_of_the_kind(device: str) -> None:
    modes = []

    def look(x: ad.Tensor) -> ad.Tensor:
        modes.append((ad.is_grad_enabled(), ad.get_float32_matmul_precision()))
        return x * 2

    step = ad.cuda.capture(look)
    try:
        for precision in ("highest", "high"):
            ad.set_float32_matmul_precision(precision)
            for enabled in (True, False):
                for _ in range(3):
                    with ad.set_grad_enabled(enabled):
                        step(ad.ones(1, device=device))
    finally:
        ad.set_float32_matmul_precision("highest")
    kinds = [(True, "highest"), (False, "highest"), (True, "high"), (False, "high")]
    assert modes == [kind for kind in kinds for _ in range(2)] and step.graphs == 4


def test_a_module_is_a_step_too(device: str) -> None:
    model = LeNet().to(device).eval()
    step = ad.cuda.capture(model)
    x = ad.ones(2, 1, 12, 12, device=device)
    for i in range(4):
        with ad.no_grad():
            np.testing.assert_array_equal(step(x * i).cpu().numpy(), model(x * i).cpu().numpy())
    assert step.graphs == 1 and step.__wrapped__ is model


def test_as_a_method(device: str) -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = ad.zeros((), device=device)

        @ad.cuda.capture
        def step(self, by: ad.Tensor) -> None:
            self.count.add_(by)

    one, other = Counter(), Counter()
    for i in range(1, 5):
        one.step(ad.ones((), device=device))
        other.step(ad.ones((), device=device) * 2)
        assert (one.count.item(), other.count.item()) == (i, 2 * i)
    assert Counter.step.graphs == 2 and Counter.step.__name__ == "step"


def test_many_tensors_are_joined_in_a_graph(device: str) -> None:
    def run(captured: bool) -> list[Any]:
        w = parameter(device, 2.0)

        def join(x: ad.Tensor) -> ad.Tensor:
            parts = [x * w * i for i in range(70)]
            w.grad = None
            (ad.cat(parts) * ad.stack(parts, 1)[0]).sum().backward()
            return ad.cat(parts)

        step = ad.cuda.capture(join) if captured else join
        return [(numbers(step(ad.tensor([float(i)], device=device))), numbers(w.grad)) for i in range(4)]

    assert run(True) == run(False)


def test_numbers_beside_bfloat16(device: str) -> None:
    step = ad.cuda.capture(lambda x: (x * 1.5 + 2).float())
    for i in range(4):
        assert numbers(step(ad.tensor([float(i)], device=device).bfloat16())) == [1.5 * i + 2]


def test_numbers_of_the_program_are_part_of_a_graph(device: str) -> None:
    def change(x: ad.Tensor) -> ad.Tensor:
        y = x * ad.tensor(2.0, device=device) + ad.full((3,), 4.0, device=device)
        y[0] = 5.0
        return ad.where(y > 7, y, 0.0) + ad.arange(3, device=device)

    step = ad.cuda.capture(change)
    for i in range(4):
        ad.set_default_device("cpu" if i % 2 else device)
        assert numbers(step(ad.tensor([1.0, 2.0, float(i)], device=device))) == [0, 9, 2 if i < 2 else 2 * i + 6]
    assert step.graphs == 1


def test_on_the_cpu_the_step_just_runs() -> None:
    calls = []

    def step(x: ad.Tensor, name: str) -> tuple[ad.Tensor, float]:
        calls.append(name)
        w = ad.tensor(2.0, requires_grad=True)
        y = x * w
        return y, y.sum().item()

    captured = ad.cuda.capture(step)
    assert captured.__name__ == "step" and captured.__wrapped__ is step
    for i in range(3):
        y, total = captured(ad.ones(2) * i, name="x")
        assert total == 4 * i and not y.requires_grad  # as on a GPU
    assert len(calls) == 3 and captured.graphs == 0


def test_a_network_on_the_cpu_beside_a_gpu(host: str) -> None:
    w = ad.ones(2)
    step = ad.cuda.capture(lambda *given: w.add_(1))
    for given in ((), (ad.ones(2),)):
        w.zero_()
        for i in range(4):
            assert numbers(step(*given)) == [1 + i, 1 + i]
    assert step.graphs == 0


def test_a_number_on_the_cpu_is_part_of_the_kind(device: str) -> None:
    step = ad.cuda.capture(lambda x, factor: x * factor.item())
    for i in (2, 2, 2, 3, 3, 3, 2):
        assert numbers(step(ad.ones(2, device=device), ad.tensor(float(i)))) == [i, i]
    assert step.graphs == 2


class Model(nn.Module):
    """One whose forward is captured."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.forward = ad.cuda.capture(self.compute)  # type: ignore[method-assign]

    def compute(self, x: ad.Tensor) -> ad.Tensor:
        return self.linear(x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_a_captured_step_of_its_own(device: str, copied: Any) -> None:
    model = Model().to(device)
    x = ad.ones(1, 2, device=device)
    for _ in range(3):
        known = numbers(model(x))
    other = copied(model)
    assert (model.forward.graphs, other.forward.graphs) == (1, 0)  # type: ignore[attr-defined]
    with ad.no_grad():
        other.linear.weight.zero_()
        other.linear.bias.zero_()
    for _ in range(3):
        assert numbers(other(x)) == [[0, 0]] and numbers(model(x)) == known
    assert other.forward.graphs == 1


def test_steps_that_share_parameters(device: str) -> None:
    """The generator and the discriminator of a GAN: the one's step leaves gradients in the other."""

    def run(captured: bool) -> Any:
        ad.manual_seed(0)
        made = nn.Linear(3, 4).to(device)
        judge = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 1)).to(device)
        of_made, of_judge = ad.optim.Adam(made.parameters(), 0.01), ad.optim.Adam(judge.parameters(), 0.02)

        def judge_step(real: ad.Tensor, noise: ad.Tensor) -> ad.Tensor:
            of_judge.zero_grad()
            loss = F.softplus(-judge(real)).mean() + F.softplus(judge(made(noise).detach())).mean()
            loss.backward()
            of_judge.step()
            return loss

        def made_step(noise: ad.Tensor) -> ad.Tensor:
            of_made.zero_grad()
            loss = F.softplus(-judge(made(noise))).mean()
            loss.backward()
            of_made.step()
            return loss

        steps = [ad.cuda.capture(step) if captured else step for step in (judge_step, made_step)]
        losses = []
        for i in range(7):
            rng = np.random.default_rng(i)
            real, noise = (
                ad.tensor(rng.standard_normal((4, size)).astype(np.float32), device=device) for size in (4, 3)
            )
            losses += [numbers(steps[0](real, noise)), numbers(steps[1](noise))]
        assert not captured or [step.graphs for step in steps] == [1, 1]
        return losses, [numbers(weight.grad) for weight in (*made.parameters(), *judge.parameters())]

    assert run(True) == run(False)
