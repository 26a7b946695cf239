"""`cuda.capture` with a stand-in for CuPy whose graphs replay the kernels on the host; the same on a GPU."""

from __future__ import annotations

import gc
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import host_cupy
import numpy as np
import pytest

import adjoint as ad
import adjoint.nn as nn
import adjoint.nn.functional as F
from adjoint import optim
from adjoint.engine import backend, random
from bench import networks
from bench.library import Library
from bench.suites import train
from cuda_on_host import compiler, installed

HERE = Path(__file__).name


def host_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if compiler() is None:
        pytest.skip("needs a C++ compiler (g++, or set CXX)")
    monkeypatch.setitem(sys.modules, "cupy", host_cupy.module())
    monkeypatch.setattr(random, "_generators", {})
    backend.cupy.cache_clear()
    ad.set_default_device("cpu")
    with installed(host_cupy.Launcher()):
        yield "cuda"
    assert host_cupy.Stream.open_captures == 0 and gc.isenabled()
    ad.set_default_device(None)
    backend.cupy.cache_clear()


def real_gpu() -> str:
    cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install 'cupy-cuda12x[ctk]' (or 13x)")
    if not cupy.is_available():
        pytest.skip("needs a GPU: CuPy finds no CUDA device")
    return "cuda"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from host_gpu(monkeypatch)


