"""Changes in place: of tensors, of views of them, of their bases, after saving, and when they are refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from adjoint import Tensor, no_grad
from adjoint.engine.gradcheck import GradcheckError, gradcheck
from adjoint.engine.gradients import grad

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

needs_torch = pytest.mark.skipif(torch is None, reason="compares with PyTorch, which is not installed")


def tensor(values: Any, requires_grad: bool = True) -> Tensor:
    return Tensor(np.array(values, dtype=np.float64), requires_grad=requires_grad)


# ---- random programs, run by both libraries

VIEWS = [
    lambda v, a: v[a % v.shape[0]] if v.ndim else v,
    lambda v, a: v[a % v.shape[0] :] if v.ndim else v,
    lambda v, a: v[:: 1 + a % 2] if v.ndim else v,
    lambda v, a: v[..., a % v.shape[-1]] if v.ndim else v,
    lambda v, a: v.transpose(0, v.ndim - 1) if v.ndim else v,
    lambda v, a: v.unsqueeze(a % (v.ndim + 1)),
    lambda v, a: v.reshape(-1),
    lambda v, a: v.permute(tuple(range(v.ndim))[::-1]),
    lambda v, a: v.squeeze(),
    lambda v, a: v.view(v.shape),
    lambda v, a: v.narrow(0, 0, 1 + a % v.shape[0]) if v.ndim else v,
]

CHANGES = [
    lambda v, other: v.mul_(other),
    lambda v, other: v.add_(other),
    lambda v, other: v.sub_(2.0),
    lambda v, other: v.div_(3.0),
    lambda v, other: v.sin_(),
    lambda v, other: v.tanh_(),
    lambda v, other: v.copy_(other),
    lambda v, other: v.fill_(0.5),
    lambda v, other: v.zero_(),
    lambda v, other: v.__setitem__(slice(0, 1), other) if v.ndim else v.neg_(),
    lambda v, other: v.__setitem__((Ellipsis, 0), 0.25) if v.ndim else v.neg_(),
    lambda v, other: v.clamp_(-0.5, 0.5),
]

USES = [
    lambda a, b: a * a,
    lambda a, b: a.sin(),
    lambda a, b: a + b,
    lambda a, b: a.exp(),
]


def run_program(seed: int, x: Any, w: Any) -> Any:
    """A random mix of views, changes in place and uses; `x` and `w` belong to either library."""
    choose = random.Random(seed)
    scalar = w.sum() * 0.1
    bases = [x * 2.0, x.sin() + w]
    alive = list(bases)
    kept = []
    for _ in range(choose.randint(4, 9)):
        kind, base = choose.random(), choose.random()
        number, pick = choose.randrange(100), choose.randrange(100)
        target = bases[pick % 2] if base < 0.2 else alive[pick % len(alive)]
        if kind < 0.4:
            alive.append(VIEWS[number % len(VIEWS)](target, pick))
        elif kind < 0.8:
            CHANGES[number % len(CHANGES)](target, scalar)
        else:
            kept.append(USES[number % len(USES)](target, scalar))
    total = scalar * 0.0
    for i, value in enumerate([*alive, *kept]):
        total = total + (value * (0.3 + 0.1 * i)).sum()
    return total


def starting_values(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (2, 3)), rng.uniform(-1, 1, (2, 3))


@needs_torch
@pytest.mark.parametrize("first", range(0, 400, 40))
def test_random_programs_agree_with_pytorch(first: int) -> None:
    compared = 0
    for seed in range(first, first + 40):
        arrays = starting_values(seed)
        theirs = [torch.tensor(array, requires_grad=True) for array in arrays]
        ours = [tensor(array) for array in arrays]
        try:
            expected = run_program(seed, *theirs)
            gradients = torch.autograd.grad(expected, theirs, allow_unused=True)
        except RuntimeError:
            continue  # the next test holds us to the truth there
        result = run_program(seed, *ours)
        np.testing.assert_allclose(result.item(), expected.item(), rtol=1e-12, err_msg=f"seed {seed}")
        for known, found in zip(gradients, grad(result, ours, allow_unused=True), strict=True):
            expected_grad = np.zeros((2, 3)) if known is None else known.numpy()
            actual = np.zeros((2, 3)) if found is None else found.data
            np.testing.assert_allclose(actual, expected_grad, rtol=1e-10, atol=1e-12, err_msg=f"seed {seed}")
        compared += 1
    assert compared > 10


@pytest.mark.parametrize("first", range(1000, 1200, 40))
def test_random_programs_raise_or_have_the_right_gradient(first: int) -> None:
    right = 0
    for seed in range(first, first + 40):
        ours = [tensor(array) for array in starting_values(seed)]
        try:
            run_program(seed, *ours).backward()
        except RuntimeError as error:
            assert "changed in place" in str(error), (seed, error)
            continue
        try:
            assert gradcheck(lambda x, w, seed=seed: run_program(seed, x, w), ours)
        except GradcheckError as error:
            pytest.fail(f"seed {seed}: {error}")
        right += 1
    assert right > 10


# ---- known cases, without PyTorch


def same(actual: Any, expected: Any) -> None:
    assert actual is not None
    np.testing.assert_allclose(actual.detach().numpy(), np.asarray(expected), rtol=1e-12)


def test_a_change_of_a_view_reaches_the_gradient_of_its_base() -> None:
    x, w = tensor([1.0, 2.0, 3.0]), tensor([5.0])
    y = x * 2
    y[1:].mul_(w)
    (y * tensor([1.0, 10.0, 100.0], False)).sum().backward()
    same(x.grad, [2, 100, 1000])
    same(w.grad, [2 * 2 * 10 + 2 * 3 * 100])


def test_a_change_of_the_base_reaches_its_views() -> None:
    x = tensor([1.0, 2.0])
    y = x * 2
    last = y[1:]
    assert last.grad_fn.name != "Mul"
    y.mul_(3)
    same(last, [12])
    last.sum().backward()
    same(x.grad, [0, 6])


def test_a_view_made_before_a_change_can_be_written_elsewhere_after_it() -> None:
    x = tensor([1.0, 2.0])
    y, z, rows = x * 1, x * 0, Tensor(np.zeros((2, 1)))
    last = y[1:]
    y.mul_(3)
    rows[1] = last
    z[:1].copy_(last)
    rows[0].add_(last)
    (rows.sum() + z.sum()).backward()
    same(x.grad, [0, 9])


def test_two_views_of_one_base_see_each_other() -> None:
    x = tensor([1.0, 2.0, 3.0])
    y = x * 1
    a, b = y[:2], y[1:]
    a.mul_(2)
    b.mul_(5)
    (a * tensor([1.0, 10.0], False)).sum().backward()
    same(x.grad, [2, 100, 0])


def test_views_of_views() -> None:
    x = tensor(np.arange(24.0).reshape(2, 3, 4))
    y = x * 1
    inner = y.permute(2, 0, 1)[1:3].transpose(1, 2).unsqueeze(0)[0, :, 1]
    inner.mul_(10)
    expected = np.ones((2, 3, 4))
    expected[:, 1, 1:3] = 10
    y.sum().backward()
    same(x.grad, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        lambda: np.arange(24.0).reshape(3, 8)[:, ::2],
        lambda: np.arange(12.0).reshape(3, 4)[::-1],
        lambda: np.arange(12.0).reshape(3, 4)[::-1, ::-1],
        lambda: np.arange(24.0).reshape(4, 3, 2).transpose(1, 0, 2)[:, :, 0],
    ],
)
def test_bases_of_any_layout(make: Any) -> None:
    """The overwritten region is found whatever the order of the base's memory."""

    def program(factor: Any) -> Any:
        base = Tensor(make())
        base.mul_(factor)
        base.t()[1].mul_(factor)
        for flat in (base.reshape(-1), base.t().reshape(-1)):  # one of them may be a copy
            flat[1:5].mul_(factor)
        return (base * Tensor(np.arange(1.0, 13).reshape(3, 4))).sum()

    assert gradcheck(program, tensor(2.0))


