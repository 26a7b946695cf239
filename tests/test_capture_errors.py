"""What cannot be captured: the user's line, and everything as it was."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from capture_cases import OPTIMIZERS, Training, assert_same, device_fixture, host_fixture, numbers, parameter

import adjoint as ad
import adjoint.nn as nn
import adjoint.nn.functional as F
from adjoint import optim
from adjoint.engine import backend

device = device_fixture()
host = host_fixture()
HERE = Path(__file__).name


def test_calls_that_never_repeat_are_forgotten_with_a_warning(device: str) -> None:
    step = ad.cuda.capture(lambda x, i: x + i)
    x = ad.ones(1, device=device)
    for i in range(64):
        step(x, i)
    with pytest.warns(RuntimeWarning, match=r"<lambda> was called in more than 64 ways") as caught:
        step(x, 64)
    assert caught[0].filename == __file__
    for i in range(65, 200):
        assert numbers(step(x, i)) == [1 + i]
    assert len(step._runs) == 64 and step.graphs == 0
    for _ in range(2):
        assert numbers(step(x, 199)) == [200]
    assert step.graphs == 1


REFUSED: dict[str, tuple[str, Callable[[ad.Tensor], Any]]] = {
    "item": ("item", lambda x: x.sum().item()),
    "bool": ("bool", lambda x: 1 if x.sum() > 0 else 2),
    "float": ("float", lambda x: float(x.sum())),
    "int": ("int", lambda x: int(x.sum())),
    "tolist": ("tolist", lambda x: x.tolist()),
    "cpu": ("cpu", lambda x: x.cpu()),
    "to": ("to", lambda x: x.to("cpu")),
    "print": ("print", lambda x: str(x)),
    "format": ("format", lambda x: f"{x.sum():.3f}"),
    "mask": ("index", lambda x: x[x > 0]),
    "masked_select": ("masked_select", lambda x: x.masked_select(x > 0)),
    "nonzero": ("nonzero", lambda x: x.nonzero()),
    "unique": ("unique", lambda x: x.unique()),
    "equal": ("equal", lambda x: ad.equal(x, x)),
    "repeat_interleave": ("repeat_interleave", lambda x: x.repeat_interleave(x.long().abs())),
    "tensor": ("tensor", lambda x: ad.tensor([1.0, 2.0], device=x.device)),
    "from_numpy": ("to", lambda x: x + ad.from_numpy(np.ones(2, np.float32)).to(x.device)),
    "synchronize": ("synchronize", lambda x: ad.cuda.synchronize()),
    "manual_seed": ("manual_seed", lambda x: ad.cuda.manual_seed(3)),
    "get_rng_state": ("get_rng_state", lambda x: ad.cuda.get_rng_state()),
    "data": ("data", lambda x: setattr(x, "data", x.data)),
    "clip_grad_norm_": (
        "clip_grad_norm_",
        lambda x: nn.utils.clip_grad_norm_(with_gradient(x), 1.0, error_if_nonfinite=True),
    ),
    "one_hot": ("one_hot", lambda x: F.one_hot(x.long().abs())),
}


def with_gradient(x: ad.Tensor) -> ad.Tensor:
    x = x.detach().clone()
    x.grad = x * 2
    return x


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_a_value_is_refused_with_the_users_line(device: str, name: str) -> None:
    called, operation = REFUSED[name]
    model = nn.BatchNorm1d(2).to(device)
    optimizer = optim.Adam(model.parameters(), 0.1)

    def train(x: ad.Tensor) -> None:
        optimizer.zero_grad()
        (model(x) * x).sum().backward()
        optimizer.step()
        operation(x[0])

    step = ad.cuda.capture(train)
    x = ad.tensor([[1.0, 2.0], [4.0, 3.0]], device=device)
    step(x)
    before = state_of(model, optimizer)
    for _ in range(2):
        with pytest.raises(RuntimeError) as caught:
            step(x)
        message = str(caught.value)
        assert re.match(rf"{called}: a step that is captured in a CUDA graph cannot", message), message
        line = operation.__code__.co_firstlineno
        assert f'{HERE}", line {line}, in <lambda>\n' in message and "lambda x: " in message
        assert_same(state_of(model, optimizer), before)
        step(x)  # as it is: the call that failed was forgotten
        before = state_of(model, optimizer)
    assert numbers(x * 2) == [[2, 4], [8, 6]]


def state_of(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Any]:
    found = {name: tensor.cpu().numpy().copy() for name, tensor in model.state_dict().items()}
    for i, weight in enumerate(model.parameters()):
        found[f"grad {i}"] = None if weight.grad is None else weight.grad.cpu().numpy().copy()
        found[f"step {i}"] = optimizer.state[weight].get("step")
    return found


def test_copies_of_host_memory_that_only_cupy_knows_are_refused(device: str) -> None:
    cupy = backend.cupy()

    def copy(x: ad.Tensor) -> ad.Tensor:
        return x + ad.Tensor(cupy.asarray(np.array([1.0, 2.0], np.float32)))

    step = ad.cuda.capture(copy)
    x = ad.ones(2, device=device)
    step(x)
    with pytest.raises(RuntimeError, match="cannot copy from host memory") as caught:
        step(x)
    (note,) = caught.value.__notes__
    assert HERE in note and "in copy" in note
    assert numbers(ad.Tensor(cupy.asarray(np.array([1.0, 2.0], np.float32)))) == [1, 2]


def test_an_error_of_the_step_itself_reaches_the_user_and_changes_nothing(device: str) -> None:
    training = Training(device, OPTIMIZERS["NAdam"])
    schedule = optim.lr_scheduler.StepLR(training.optimizer, 1, 0.5)
    fails = False

    def train(x: ad.Tensor, y: ad.Tensor) -> None:
        training.step(x, y)
        schedule.step()
        if fails:
            raise KeyError("mine")

    step = ad.cuda.capture(train)
    step(*training.batch(0))
    before, lr, enabled = training.state(), schedule.get_last_lr(), gc.isenabled()
    fails = True
    with pytest.raises(KeyError, match="mine") as caught:
        step(*training.batch(1))
    (note,) = caught.value.__notes__
    assert "captured the step" in note and HERE in note and 'raise KeyError("mine")' in note
    assert_same(training.state(), before)
    assert schedule.get_last_lr() == lr and schedule.last_epoch == 1 and gc.isenabled() == enabled
    fails = False
    for i in range(1, 4):
        step(*training.batch(i))
    assert step.graphs == 1 and schedule.last_epoch == 4
    eager = Training(device, OPTIMIZERS["NAdam"])
    schedule = optim.lr_scheduler.StepLR(eager.optimizer, 1, 0.5)
    for i in range(4):
        eager.step(*eager.batch(i))
        schedule.step()
    assert_same(training.state(), eager.state())


def test_captures_are_not_nested(device: str) -> None:
    inner = ad.cuda.capture(lambda x: x + 1)

    @ad.cuda.capture
    def outer(x: ad.Tensor) -> ad.Tensor:
        return inner(x) * 2

    for x in (ad.ones(2, device=device), ad.ones(2)):  # on the CPU too
        with pytest.raises(RuntimeError, match=r"<lambda> is called within outer.*__wrapped__"):
            outer(x)
    for _ in range(3):
        assert numbers(inner(ad.ones(2, device=device))) == [2, 2]
    whole = ad.cuda.capture(lambda x: inner.__wrapped__(x) * 2)
    for _ in range(3):
        assert numbers(whole(ad.ones(2, device=device))) == [4, 4]


def test_work_on_the_cpu_is_refused(device: str) -> None:
    a, b = ad.ones(2), ad.ones(2)

    def mixed(x: ad.Tensor) -> ad.Tensor:
        a.add_(b)
        return x + 1

    step = ad.cuda.capture(mixed)
    step(ad.ones(2, device=device))
    with pytest.raises(RuntimeError, match=rf'(?s)^Add: this ran on the CPU.*{HERE}", line .*a\.add_\(b\)'):
        step(ad.ones(2, device=device))


def test_a_learning_rate_tensor_is_not_scheduled_inside(device: str) -> None:
    w = parameter(device, 1.0)
    optimizer = optim.SGD([w], ad.tensor(0.5, device=device))
    schedule = optim.lr_scheduler.StepLR(optimizer, 1)

    def train(x: ad.Tensor) -> None:
        (w * x).sum().backward()
        optimizer.step()
        schedule.step()

    step = ad.cuda.capture(train)
    for _ in range(2):  # without a gradient there, and with one
        step(ad.ones(1, device=device))
    with pytest.raises(
        RuntimeError, match=r"(?s)^step: .*schedule of a learning rate that is a tensor.*schedule\.step"
    ):
        step(ad.ones(1, device=device))


def test_batches_that_the_step_brings_to_the_gpu_are_refused(device: str) -> None:
    w = parameter(device, 2.0)
    step = ad.cuda.capture(lambda x: x.to(w.device) * w)
    assert numbers(step(ad.ones(1))) == [2]
    with pytest.raises(RuntimeError, match=r"(?s)^to: .* cannot copy to the GPU; do it outside.*x\.to\(w\.device\)"):
        step(ad.ones(1))


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="capture: expected a function, got int"):
        ad.cuda.capture(3)  # type: ignore[arg-type]
    step = ad.cuda.capture(lambda *args: None)
    with pytest.raises(TypeError, match="captured already"):
        ad.cuda.capture(step)
    with pytest.raises(TypeError, match=r"hashable.*got ndarray"):
        step(ad.ones(2), [np.ones(2)])
    with pytest.raises(ValueError, match=r"shape \(2,\) requires a gradient.*detach"):
        step({"x": ad.ones(2, requires_grad=True)})
    step(ad.ones(2))  # the errors have left nothing behind


def test_batches_on_the_cpu_beside_tensors_on_the_gpu_are_refused(device: str) -> None:
    step = ad.cuda.capture(lambda x, sizes: x * sizes.tolist()[0])
    x = ad.ones(2, device=device)
    assert numbers(step(x, ad.tensor([3.0, 4.0]))) == [3, 3]
    with pytest.raises(RuntimeError, match=r"argument of shape \(2,\) is on the CPU.*copy it to the GPU"):
        step(x, ad.tensor([5.0, 6.0]))


def test_a_result_in_an_object_that_nobody_looks_into_is_refused(device: str) -> None:
    w = parameter(device, 1.0)

    def train(x: ad.Tensor) -> Any:
        w.grad = None
        loss = (w * x).sum()
        loss.backward()
        return {"result": [SimpleNamespace(loss=loss)]}

    step = ad.cuda.capture(train)
    step(ad.ones(1, device=device))
    before = w.grad
    with pytest.raises(TypeError, match=r"train returned a SimpleNamespace; expected tensors"):
        step(ad.ones(1, device=device) * 2)
    assert w.grad is before and numbers(w.grad) == [1]


def test_a_change_in_place_on_the_cpu_is_refused(device: str) -> None:
    count = ad.zeros(2)
    step = ad.cuda.capture(lambda x: (x * 2, count.fill_(3)))
    step(ad.ones(1, device=device))
    with pytest.raises(RuntimeError, match="fill_: this ran on the CPU"):
        step(ad.ones(1, device=device))