@pytest.fixture(params=["cuda-on-host", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "cuda":
        name = real_gpu()
        ad.set_default_device("cpu")
        yield name
        ad.set_default_device(None)
    else:
        yield from host_gpu(monkeypatch)


class LeNet(nn.Module):
    """A small one, with dropout and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 3 * 3, 10), nn.Dropout(0.3), nn.Linear(10, 5))

    def forward(self, x: ad.Tensor) -> ad.Tensor:
        return self.head(self.features(x))


OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, 0.1),
    "SGD-momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "Adam": lambda p: optim.Adam(p, 0.01, weight_decay=0.1),
    "Adam-amsgrad": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "Adam-lr-tensor": lambda p: optim.Adam(p, ad.tensor(0.01, device=p[0].device)),
    "AdamW": lambda p: optim.AdamW(p, 0.01),
    "RMSprop": lambda p: optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: optim.Adagrad(p, 0.1, lr_decay=0.1),
    "Adadelta": lambda p: optim.Adadelta(p, 0.5, weight_decay=0.1),
    "NAdam": lambda p: optim.NAdam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "RAdam": lambda p: optim.RAdam(p, 0.01, betas=(0.9, 0.7)),  # variance counts from step 4 on
    "Adamax": lambda p: optim.Adamax(p, 0.01),
}


class Training:
    """A network, an optimizer and a schedule, all made from one seed."""

    def __init__(self, device: str, make: Callable[[Any], optim.Optimizer]) -> None:
        ad.manual_seed(3)
        self.device = device
        self.model = LeNet().to(device)
        self.optimizer = make(list(self.model.parameters()))
        self.schedule = optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        ad.cuda.manual_seed(7)

    def step(self, x: ad.Tensor, y: ad.Tensor) -> tuple[ad.Tensor, ad.Tensor]:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        return loss, norm

    def batch(self, i: int, count: int = 4) -> tuple[ad.Tensor, ad.Tensor]:
        rng = np.random.default_rng(i)
        x = rng.standard_normal((count, 1, 12, 12)).astype(np.float32)
        return ad.tensor(x, device=self.device), ad.tensor(rng.integers(0, 5, count), device=self.device)

    def state(self) -> dict[str, Any]:
        """All that a step changes, on the host."""
        found = {name: tensor.cpu().numpy().copy() for name, tensor in self.model.state_dict().items()}
        for i, parameter in enumerate(self.model.parameters()):
            found[f"grad {i}"] = None if parameter.grad is None else parameter.grad.cpu().numpy().copy()
        for i, known in self.optimizer.state_dict()["state"].items():
            for name, value in known.items():
                found[f"{name} {i}"] = value.cpu().numpy().copy() if isinstance(value, ad.Tensor) else value
        found["generator"] = random.default_generator(backend.as_device(self.device)).get_state().numpy().copy()
        return found


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not np.array_equal(found[name], wanted[name])]
    assert not different, different


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


def parameter(device: str, *values: float) -> ad.Tensor:
    return ad.tensor(list(values), device=device, requires_grad=True)


def numbers(tensor: Any) -> list[float]:
    return tensor.detach().cpu().tolist()


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


# ---- what cannot be captured

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


def test_garbage_is_not_collected_within_a_capture(device: str) -> None:
    enabled = []

    def look(x: ad.Tensor) -> ad.Tensor:
        enabled.append(gc.isenabled())
        return x + 1

    step = ad.cuda.capture(look)
    for _ in range(3):
        step(ad.ones(1, device=device))
    assert enabled == [True, False] and gc.isenabled()


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


# ---- memory


def live_bytes(device: str) -> int:
    """Bytes taken from the device, but for what the common pool keeps."""
    cupy = backend.cupy()
    gc.collect()
    cupy.cuda.get_current_stream().synchronize()
    cupy.get_default_memory_pool().free_all_blocks()
    if cupy.cuda.Memory is host_cupy.Memory:
        return host_cupy.Memory.live_bytes()
    free, total = cupy.cuda.runtime.memGetInfo()
    return total - free


def test_memory_goes_back_when_the_object_goes(device: str) -> None:
    x = ad.ones(2048, 2048, device=device)
    step = ad.cuda.capture(lambda x: ((x * 2).relu() + 1).sum())
    step(x)
    before = live_bytes(device)
    for _ in range(3):
        result = step(x)
    assert live_bytes(device) >= before + 2 * x.nbytes  # a static input, and what comes of it
    reference = weakref.ref(step)
    gc.disable()  # no cycle holds it
    try:
        del step
        assert reference() is None
    finally:
        gc.enable()
    assert live_bytes(device) <= before + x.nbytes // 8  # the result, and what the driver keeps
    assert result.item() == 3 * 2048**2


def test_what_outlives_the_object_keeps_its_memory(device: str) -> None:
    training = Training(device, OPTIMIZERS["SGD"])
    step = ad.cuda.capture(training.step)
    for i in range(3):
        step(*training.batch(i))
    before = training.state()
    del step
    gc.collect()
    backend.cupy().get_default_memory_pool().free_all_blocks()
    others = [ad.zeros(4096, device=device) for _ in range(64)]
    assert_same(training.state(), before)
    training.step(*training.batch(3))
    assert len(others) == 64


def test_memory_goes_back_after_an_error(device: str) -> None:
    x = ad.ones(1024, 1024, device=device)

    def fail(x: ad.Tensor) -> None:
        y = x + 1
        (y * 2).sum().item()

    step = ad.cuda.capture(fail)
    step(x)
    before = live_bytes(device)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            step(x)
        step(x)
    assert live_bytes(device) <= before


def test_what_the_step_frees_serves_again_in_its_graph(host: str) -> None:
    def deep(x: ad.Tensor) -> ad.Tensor:
        for _ in range(50):
            x = x + 1
        return x

    step = ad.cuda.capture(deep)
    x = ad.zeros(1000, device=host)
    for _ in range(3):
        assert numbers(step(x)) == [50.0] * 1000
    (run,) = step._runs.values()
    assert run[0].graph.memory.nbytes <= 5 * 4096


def test_a_pool_that_is_short_gives_nothing_back_that_the_graph_uses(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short of memory, CuPy's pool frees its free blocks, also during a capture."""
    malloc = host_cupy.MemoryPool.malloc

    def short(pool: host_cupy.MemoryPool, nbytes: int) -> Any:
        pool.free_all_blocks()
        return malloc(pool, nbytes)

    monkeypatch.setattr(host_cupy.MemoryPool, "malloc", short)
    step = ad.cuda.capture(lambda x: ((x + 1) * 2 + x).sum())
    for i in range(4):
        assert numbers(step(ad.ones(500, device=host) * i)) == 500 * (3 * i + 2)


# ---- arguments, and the CPU


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


def test_the_default_stream_is_not_captured(host: str) -> None:
    """The capture has a stream of its own, whichever is the user's; the replay goes to the user's."""
    cupy = backend.cupy()
    step = ad.cuda.capture(lambda x: x + 1)
    stream = cupy.cuda.Stream(non_blocking=True)
    for i in range(6):
        with stream if i % 2 else cupy.cuda.Stream(null=True):
            assert numbers(step(ad.ones(1, device=host))) == [2]
    with pytest.raises(RuntimeError, match="default"):
        cupy.cuda.Stream(null=True).begin_capture()


def test_what_a_graph_writes_first_does_not_lie_where_its_numbers_are(device: str) -> None:
    """Gradients that are gone when the optimizer runs leave memory of the size that its numbers need."""

    def losses(captured: bool) -> list[float]:
        ad.manual_seed(0)
        model = nn.Sequential(nn.Linear(144, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
        model = model.to(device)
        optimizer = optim.SGD(model.parameters(), 0.1)
        x, y = ad.randn(4, 144).to(device), ad.arange(4).to(device)

        def step(x: ad.Tensor, y: ad.Tensor) -> ad.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        call = ad.cuda.capture(step) if captured else step
        return [float(call(x, y).cpu()) for _ in range(4)]

    eager = losses(False)
    assert losses(True) == eager and len(set(eager)) == 4


def test_the_stand_in_has_nothing_that_cupy_lacks() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed; its names cannot be looked up (it needs no GPU)")
    stand_in = host_cupy.module()
    for name in vars(stand_in.cuda):
        assert hasattr(cupy.cuda, name), name
    for name, members in {
        "Stream": "begin_capture end_capture is_capturing synchronize",
        "Graph": "launch",
        "MemoryPool": "malloc free_all_blocks",
        "Memory": "ptr size device_id",
        "MemoryPointer": "ptr mem device_id",
        "UnownedMemory": "ptr size _owner device_id",
    }.items():
        for member in members.split():
            assert hasattr(getattr(cupy.cuda, name), member), (name, member)
    owner = object()
    memory = cupy.cuda.UnownedMemory(512, 16, owner, 3)
    pointer = cupy.cuda.MemoryPointer(memory, 0)
    assert (pointer.ptr, pointer.device_id) == (512, 3) and pointer.mem is memory and memory._owner is owner
    assert callable(cupy.get_default_pinned_memory_pool().malloc)