def test_an_infinite_gradient_stays_out_of_the_overwritten_region() -> None:
    x = tensor([1.0, 2.0])
    y = x * 1
    y[0] = 0.0
    y.backward(tensor([np.inf, 1.0], False))
    same(x.grad, [0, 1])


def test_assignment_into_a_new_tensor() -> None:
    x = tensor([1.0, 2.0])
    rows = Tensor(np.zeros((3, 2)))
    for i in range(3):
        rows[i] = x * (i + 1)
    rows[0, 0] = 7.0
    rows.sum().backward()
    same(x.grad, [5, 6])


def test_overwriting_cuts_the_old_value() -> None:
    x, w = tensor([1.0, 2.0]), tensor([3.0, 4.0])
    y = x * 2
    y.copy_(w * 5)
    y.sum().backward()
    same(w.grad, [5, 5])
    assert x.grad is None or not x.grad.data.any()
    z = x * 2
    z.zero_()
    assert z.requires_grad  # as in PyTorch: the gradient is known to be zero
    z.sum().backward()
    same(x.grad, [0, 0])


def test_an_operand_that_is_the_target_itself() -> None:
    x = tensor([1.0, 2.0])
    y = x * 3
    y.mul_(y)
    y.sum().backward()
    same(x.grad, 18 * np.array([1.0, 2.0]))


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.mul_(2),
        lambda y: y.t().mul_(2),
        lambda y: y[0].zero_(),
        lambda y: y.detach().mul_(2),
        lambda y: y.view(-1).detach()[1:].fill_(0),
        lambda y: y.__setitem__((0, 0), 1.0),
    ],
)
def test_a_saved_tensor_that_changed_raises(change: Any) -> None:
    x = tensor([[1.0, 2.0], [3.0, 4.0]])
    y = x * 1
    used = y * y
    version = y._version
    change(y)
    assert y._version > version
    with pytest.raises(RuntimeError, match=r"backward of Mul.*\(2, 2\).*changed in place"):
        used.sum().backward()


