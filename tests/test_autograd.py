"""Gradients: of each input, of every order, as leaves and as results; against numbers and PyTorch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from float64 import same, tensor

from adjoint import Tensor, cat, no_grad, stack
from adjoint.engine.gradients import backward, grad

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

needs_torch = pytest.mark.skipif(torch is None, reason="compares with PyTorch, which is not installed")


# ---- gradients by position, broadcasting, repeated use


@pytest.mark.parametrize(
    ("function", "derivative"),
    [
        (lambda x: x - x, lambda x: 0 * x),
        (lambda x: x + x, lambda x: 2 + 0 * x),
        (lambda x: x * x, lambda x: 2 * x),
        (lambda x: x / x, lambda x: 0 * x),
        (lambda x: x**x, lambda x: x**x * (np.log(x) + 1)),
        (lambda x: x * x * x - x / (x * x), lambda x: 3 * x**2 + 1 / x**2),
        (lambda x: cat([x, x, x * 2]), lambda x: 4 + 0 * x),
    ],
)
def test_an_input_used_several_times(function: Any, derivative: Any) -> None:
    values = np.array([0.5, 2.0, 3.0])
    x = tensor(values)
    function(x).sum().backward()
    same(x.grad, derivative(values))


def test_broadcast_inputs_get_gradients_of_their_own_shape() -> None:
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((1, 3)), rng.standard_normal((2, 4, 3)), rng.standard_normal((4, 1))
    x, y, z = tensor(a), tensor(b), tensor(c)
    (x * y * z).sum().backward()
    same(x.grad, (b * c).sum((0, 1)).reshape(1, 3))
    same(y.grad, a * c + 0 * b)
    same(z.grad, (a * b).sum((0, 2)).reshape(4, 1))


def test_a_scalar_input_and_empty_inputs_broadcast() -> None:
    x, y = tensor(2.0), tensor(np.zeros((0, 3)))
    (x * y).sum().backward()
    assert x.grad is not None and x.grad.shape == () and x.grad.item() == 0
    assert y.grad is not None and y.grad.shape == (0, 3)


def test_permutation_is_undone_by_its_inverse() -> None:
    weight = np.arange(24.0).reshape(3, 4, 2)
    x = tensor(np.zeros((2, 3, 4)))
    (x.permute(1, 2, 0) * Tensor(weight)).sum().backward()
    same(x.grad, weight.transpose(2, 0, 1))


def test_gradients_have_the_dtype_of_their_input() -> None:
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    y = tensor([1.0, 2.0, 3.0])
    h = Tensor(np.ones(3, np.float16), requires_grad=True)
    (x * y * h).sum().backward()
    assert [t.grad.dtype for t in (x, y, h)] == [np.float32, np.float64, np.float16]
    same(h.grad, [1, 2, 3])


def test_an_integer_partner_gets_no_gradient() -> None:
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    n = Tensor(np.array([1, 2, 3]))
    y = x * n
    assert y.dtype == np.float32
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 2, 3] and n.grad is None


def test_integers_cannot_require_a_gradient() -> None:
    n = Tensor(np.array([1, 2]))
    with pytest.raises(RuntimeError, match="only floating"):
        n.requires_grad_()
    with pytest.raises(RuntimeError, match="only floating"):
        Tensor(np.array([True]), requires_grad=True)
    assert not (tensor([1.0]) > 0).requires_grad


# ---- higher derivatives


def test_derivatives_up_to_the_third() -> None:
    x = tensor(0.7)
    y = x.sin() * x**3
    derivatives = []
    for _ in range(3):
        (y,) = grad(y, x, create_graph=True)
        derivatives.append(y.item())
    s, c, v = np.sin(0.7), np.cos(0.7), 0.7
    assert derivatives == pytest.approx(
        [
            c * v**3 + 3 * s * v**2,
            -s * v**3 + 6 * c * v**2 + 6 * s * v,
            -c * v**3 - 9 * s * v**2 + 18 * c * v + 6 * s,
        ]
    )


def test_a_gradient_penalty_reaches_the_weights() -> None:
    x, w = tensor([1.0, 2.0]), tensor([3.0, -1.0])
    (g,) = grad((x * w).sin().sum(), x, create_graph=True)
    (g * g).sum().backward()
    a, b = np.array([1.0, 2.0]), np.array([3.0, -1.0])
    same(w.grad, 2 * np.cos(a * b) * b * (np.cos(a * b) - b * np.sin(a * b) * a))


def test_backward_with_create_graph_leaves_gradients_that_can_be_differentiated() -> None:
    x = tensor([1.0, 2.0])
    (x**3).sum().backward(create_graph=True)
    assert x.grad is not None and x.grad.requires_grad
    (second,) = grad(x.grad.sum(), x)
    same(second, [6.0, 12.0])


def test_with_create_graph_two_leaves_do_not_share_a_gradient() -> None:
    x, y = tensor([1.0]), tensor([2.0])
    (x + y).sum().backward(create_graph=True)
    assert x.grad is not None and y.grad is not None
    with no_grad():
        x.grad.zero_()
    same(y.grad, [1.0])


# ---- grad and backward: arguments


def test_grad_outputs_weight_the_outputs() -> None:
    x = tensor([1.0, 2.0])
    (g,) = grad([x * 2, x * x], x, [tensor([1.0, 3.0], False), tensor([1.0, 1.0], False)])
    same(g, [2 + 2, 6 + 4])
    assert x.grad is None


def test_grad_outputs_must_fit() -> None:
    x = tensor([1.0, 2.0])
    with pytest.raises(RuntimeError, match=r"shape \(2,\).*\(3,\)"):
        grad(x * 2, x, tensor([1.0, 1.0, 1.0], False))
    with pytest.raises(RuntimeError, match="one element"):
        grad(x * 2, x)
    with pytest.raises(RuntimeError, match="2 gradients for 1"):
        grad(x.sum(), x, [None, None])
    with pytest.raises(TypeError, match="floating"):
        grad(x * 2, x, Tensor(np.array([1, 1])))


def test_grad_of_a_differentiable_weight() -> None:
    x, v = tensor([1.0, 2.0]), tensor([1.0, 1.0])
    (g,) = grad(x**2, x, v, create_graph=True)
    (by_v,) = grad(g.sum(), v)  # the trick that makes forward derivatives of two backward ones
    same(by_v, [2.0, 4.0])


def test_unused_inputs() -> None:
    x, unused = tensor([1.0]), tensor([1.0, 2.0])
    with pytest.raises(RuntimeError, match=r"input 1 \(shape \(2,\)\)"):
        grad(x.sum(), [x, unused])
    assert grad(x.sum(), [x, unused], allow_unused=True)[1] is None
    same(grad(x.sum(), [x, unused], materialize_grads=True)[1], [0, 0])
    with pytest.raises(RuntimeError, match="does not require"):
        grad(x.sum(), [x, tensor([1.0], False)])


def test_grad_of_a_tensor_on_the_way_does_not_pass_beyond() -> None:
    x = tensor([1.0, 2.0])
    y = x * 3
    passed: list[str] = []
    y.grad_fn.register_hook(lambda *_: passed.append("y"))
    z = y * y
    z.grad_fn.register_hook(lambda *_: passed.append("z"))
    (g,) = grad(z.sum(), y)
    same(g, [6, 12])
    assert passed == ["z"] and x.grad is None


def test_grad_computes_only_what_leads_to_the_inputs() -> None:
    x, y = tensor([1.0]), tensor([2.0])
    side = y.exp()
    entered: list[int] = []
    side.register_hook(lambda g: entered.append(1))
    out = x * side
    same(grad(out.sum(), x, retain_graph=True)[0], np.exp([2.0]))
    assert not entered
    grad(out.sum(), y)
    assert entered


def test_grad_of_an_output_itself() -> None:
    x = tensor([1.0, 2.0])
    y = x * 2
    same(grad(y, y, tensor([3.0, 4.0], False))[0], [3, 4])


def test_backward_into_chosen_inputs() -> None:
    x, w = tensor([1.0, 2.0]), tensor([3.0, 4.0])
    y = x * w
    called = []
    w.register_post_accumulate_grad_hook(lambda t: called.append(t is w))
    (y * y).sum().backward(inputs=[w, w, y])
    assert x.grad is None and called == [True]
    same(w.grad, 2 * np.array([3.0, 8.0]) * [1, 2])
    same(y.grad, [6, 16])
    with pytest.raises(RuntimeError, match="empty"):
        (x * 2).sum().backward(inputs=[])


def test_backward_from_several_tensors_and_from_a_leaf() -> None:
    x = tensor([1.0, 2.0])
    y = x * 2
    backward([y, y.sum(), x], [tensor([1.0, 1.0], False), None, tensor([0.5, 0.0], False)])
    same(x.grad, [4.5, 4.0])
    with pytest.raises(RuntimeError, match="does not require"):
        tensor([1.0], False).backward()


def test_going_through_a_graph_twice() -> None:
    x = tensor([1.0, 2.0])
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    same(x.grad, [4.0, 8.0])
    with pytest.raises(RuntimeError, match=r"backward of Mul.*retain_graph=True"):
        y.backward()
    z = (x + 1).sum()  # saves nothing, so there is nothing to free
    z.backward()
    z.backward()
    same(x.grad, [6.0, 10.0])


# ---- leaves


def test_leaves_and_nodes() -> None:
    x = tensor([1.0])
    y = x * 2
    assert x.is_leaf and x.grad_fn is None and not y.is_leaf and repr(y.grad_fn) == "<Mul>"
    assert y.grad_fn.next_functions[0][1] == 0 and y.grad_fn.next_functions[1] == (None, 0)
    assert not y.detach().requires_grad and y.detach().data is y.data
    with pytest.raises(RuntimeError, match="leaves"):
        y.requires_grad = False
    y.detach_()
    assert y.is_leaf and not y.requires_grad


def test_what_shares_memory_shares_the_count_of_changes() -> None:
    x = tensor([1.0, 2.0])
    for other in (copy.copy(x), Tensor(x), Tensor(x, requires_grad=True)):
        assert np.shares_memory(other.data, x.data) and type(other) is Tensor
        y = (x * x).sum()
        with no_grad():
            other.mul_(2)
        with pytest.raises(RuntimeError, match="changed in place"):
            y.backward()
    assert copy.copy(x).requires_grad
    with pytest.raises(RuntimeError, match="can be copied"):
        copy.copy(x * 2)


def test_copies_and_pickles_of_leaves() -> None:
    x = tensor([1.0, 2.0])
    (x * x).sum().backward()
    twin = copy.deepcopy(x)
    assert twin.requires_grad and twin.is_leaf and twin.grad is not x.grad
    same(twin.grad, [2, 4])
    (twin * 3).sum().backward()
    same(x.grad, [2, 4])
    same(twin.grad, [5, 7])
    twin.data[0] = 9
    assert x.tolist() == [1, 2]
    loaded = pickle.loads(pickle.dumps(x))
    assert loaded.requires_grad and loaded.tolist() == [1, 2] and loaded.dtype == np.float64
    pair = copy.deepcopy([x, x])
    assert pair[0] is pair[1]
    for attempt in (copy.deepcopy, pickle.dumps):
        with pytest.raises(RuntimeError, match="detach"):
            attempt(x * 2)


def test_gradients_of_an_operation_with_several_outputs() -> None:
    x = tensor(np.arange(6.0).reshape(3, 2))
    a, _, c = x.unbind(0)
    (a * 2 + c * c).sum().backward()
    same(x.grad, [[2, 2], [0, 0], [8, 10]])
    y = tensor(np.arange(6.0))
    first, _ = y.split([2, 4])
    first.sum().backward()
    same(y.grad, [1, 1, 0, 0, 0, 0])


# ---- random expressions, compared with PyTorch

UNARY = ["sin", "cos", "exp", "tanh", "sigmoid", "neg", "square", "abs"]


def random_expression(seed: int, stacked: Callable[[list[Any]], Any], leaves: list[Any]) -> Any:
    """A sum over random unary, binary, broadcasting, reducing and viewing operations of `leaves`."""
    rng = np.random.default_rng(seed)
    alive = list(leaves)
    for _ in range(8):
        a, b = (alive[rng.integers(len(alive))] for _ in range(2))
        kind = rng.integers(6)
        if kind == 0:
            alive.append(getattr(a, UNARY[rng.integers(len(UNARY))])())
        elif kind == 1:
            alive.append([a * b, a + b, a - b, a / (b * b + 1)][rng.integers(4)])
        elif kind == 2:
            alive.append(a.mean(int(rng.integers(a.ndim)), keepdim=True))
        elif kind == 3:
            alive.append(a.transpose(0, 1)[..., ::1].transpose(0, 1))
        elif kind == 4:
            alive.append(stacked([a + 0 * b, b + 0 * a]).sum(0))
        else:
            alive.append(a.tanh().amax(1, keepdim=True))
    total = alive[-1].sum()
    for value in alive[:-1]:
        total = total + (value.tanh()).sum()
    return total


@needs_torch
@pytest.mark.parametrize("seed", range(25))
def test_first_and_second_derivatives_agree_with_pytorch(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    arrays = [rng.standard_normal(shape) for shape in ((2, 3), (1, 3), (2, 1))]
    ours, theirs = [tensor(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    y, expected = random_expression(seed, stack, ours), random_expression(seed, torch.stack, theirs)
    np.testing.assert_allclose(y.item(), expected.item(), rtol=1e-10)
    first = grad(y, ours, create_graph=True)
    expected_first = torch.autograd.grad(expected, theirs, create_graph=True)
    second = grad(sum((g * g).sum() for g in first), ours)
    expected_second = torch.autograd.grad(sum((g * g).sum() for g in expected_first), theirs)
    for actual, wanted in zip((*first, *second), (*expected_first, *expected_second), strict=True):
        np.testing.assert_allclose(actual.data, wanted.detach().numpy(), rtol=1e-9, atol=1e-11)
