"""The graph: long chains, what it keeps alive, hooks, grad modes and threads."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from float64 import same, tensor

from adjoint import Tensor, cat, enable_grad, is_grad_enabled, no_grad, set_grad_enabled
from adjoint.engine.gradients import grad

# ---- long chains, memory


def test_a_chain_of_100_000_operations() -> None:
    x = tensor([1.0])
    y = x
    for _ in range(50_000):
        y = (y + 1.0) - 1.0
    (g,) = grad(y.sum(), x, retain_graph=True)
    same(g, [1.0])
    y.sum().backward()
    same(x.grad, [1.0])
    node = weakref.ref(y.grad_fn)
    del y
    assert node() is None


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("passed", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x * 2).exp().sin(),
        lambda x: ((x * 2).exp() * x).sum(0).reshape(3, 1),
        lambda x: [y := x * 2, y[0].mul_(x[1]), y.t().exp_()][-1] * 2,
        lambda x: cat([x, x * 2]).tanh(),
        lambda x: (y := x * x).mul_(y.detach() + 1),
    ],
)
def test_no_cycle_keeps_a_graph_alive(function: Callable[[Any], Any], passed: bool) -> None:
    x = tensor(np.arange(9.0).reshape(3, 3))
    y = function(x)
    nodes, found, todo = [], set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if id(node) not in found and node.edges:
            found.add(id(node))
            nodes.append(weakref.ref(node))
            todo += [edge.node for edge in node.edges if edge]
    del node
    assert len(nodes) >= 2
    y.retain_grad()
    if passed:
        y.sum().backward()
    del y, todo
    assert [ref() for ref in nodes if ref() is not None] == []


@pytest.mark.usefixtures("without_collector")
def test_saved_arrays_die_while_backward_passes() -> None:
    x = tensor(np.ones(4))
    inner = (x * 2).exp()
    kept = weakref.ref(inner._data)
    outer = inner.sin()
    alive_inside: list[bool] = []
    x.register_hook(lambda g: alive_inside.append(kept() is not None))
    del inner
    assert kept() is not None  # the graph needs it
    outer.sum().backward()
    assert alive_inside == [False] and kept() is None
    assert outer.requires_grad


@pytest.mark.usefixtures("without_collector")
def test_a_graph_keeps_neither_unneeded_arrays_nor_dead_leaves() -> None:
    x = tensor(np.ones(4))
    middle = x + 1
    array = weakref.ref(middle._data)
    y = middle + 1
    del middle
    assert array() is None
    leaf = weakref.ref(x)
    del x
    assert leaf() is None
    y.sum().backward()


def test_grad_does_not_share_memory_with_what_the_user_gave() -> None:
    x, y = tensor([1.0, 2.0]), tensor([1.0, 2.0])
    weights = np.array([3.0, 4.0])
    x.backward(Tensor(weights))
    (y + 0).backward(Tensor(weights))
    (y + 0).backward(Tensor(weights))
    assert weights.tolist() == [3, 4]
    for t in (x, y):
        assert t.grad is not None and not np.shares_memory(t.grad.data, weights)
    kept = tensor([1.0, 1.0], False)
    z = tensor([1.0, 2.0])
    z.grad = kept
    z.sum().backward()
    same(kept, [2.0, 2.0])  # as in PyTorch: an assigned gradient is the accumulator


def test_what_a_hook_puts_in_the_place_of_a_leafs_gradient_must_fit() -> None:
    x = tensor(np.ones((3, 4)))
    y = x * 2
    assert y.grad_fn is not None
    leaf = y.grad_fn.next_functions[0][0]
    assert leaf is not None
    leaf.register_prehook(lambda grads: (grads[0][:1],))
    with pytest.raises(RuntimeError, match=r"\(3, 4\) of float64 on cpu, but the gradient \(1, 4\)"):
        y.sum().backward()
    assert x.grad is None


def test_grad_can_only_be_set_to_what_fits() -> None:
    x = tensor([1.0, 2.0])
    with pytest.raises(RuntimeError, match=r"\(3,\)"):
        x.grad = tensor([1.0, 2.0, 3.0], False)
    with pytest.raises(RuntimeError, match="float32"):
        x.grad = Tensor(np.ones(2, np.float32))
    with pytest.raises(TypeError, match="ndarray"):
        x.grad = np.ones(2)  # type: ignore[assignment]
    assert x.grad is None


# ---- hooks


def test_tensor_hooks_see_and_replace_the_whole_gradient() -> None:
    x = tensor([1.0, 2.0])
    y = x * 2
    seen = []
    y.register_hook(lambda g: seen.append(g.tolist()))
    handle = y.register_hook(lambda g: g * 10)
    y.register_hook(lambda g: seen.append(g.tolist()))
    ((y * 3) + y).sum().backward(retain_graph=True)
    assert seen == [[4, 4], [40, 40]]
    same(x.grad, [80, 80])
    handle.remove()
    handle.remove()
    x.grad = None
    y.sum().backward()
    same(x.grad, [2, 2])


def test_leaf_hooks_run_once_and_before_accumulation() -> None:
    x = tensor([1.0])
    seen = []
    with x.register_hook(lambda g: seen.append(g.item())):
        (x * 2 + x * 3).sum().backward()
    (x * 2).sum().backward()
    assert seen == [5.0]
    same(x.grad, [7.0])


def test_a_hook_must_return_what_fits() -> None:
    x = tensor([1.0, 2.0])
    with x.register_hook(lambda g: g.sum()), pytest.raises(RuntimeError, match=r"hook.*\(\).*\(2,\)"):
        x.sum().backward()
    with x.register_hook(lambda g: g.numpy()), pytest.raises(TypeError, match="ndarray"):
        x.sum().backward()
    with pytest.raises(RuntimeError, match="does not require"):
        tensor([1.0], False).register_hook(lambda g: g)


def test_node_hooks() -> None:
    x = tensor([1.0, 2.0])
    y = x * 2
    seen = []
    y.grad_fn.register_prehook(lambda grads: (grads[0] * 3,))
    y.grad_fn.register_hook(lambda inputs, outputs: seen.append((inputs[0].tolist(), outputs[0].tolist())))
    y.grad_fn.register_hook(lambda inputs, outputs: (inputs[0] + 1, *inputs[1:]))
    y.sum().backward()
    assert seen == [([6, 6], [3, 3])]
    same(x.grad, [7, 7])


def test_retain_grad_comes_after_hooks_and_follows_a_change_in_place() -> None:
    x = tensor([1.0, 2.0])
    y = x * 2
    assert not y.retains_grad
    y.retain_grad()
    y.retain_grad()
    y.register_hook(lambda g: g * 10)
    assert y.retains_grad
    (y * 3).sum().backward()
    same(y.grad, [30, 30])
    z = x * 2
    z.retain_grad()
    z.mul_(3)
    (z * 5).sum().backward()
    same(z.grad, [5, 5])
    with pytest.raises(RuntimeError, match="does not require"):
        tensor([1.0], False).retain_grad()


def test_retained_gradients_are_their_own() -> None:
    x = tensor([1.0])
    a, b = x * 2, x * 3
    a.retain_grad()
    b.retain_grad()
    (a + b).sum().backward()
    assert a.grad is not None and b.grad is not None
    a.grad.data[...] = 7
    same(b.grad, [1])


def test_post_accumulate_hooks() -> None:
    x = tensor([1.0])
    seen = []
    handle = x.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.item()))
    (x * 2).sum().backward()
    (x * 2).sum().backward()
    grad((x * 2).sum(), x)
    handle.remove()
    (x * 2).sum().backward()
    assert seen == [2.0, 4.0]
    with pytest.raises(RuntimeError, match="leaf"):
        (x * 2).register_post_accumulate_grad_hook(print)


# ---- grad mode


def test_grad_modes_nest_and_are_restored_after_errors() -> None:
    x = tensor([1.0])
    with no_grad():
        assert not (x * 2).requires_grad and not is_grad_enabled()
        with enable_grad():
            assert (x * 2).requires_grad
        with set_grad_enabled(True):
            assert is_grad_enabled()
        assert not is_grad_enabled()
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert is_grad_enabled()

    @no_grad()
    def quiet(depth: int) -> bool:
        return (x * 2).requires_grad or (depth > 0 and quiet(depth - 1))

    assert not quiet(3) and is_grad_enabled()


def test_set_grad_enabled_as_a_function() -> None:
    set_grad_enabled(False)
    assert not is_grad_enabled()
    set_grad_enabled(True)
    assert is_grad_enabled()


def test_the_grad_mode_belongs_to_the_thread() -> None:
    x = tensor([1.0, 2.0])
    inside, leave = threading.Event(), threading.Event()
    recorded = []

    def quiet() -> None:
        with no_grad():
            inside.set()
            leave.wait(5)
            recorded.append((x * 2).requires_grad)

    thread = threading.Thread(target=quiet)
    thread.start()
    inside.wait(5)
    recorded.append((x * 2).requires_grad)
    leave.set()
    thread.join()
    assert recorded == [True, False]


def test_graphs_in_several_threads() -> None:
    results: list[Any] = [None] * 4

    def work(i: int) -> None:
        x = tensor([float(i)])
        y = x
        for _ in range(200):
            y = y * 1.01
        y.sum().backward()
        results[i] = x.grad

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_allclose(result.data, 1.01**200)
