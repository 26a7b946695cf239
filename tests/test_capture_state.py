"""What captured steps find and leave on the host: gradients, modes, schedules, optimizers."""

from __future__ import annotations

from typing import Any

import pytest
from capture_cases import device_fixture, host_fixture, numbers, parameter

import adjoint as ad
import adjoint.nn as nn
from adjoint import optim

device = device_fixture()
host = host_fixture()


def test_a_schedule_inside_of_the_step_goes_on_at_each_replay(device: str) -> None:
    def run(captured: bool) -> tuple[list[float], Any]:
        w = parameter(device, 1.0)
        optimizer = optim.Adam([w], 0.5)
        schedule = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

        def step() -> None:
            optimizer.zero_grad()
            (w * w).sum().backward()
            optimizer.step()
            schedule.step()

        call = ad.cuda.capture(step) if captured else step
        with_default = []
        for _ in range(6):
            call()
            with_default.append(w.item())
        return with_default, (schedule.last_epoch, schedule.get_last_lr(), optimizer.state[w]["step"])

    assert run(True) == run(False)


def test_train_and_eval_are_different_calls(device: str) -> None:
    model = nn.Dropout(0.5)
    step = ad.cuda.capture(lambda x: model(x * 1))
    x = ad.ones(64, device=device)
    for training in (True, True, True, False, False, False, True):
        model.train(training)
        found = set(numbers(step(x)))
        assert found == ({0.0, 2.0} if training else {1.0})
    assert step.graphs == 2


def test_a_step_that_switches_the_mode_itself_leaves_it_as_it_would(device: str) -> None:
    model = nn.Dropout(0.5)

    def train(x: ad.Tensor) -> ad.Tensor:
        model.train()
        return model(x)

    step = ad.cuda.capture(train)
    for _ in range(4):
        model.eval()
        assert set(numbers(step(ad.ones(64, device=device)))) == {0.0, 2.0}
        assert model.training
    assert step.graphs == 1


def test_gradients_add_up_over_calls(device: str) -> None:
    def run(captured: bool) -> list[Any]:
        w = parameter(device, 2.0, 3.0)
        optimizer = optim.SGD([w], 0.25)

        def backward(x: ad.Tensor) -> None:
            (w * w * x).sum().backward()

        step = ad.cuda.capture(backward) if captured else backward
        seen = []
        for i in range(12):
            step(ad.tensor([1.0, float(i)], device=device))
            assert w.grad is not None
            seen.append(numbers(w.grad))
            if i % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
        if captured:
            assert step.graphs == 2  # with a gradient there, and without
        return [*seen, numbers(w)]

    assert run(True) == run(False)


def test_zero_grad_to_zeros(device: str) -> None:
    def run(captured: bool) -> list[Any]:
        w = parameter(device, 2.0)
        optimizer = optim.SGD([w], 0.25, momentum=0.5)

        def step(x: ad.Tensor) -> None:
            optimizer.zero_grad(set_to_none=False)
            (w * w * x).sum().backward()
            optimizer.step()

        call = ad.cuda.capture(step) if captured else step
        seen = []
        for i in range(6):
            call(ad.tensor(float(i + 1), device=device))
            assert w.grad is not None
            seen += [w.item(), w.grad.item()]
        assert not captured or call.graphs == 1
        return seen

    assert run(True) == run(False)


def test_a_replay_counts_as_a_change_in_place(device: str) -> None:
    w = parameter(device, 2.0)
    optimizer = optim.SGD([w], 0.25)

    def train(x: ad.Tensor) -> None:
        optimizer.zero_grad()
        (w * x).sum().backward()
        optimizer.step()

    step = ad.cuda.capture(train)
    x = ad.ones(1, device=device)
    for _ in range(3):
        step(x)
    loss = (w * w).sum()
    step(x)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_a_parameter_with_another_array_is_captured_anew(device: str) -> None:
    w = parameter(device, 2.0)
    step = ad.cuda.capture(lambda x: x * w)
    x = ad.ones(1, device=device)
    for value in (2.0, 5.0):
        w.data = ad.tensor([value], device=device).data
        for _ in range(3):
            assert numbers(step(x)) == [value]
        assert step.graphs == 1  # that of the other array is gone


