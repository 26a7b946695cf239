"""Checkpointing and anomaly detection: the two that watch operations as they run."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adjoint import Tensor, manual_seed, no_grad, rand
from adjoint.engine import random
from adjoint.engine.anomaly import detect_anomaly, set_detect_anomaly
from adjoint.engine.backend import Device
from adjoint.engine.checkpoint import checkpoint
from adjoint.engine.function import Function
from adjoint.engine.grad_mode import Watcher
from adjoint.engine.gradcheck import gradgradcheck
from adjoint.engine.gradients import grad


def tensor(values: Any, requires_grad: bool = True) -> Tensor:
    return Tensor(np.array(values, dtype=np.float64), requires_grad=requires_grad)


def same(actual: Any, expected: Any) -> None:
    assert actual is not None
    np.testing.assert_allclose(actual.detach().numpy(), np.asarray(expected), rtol=1e-12)


# ---- checkpoint

VALUES = np.linspace(0.1, 0.9, 6).reshape(2, 3)


def block(x: Any, w: Any, scale: float = 2.0) -> Any:
    h = (x * w).tanh() * scale
    h[0].mul_(w[1])
    return (h.exp() * h).sin()


class Counted:
    """A function that counts its runs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.runs = function, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        return self.function(*args, **kwargs)


def test_the_gradients_are_those_without_checkpoint() -> None:
    results = []
    for run in (lambda f, *a, **k: f(*a, **k), checkpoint):
        x, w = tensor(VALUES), tensor(VALUES + 1)
        (run(block, x * 2, w, scale=3.0) * w).sum().backward()
        results.append((x.grad, w.grad))
    for plain, checked in zip(*results, strict=True):
        assert np.array_equal(plain.data, checked.data)


def test_the_function_runs_again_once_and_only_for_backward() -> None:
    function = Counted(block)
    x, w = tensor(VALUES), tensor(VALUES + 1)
    y = checkpoint(function, x, w, use_reentrant=False)
    assert function.runs == 1
    y.sum().backward()
    assert function.runs == 2
    y = checkpoint(function, x, w)
    del y
    with no_grad():
        assert not checkpoint(function, x, w).requires_grad
    assert function.runs == 4


def test_captured_tensors_get_gradients() -> None:
    w = tensor(VALUES)
    x = tensor(VALUES, False)
    checkpoint(lambda t: (t * w).sin() * w, x).sum().backward()
    a = VALUES
    same(w.grad, np.cos(a * a) * a * a + np.sin(a * a))


def test_autograd_grad_and_retained_graphs() -> None:
    function = Counted(block)
    x, w = tensor(VALUES), tensor(VALUES + 1)
    y = checkpoint(function, x, w).sum()
    first = grad(y, x, retain_graph=True)[0]
    again = grad(y, [x, w])
    assert np.array_equal(first.data, again[0].data)
    same(first, grad(block(x, w).sum(), x)[0].data)
    with pytest.raises(RuntimeError, match="freed"):
        grad(y, x)


def test_second_derivatives() -> None:
    x, w = tensor(VALUES), tensor(VALUES + 1)
    assert gradgradcheck(lambda a, b: checkpoint(block, a, b), (x, w))
    results = []
    for run in (lambda f, *a: f(*a), checkpoint):
        (g,) = grad(run(block, x, w).sum(), x, create_graph=True)
        results.append(grad((g * g).sum(), [x, w]))
    for plain, checked in zip(*results, strict=True):
        np.testing.assert_allclose(plain.data, checked.data, rtol=1e-12)


def test_nothing_of_the_region_is_kept() -> None:
    kept: list[Any] = []

    def region(x: Any) -> Any:
        a = x.exp()
        b = a.sin()
        kept[:] = [weakref.ref(a.data), weakref.ref(b.data)]
        return b * b

    gc.collect()
    gc.disable()
    try:
        y = region(tensor(VALUES))
        assert all(ref() is not None for ref in kept)
        y = checkpoint(region, tensor(VALUES))
        assert all(ref() is None for ref in kept)
        y.sum().backward()
        assert all(ref() is None for ref in kept)  # those of the second run
        node = weakref.ref(y.grad_fn)
        del y
        assert node() is None
    finally:
        gc.enable()


def test_a_region_that_dies_unused_frees_its_arguments() -> None:
    gc.collect()
    gc.disable()
    try:
        x = tensor(VALUES) * 1
        array = weakref.ref(x.data)
        y = checkpoint(lambda t: t.exp(), x)
        del x
        assert array() is not None
        del y
        assert array() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("preserve", [True, False])
def test_random_numbers_repeat(preserve: bool) -> None:
    manual_seed(3)
    masks: list[Any] = []

    def drop(x: Any) -> Any:
        masks.append(rand(2, 3, dtype="float64"))
        return (x * masks[-1]).exp()

    x = tensor(VALUES)
    y = checkpoint(drop, x, preserve_rng_state=preserve)
    after = rand(4)
    y.sum().backward()
    follows = rand(4)
    assert np.array_equal(masks[0].data, masks[1].data) == preserve
    if preserve:
        manual_seed(3)
        rand(2, 3, dtype="float64")
        assert np.array_equal(rand(4).data, after.data) and np.array_equal(rand(4).data, follows.data)