def test_a_change_before_saving_or_of_what_is_not_saved_is_fine() -> None:
    x = tensor([1.0, 2.0])
    y = x + 1
    total = y + 1
    y.mul_(2)
    (total + y * y).sum().backward()
    same(x.grad, 1 + 8 * np.array([2.0, 3.0]))


def test_a_leaf_changed_without_recording_after_it_was_saved_raises() -> None:
    x = tensor([1.0, 2.0])
    y = x * x
    with no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_versions_are_shared_by_views_and_detached_tensors_only() -> None:
    x = tensor(np.ones((2, 3)))
    y = x * 1
    relatives = [y.t(), y[0], y.view(-1), y.detach(), y.expand(2, 3), y.unbind(0)[1]]
    strangers = [y.clone(), y.reshape(3, 2).t().reshape(-1), y[[0, 1]]]
    before = [t._version for t in (*relatives, *strangers)]
    relatives[0].add_(1)
    after = [t._version for t in (*relatives, *strangers)]
    changed = [b - a for a, b in zip(before, after, strict=True)]
    assert changed == [1] * len(relatives) + [0] * len(strangers)


def test_leaves_and_their_views_refuse() -> None:
    x = tensor([1.0, 2.0])
    for attempt in (
        lambda: x.add_(1),
        lambda: x[0].add_(1),
        lambda: x.view(2, 1).t().zero_(),
        lambda: x.__setitem__(0, 5.0),
        lambda: x.fill_(0),
        lambda: x.copy_(tensor([0.0, 0.0])),
    ):
        with pytest.raises(RuntimeError, match="leaf"):
            attempt()
    assert x.tolist() == [1, 2] and x._version == 0
    part = Tensor(np.zeros(3))[:2].requires_grad_()
    with pytest.raises(RuntimeError, match="leaf"):
        part.add_(1)
    with no_grad():
        x[0].add_(1)
        x.mul_(2)
    assert x.tolist() == [4, 4] and x.is_leaf


def test_views_made_under_no_grad_refuse_in_grad_mode() -> None:
    y = tensor([1.0, 2.0]) * 2
    with no_grad():
        view = y[:1]
        deeper = view.view(1, 1)
        view.add_(1)
    for target in (view, deeper, deeper.view(1)):
        with pytest.raises(RuntimeError, match="under no_grad"):
            target.mul_(2)
    assert y.tolist() == [3, 4]


def test_expanded_and_read_only_memory_refuses() -> None:
    expanded = (tensor([[1.0]]) * 1).expand(2, 2)
    with pytest.raises(RuntimeError, match="add_: several elements of an expanded tensor are one in memory"):
        expanded.add_(1)
    array = np.zeros(3)
    array.flags.writeable = False
    with pytest.raises(RuntimeError, match="read-only"):
        Tensor(array).add_(1)


def test_shape_and_dtype_must_fit_before_anything_changes() -> None:
    x = tensor([1.0, 2.0], False)
    with pytest.raises(RuntimeError, match=r"mul_.*\(3, 2\).*\(2,\)"):
        x.mul_(tensor(np.ones((3, 2))))
    n = Tensor(np.array([1, 2]))
    with pytest.raises(RuntimeError, match=r"add_.*float64.*int64"):
        n.add_(x)
    assert x.tolist() == [1, 2] and n.tolist() == [1, 2] and x._version == n._version == 0


def test_operators_change_in_place_and_keep_identity() -> None:
    x = tensor([1.0, 2.0])
    y = z = x * 2
    y += 1
    y *= x
    y -= 3
    y /= 2
    assert y is z
    same(y, [0, 3.5])
    y.sum().backward()
    same(x.grad, [(4 + 1) / 2, (8 + 1) / 2])


def test_second_derivatives_through_a_changed_view() -> None:
    def program(x: Any, w: Any) -> Any:
        y = x**2
        y[0].mul_(w)
        y.t()[1].exp_()
        return y * w

    assert gradcheck(
        lambda x, w: grad(program(x, w).sin().sum(), [x, w], create_graph=True),
        [tensor(np.linspace(0.1, 0.9, 6).reshape(2, 3)), tensor([0.3, 0.7, -0.4])],
    )