def test_frozen_parameters_are_another_kind(device: str) -> None:
    v, w = parameter(device, 2.0), parameter(device, 3.0)

    def train(x: ad.Tensor) -> None:
        v.grad = w.grad = None
        (v * w * x).sum().backward()

    step = ad.cuda.capture(train)
    for frozen in (False, True, False):
        v.requires_grad_(not frozen)
        for i in range(3):
            step(ad.tensor([float(i)], device=device))
            assert v.grad is None if frozen else numbers(v.grad) == [3.0 * i]
            assert numbers(w.grad) == [2.0 * i]


def test_a_step_that_freezes_parameters_itself(device: str) -> None:
    v, w = parameter(device, 2.0), parameter(device, 3.0)

    def train(x: ad.Tensor) -> None:
        v.grad = w.grad = None
        v.requires_grad_(False)
        (v * w * x).sum().backward()
        v.requires_grad_(True)
        (v * w * x).sum().backward()

    step = ad.cuda.capture(train)
    for i in range(5):
        step(ad.tensor([float(i)], device=device))
        assert (numbers(v.grad), numbers(w.grad)) == ([3.0 * i], [4.0 * i]) and v.requires_grad
    assert step.graphs == 1


def test_settings_and_state_of_an_optimizer_may_change(device: str) -> None:
    def run(captured: bool) -> list[Any]:
        w, v = parameter(device, 2.0, 1.0), parameter(device, 1.0)
        optimizers = [optim.SGD([w], 0.1, momentum=0.9), optim.RMSprop([v], 0.1)]

        def train(x: ad.Tensor) -> None:
            for optimizer in optimizers:
                optimizer.zero_grad()
            ((w * x).sum() * v).sum().backward()
            for optimizer in optimizers:
                optimizer.step()

        step = ad.cuda.capture(train) if captured else train
        seen = []
        for i in range(16):
            if i == 4:
                optimizers[0].param_groups[0]["momentum"] = 0.5  # a number that replays read
            if i == 8:
                optimizers[1].param_groups[0]["alpha"] = 0.5  # part of the formula
            if i == 12:
                for optimizer in optimizers:
                    optimizer.load_state_dict(optimizer.state_dict())
            step(ad.tensor([float(i), 1.0], device=device))
            seen.append((numbers(w), numbers(v)))
        return seen

    assert run(True) == run(False)


def test_graphs_that_will_never_apply_again_are_let_go(device: str) -> None:
    w = parameter(device, 2.0)
    optimizer = optim.Adam([w], 0.1)

    def train(x: ad.Tensor) -> None:
        optimizer.zero_grad()
        (w * x).sum().backward()
        optimizer.step()

    step = ad.cuda.capture(train)
    for _ in range(3):
        for _ in range(3):
            step(ad.ones(1, device=device))
        assert step.graphs == 1
        optimizer.load_state_dict(optimizer.state_dict())


def test_parameters_that_share_a_step_count_may_part(device: str) -> None:
    def run(captured: bool, make: Any) -> list[Any]:
        w, v = parameter(device, 2.0, 1.0), parameter(device, 1.0)
        optimizer = make([w, v], 0.1)

        def train(x: ad.Tensor, both: bool) -> None:
            optimizer.zero_grad()
            ((w * x).sum() * (v.sum() if both else 1)).backward()
            optimizer.step()

        step = ad.cuda.capture(train) if captured else train
        seen = []
        for both in (True, True, True, False, False, False, True, True, True):
            step(ad.tensor([1.0, 3.0], device=device), both)
            seen.append((numbers(w), numbers(v), optimizer.state[w]["step"], optimizer.state[v]["step"]))
        return seen

    for make in (optim.Adam, optim.NAdam):
        assert run(True, make) == run(False, make)


def test_state_that_begins_late_is_not_made_in_a_graph(device: str) -> None:
    def run(captured: bool) -> list[Any]:
        w = parameter(device, 1.0)
        optimizer = optim.Adam([w], 0.5)
        training = False

        def train(x: ad.Tensor) -> ad.Tensor:
            loss = (w * x).sum()
            if training:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return loss

        step = ad.cuda.capture(train) if captured else train
        seen = numbers(step(ad.ones(1, device=device)))
        training = True
        for i in range(4):
            seen = [seen, numbers(step(ad.ones(1, device=device) * i)), numbers(w)]
        return seen

    assert run(True) == run(False)