def test_random_numbers_of_a_gpu_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnDevice:
        """Draws whole numbers, counted up on the device: nobody reads its state."""

        def __init__(self) -> None:
            self.place = [0]

        def snapshot(self) -> list[int]:
            return self.place.copy()

        def restore(self, snapshot: list[int]) -> None:
            self.place[:] = snapshot

    generator, drawn = OnDevice(), []

    def draw(x: Any) -> Any:
        generator.place[0] += 1
        drawn.append(generator.place[0])
        return x * x

    default = random.default_generator
    monkeypatch.setattr(random, "default_generator", lambda device: generator if device.index == 0 else default(device))
    monkeypatch.setattr(Tensor, "device", Device("cuda", 0))
    x = Tensor(np.ones(2), requires_grad=True)
    y = checkpoint(draw, x)
    draw(x)
    y.sum().backward()
    assert drawn == [1, 2, 1] and generator.place == [2] and x.grad.tolist() == [2.0, 2.0]


def test_nested_and_consecutive_regions() -> None:
    inner = Counted(lambda t: t.sin().exp())

    def outer(t: Any) -> Any:
        return checkpoint(inner, t * 2).tanh() * checkpoint(inner, t)

    x = tensor(VALUES)
    y = checkpoint(outer, checkpoint(outer, x))
    assert inner.runs == 4
    y.sum().backward(create_graph=True)
    (second,) = grad(x.grad.sum(), x)
    plain = tensor(VALUES)

    def simple(t: Any) -> Any:
        return (t * 2).sin().exp().tanh() * t.sin().exp()

    (first,) = grad(simple(simple(plain)).sum(), plain, create_graph=True)
    same(x.grad, first.data)
    same(second, grad(first.sum(), plain)[0].data)


def test_a_region_that_differentiates_another() -> None:
    def penalty(t: Any) -> Any:
        (g,) = grad(checkpoint(lambda a: (a * a).sin().exp(), t).sum(), t, create_graph=True)
        return (g * g).tanh()

    x, plain = tensor(VALUES), tensor(VALUES)
    checkpoint(penalty, x).sum().backward()
    (g,) = grad((plain * plain).sin().exp().sum(), plain, create_graph=True)
    (g * g).tanh().sum().backward()
    same(x.grad, plain.grad.data)


def test_a_region_that_goes_back_through_an_earlier_one() -> None:
    x, plain = tensor(VALUES), tensor(VALUES)
    y = checkpoint(lambda t: (t * t).sin().exp(), x)

    def penalty(t: Any) -> Any:
        return grad(t.sum(), x, create_graph=True)[0].tanh()

    checkpoint(penalty, y).sum().backward()
    (g,) = grad((plain * plain).sin().exp().sum(), plain, create_graph=True)
    g.tanh().sum().backward()
    same(x.grad, plain.grad.data)


def test_the_graph_of_the_second_run_is_freed_at_once() -> None:
    nodes: list[Any] = []

    def region(t: Any) -> Any:
        h = (t * 2).sin()
        nodes.append(weakref.ref(h.grad_fn))
        return h * h

    gc.collect()
    gc.disable()
    try:
        y = checkpoint(region, tensor(VALUES))
        y.sum().backward(retain_graph=True)
        first, second = nodes
        assert first() is not None and second() is None
    finally:
        gc.enable()


def test_functions_and_views_inside_a_region() -> None:
    class Cube(Function):
        @staticmethod
        def forward(ctx: Any, t: Tensor) -> Tensor:
            ctx.save_for_backward(t)
            return Tensor(t.data**3)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * 3 * ctx.saved_tensors[0] ** 2

    def region(t: Any) -> Any:
        v = (t * 2).t()
        return Cube.apply(v)[1:] * v[:2], 7

    x = tensor(VALUES)
    y, number = checkpoint(region, x)
    assert number == 7
    expected = tensor(VALUES)
    region(expected)[0].sum().backward()
    y.sum().backward()
    same(x.grad, expected.grad.data)


def test_a_function_that_does_something_else_is_an_error() -> None:
    calls = []

    def moody(x: Any) -> Any:
        calls.append(1)
        return x.sin().exp() if len(calls) == 1 else x.sin().tanh().exp()

    message = "recorded 3 operations, the first time 2; number 1 was Exp, is Tanh"
    with pytest.raises(RuntimeError, match=message):
        checkpoint(moody, tensor(VALUES)).sum().backward()
    sizes = iter([2, 3])
    with pytest.raises(RuntimeError, match=r"saved .*3.*the first time .*2"):
        checkpoint(lambda t: t[: next(sizes)].exp(), tensor([1.0, 2.0, 3.0])).sum().backward()