def test_an_optimizer_whose_state_was_cleared_begins_anew(device: str) -> None:
    def run(captured: bool) -> list[Any]:
        w = parameter(device, 2.0, 3.0)
        optimizer = optim.SGD([w], 0.1, momentum=0.9)

        def train(x: ad.Tensor) -> None:
            optimizer.zero_grad()
            (w * x).sum().backward()
            optimizer.step()

        step = ad.cuda.capture(train) if captured else train
        seen = []
        for i in range(12):
            if i == 4:
                optimizer.state.clear()
            if i == 8:
                optimizer.state[w]["momentum_buffer"] = ad.zeros(2, device=device)
            step(ad.tensor([1.0, float(i)], device=device))
            seen.append(numbers(w))
        assert not captured or step.graphs == 1
        return seen

    assert run(True) == run(False)


def parameters_data(device: str, value: float, known: dict[str, Any]) -> None:
    known["w"].data = ad.full((2,), value, device=device).data


def running_mean(device: str, value: float, known: dict[str, Any]) -> None:
    known["norm"].running_mean = ad.full((2,), value, device=device)


def source(device: str, value: float, known: dict[str, Any]) -> None:
    known["source"] = ad.full((2,), value, device=device)


REPLACED: dict[str, tuple[Any, Any]] = {
    "detached": (parameters_data, lambda known, x: x * known["w"].detach()),
    "view": (parameters_data, lambda known, x: x * known["w"][:]),
    "running-statistics": (running_mean, lambda known, x: known["norm"](x)),
    "running-statistics-eval": (running_mean, lambda known, x: known["norm"].eval()(x)),
    "copied": (source, lambda known, x: known["target"].copy_(known["source"])),
}


@pytest.mark.parametrize("name", REPLACED)
def test_arrays_that_were_replaced_are_noticed(device: str, name: str) -> None:
    replace, operation = REPLACED[name]

    def run(captured: bool) -> list[Any]:
        known = {"w": parameter(device, 2.0, 3.0), "norm": nn.BatchNorm1d(2, affine=False).to(device)}
        known["target"], known["source"] = ad.zeros(2, device=device), ad.ones(2, device=device)

        def use(x: ad.Tensor) -> ad.Tensor:
            return operation(known, x)

        step = ad.cuda.capture(use) if captured else use
        seen = []
        for value in (2.0, 5.0):
            replace(device, value, known)
            for i in range(4):
                found = step(ad.tensor([[1.0, 2.0], [float(i), 4.0]], device=device))
                seen.append((numbers(found), numbers(known["norm"].running_mean)))
            assert not captured or step.graphs == 1
        return seen

    assert run(True) == run(False)


def test_a_gradient_with_another_array_is_captured_anew(device: str) -> None:
    w = parameter(device, 2.0)
    step = ad.cuda.capture(lambda x: (w * x).sum().backward())
    for i in range(1, 5):
        step(ad.ones(1, device=device))
        assert w.grad is not None and numbers(w.grad) == [i]
    w.grad.data = ad.tensor([100.0], device=device).data
    for i in range(1, 5):
        step(ad.ones(1, device=device))
        assert numbers(w.grad) == [100 + i]


@pytest.mark.parametrize("make", [optim.SGD, optim.AdamW, optim.NAdam])
def test_an_optimizers_step_alone(device: str, make: Any) -> None:
    def run(captured: bool) -> list[Any]:
        w = parameter(device, 2.0, 3.0)
        optimizer = make([w], 0.1)
        step = ad.cuda.capture(optimizer.step) if captured else optimizer.step
        seen = []
        for i in range(8):
            w.grad = ad.tensor([1.0, float(i)], device=device)
            if i == 4:
                w.data = ad.tensor([7.0, 8.0], device=device).data
            step()
            seen.append(numbers(w))
        assert not captured or step.graphs == 1
        return seen

    assert run(True) == run(False)