def test_what_changed_since_is_an_error() -> None:
    x, w = tensor(VALUES) * 1, tensor(VALUES)
    y = checkpoint(lambda t: (t.exp() * w).sin(), x)
    x.add_(1)
    with pytest.raises(RuntimeError, match=r"checkpoint.*\(2, 3\).*changed in place"):
        y.sum().backward()
    y = checkpoint(lambda t: (t.exp() * w).sin(), tensor(VALUES))
    with no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_wrong_arguments_and_errors_inside() -> None:
    with pytest.raises(ValueError, match="use_reentrant"):
        checkpoint(block, tensor(VALUES), use_reentrant=True)
    with pytest.raises(TypeError, match="expected a function, got Tensor"):
        checkpoint(tensor(VALUES), tensor(VALUES))  # type: ignore[arg-type]
    x = tensor([1.0])
    with pytest.raises(ZeroDivisionError):
        checkpoint(lambda t: t / (1 // 0), x)
    y = x.exp()
    y.backward()  # the failed region watches no longer
    same(x.grad, np.exp([1.0]))


# ---- anomaly detection

ZEROS = [0.0, 1.0]


def line_of(text: str) -> str:
    """`line N` of this file, where N is the line of the caller's source that holds `text`."""
    lines, start = inspect.getsourcelines(sys._getframe(1).f_code)
    (offset,) = [i for i, line in enumerate(lines) if text in line and "line_of" not in line]
    return f"line {start + offset},"


@pytest.fixture(autouse=True)
def quiet_numpy() -> Any:
    with np.errstate(all="ignore"):
        yield


def test_forward_names_the_operation_and_the_line() -> None:
    x = tensor(ZEROS)
    with pytest.raises(RuntimeError) as raised, detect_anomaly():
        y = (x - 1) * 2
        z = y.log() + 1
        z.sum()
    text = str(raised.value)
    assert text.startswith("Log made NaN from inputs without NaN")
    assert __file__ in text and line_of("y.log()") in text and "z = y.log() + 1" in text


def test_backward_names_the_operation_and_the_line_of_forward() -> None:
    x = tensor(ZEROS)
    with pytest.raises(RuntimeError) as raised, detect_anomaly():
        y = x.sqrt() * 0
        y.sum().backward()
    text = str(raised.value)
    assert text.startswith("backward of Sqrt made NaN in the gradient of input 0")
    assert line_of("y = x.sqrt()") in text and "y = x.sqrt() * 0" in text


def test_without_forward_inside_only_the_name_is_known() -> None:
    y = (tensor(ZEROS).sqrt() * 0).sum()
    with pytest.raises(RuntimeError, match=r"backward of Sqrt.*around forward"), detect_anomaly():
        y.backward()


def test_nan_that_was_there_before_is_not_blamed_on_who_passes_it_on() -> None:
    x, y = tensor([float("nan"), 1.0]), tensor([2.0, 1.0])
    with detect_anomaly():
        z = (x * 2).exp() + y
        (z * 1).backward(tensor([float("nan"), 1.0], False))
        tensor([1.0]) * float("nan")
        with pytest.raises(RuntimeError, match=r"backward of Exp made NaN.*had saved a NaN"):
            (x * 2).exp().sum().backward()
    assert y.grad is not None and np.isnan(y.grad.data[0])


def test_nan_masked_inside_a_backward_is_fine() -> None:
    x = tensor([0.0, 2.0])
    made: list[bool] = []

    class Note(Watcher):
        def passed_forward(self, operation: Any, inputs: Any, output: Any) -> None:
            made.append(bool(np.isnan(output.data).any()))

    with Note(), detect_anomaly():
        (x ** tensor([0.0, 2.0], False)).sum().backward()  # 0 * 0 ** -1 on the way
    same(x.grad, [0, 4])
    assert any(made)


def test_second_derivatives_are_watched_too() -> None:
    x = tensor([0.0])
    with pytest.raises(RuntimeError, match="made NaN"), detect_anomaly():
        (g,) = grad((x**1.5).sum(), x, create_graph=True)
        grad((g * 0).sum(), x)


def test_check_nan_off_and_set_detect_anomaly() -> None:
    x = tensor([-1.0])
    with detect_anomaly(check_nan=False):
        assert np.isnan(x.log().item())
    with set_detect_anomaly(True):
        with pytest.raises(RuntimeError, match="Log made NaN"):
            x.log()
        with set_detect_anomaly(False):
            x.log()
    x.log()
    set_detect_anomaly(True)
    try:
        with pytest.raises(RuntimeError, match="Log made NaN"):
            x.log()
        seen: list[Any] = []

        def elsewhere() -> None:
            with np.errstate(all="ignore"):
                seen.append(x.log().item())

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert np.isnan(seen[0])  # like the grad mode, it belongs to the thread
    finally:
        set_detect_anomaly(False)
    x.log()


def test_anomalies_inside_a_checkpointed_region() -> None:
    x = tensor(ZEROS)
    with pytest.raises(RuntimeError, match="backward of Sqrt"), detect_anomaly():
        checkpoint(lambda t: t.sqrt() * 0, x).sum().backward()
