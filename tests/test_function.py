"""autograd.Function: what a user's forward and backward get, keep and return."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from adjoint import Tensor, no_grad
from adjoint.engine.function import Function, once_differentiable
from adjoint.engine.gradcheck import gradcheck, gradgradcheck
from adjoint.engine.gradients import grad


def tensor(values: Any, requires_grad: bool = True) -> Tensor:
    return Tensor(np.array(values, dtype=np.float64), requires_grad=requires_grad)


def same(actual: Any, expected: Any) -> None:
    assert actual is not None
    np.testing.assert_allclose(actual.detach().numpy(), np.asarray(expected), rtol=1e-12)


class Power(Function):
    """x to a Python number, on plain arrays: what a RawKernel does too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exponent: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.exponent = exponent
        return Tensor(x.data**exponent)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g * ctx.exponent * x ** (ctx.exponent - 1), None


class Split(Function):
    """Several outputs: x * y, x + y, how many are positive, and a remark that is no tensor."""

    received: Any = None

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Any:
        return x * y, x + y, (x > 0).sum(), "done"

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, by_product: Any, by_sum: Any, by_count: Any, by_remark: Any) -> Any:
        x, y, _ = ctx.saved_tensors
        Split.received = by_product, by_sum, by_count, by_remark
        return by_product * y + by_sum, by_product * x + by_sum


def test_a_function_of_arrays_has_first_and_second_derivatives() -> None:
    x = tensor([0.5, 1.5, 2.0])
    y = Power.apply(x, 3)
    same(y, np.array([0.5, 1.5, 2.0]) ** 3)
    assert y.grad_fn.name == "Power"
    y.sum().backward()
    same(x.grad, 3 * np.array([0.5, 1.5, 2.0]) ** 2)
    assert gradcheck(lambda t: Power.apply(t, 3), x)
    assert gradgradcheck(lambda t: Power.apply(t, 3), x)


def test_setup_context_and_several_outputs() -> None:
    x, y = tensor([1.0, -2.0]), tensor([3.0, 4.0])
    product, total, count, remark = Split.apply(x, y)
    assert remark == "done" and count.item() == 1
    assert product.requires_grad and total.requires_grad and not count.requires_grad
    assert (product.output_nr, total.output_nr) == (0, 1)
    total.sum().backward()
    same(x.grad, [1, 1])
    by_product, by_sum, by_count, by_remark = Split.received
    assert by_product.tolist() == [0, 0] and by_sum.tolist() == [1, 1] and by_remark is None
    assert by_count.shape == ()
    assert gradcheck(lambda a, b: Split.apply(a, b)[:2], (x, y))
    assert gradgradcheck(lambda a, b: Split.apply(a, b)[:2], (x, y))


def test_set_materialize_grads() -> None:
    class Two(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            ctx.set_materialize_grads(False)
            return x * 2, x * 3

        @staticmethod
        def backward(ctx: Any, a: Any, b: Any) -> Any:
            assert a is None
            return b * 3

    x = tensor([1.0])
    Two.apply(x)[1].backward()
    same(x.grad, [3])


def test_needs_input_grad() -> None:
    class Watch(Function):
        needed: Any = None

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor:
            Watch.needed = ctx.needs_input_grad
            return args[0] + args[2]

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            Watch.needed = ctx.needs_input_grad
            return g, None, g

    x, y = tensor([1.0]), tensor([2.0])
    z = Watch.apply(x, "text", y)
    assert Watch.needed == (True, False, True)
    grad(z, y)
    assert Watch.needed == (False, False, True) and type(Watch.needed) is tuple
    Watch.apply(x.detach(), 1, y)
    assert Watch.needed == (False, False, True)


def test_forward_records_nothing_and_gets_the_very_tensors() -> None:
    x = tensor([1.0, 2.0])

    class Same(Function):
        @staticmethod
        def forward(ctx: Any, given: Tensor) -> Tensor:
            assert given is x
            inside = given * 2
            assert not inside.requires_grad
            return inside

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * 7  # proves that this is used, not the graph of the product

    Same.apply(x).sum().backward()
    same(x.grad, [7, 7])
    with no_grad():
        assert not Same.apply(x).requires_grad


def test_non_differentiable_outputs() -> None:
    class Sorted(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            order = np.argsort(x.data)
            ctx.order = order
            rank = Tensor(order.astype(np.float64))
            ctx.mark_non_differentiable(rank)
            return Tensor(x.data[order]), rank

        @staticmethod
        def backward(ctx: Any, g: Tensor, _: Tensor) -> Tensor:
            return g[np.argsort(ctx.order)]

    x = tensor([3.0, 1.0, 2.0])
    values, rank = Sorted.apply(x)
    assert not rank.requires_grad and rank.grad_fn is None
    (values * tensor([1.0, 10.0, 100.0], False)).sum().backward()
    same(x.grad, [100, 1, 10])


class Double(Function):
    """Doubles its argument in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.data[...] *= 2
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        assert ctx.saved_tensors[0].grad_fn is not None
        return g * 2


def test_mark_dirty() -> None:
    x = tensor([1.0, 2.0])
    y = x * 1
    version = y._version
    z = Double.apply(y)
    assert z is y and y._version == version + 1 and y.grad_fn.name == "Double"
    y.sum().backward()
    same(x.grad, [2, 2])
    used = x * 1
    squared = used * used
    Double.apply(used)
    with pytest.raises(RuntimeError, match="changed in place"):
        squared.sum().backward()


def test_mark_dirty_on_a_view_reaches_the_base() -> None:
    x = tensor([1.0, 2.0])
    y = x * 1
    Double.apply(y[1:])
    same(y, [1, 4])
    y.sum().backward()
    same(x.grad, [1, 2])


def test_mark_dirty_refuses_leaves_and_arguments_that_are_not_returned() -> None:
    class Forgets(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.mark_dirty(x)
            return x * 1

    with pytest.raises(RuntimeError, match="leaf"):
        Double.apply(tensor([1.0]))
    with pytest.raises(RuntimeError, match=r"Forgets.*mark_dirty"):
        Forgets.apply(tensor([1.0]) * 1)


class Identity(Function):
    """Returns its argument, or a view of it, and turns the gradient round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: Any) -> Tensor:
        return how(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return -g.reshape(2), None


@pytest.mark.parametrize("how", [lambda x: x, lambda x: x.view(2, 1), lambda x: x.detach()])
def test_an_argument_returned_as_it_is(how: Any) -> None:
    x = tensor([1.0, 2.0])
    y = x * 1
    z = Identity.apply(y, how)
    assert z is not y and z.grad_fn.name == "Identity" and y.grad_fn.name == "Mul"
    assert np.shares_memory(z.data, y.data) and z._versions is y._versions
    z.sum().backward()
    same(x.grad, [-1, -1])


def test_a_returned_view_cannot_be_changed_in_place() -> None:
    y = tensor([1.0, 2.0]) * 1
    z = Identity.apply(y, lambda x: x)
    with pytest.raises(RuntimeError, match="Function"):
        z.mul_(2)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="Function"):
        z.sum()


def test_a_captured_tensor_returned_keeps_its_own_gradient() -> None:
    weight = tensor([1.0, 2.0])

    class Returns(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return weight

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * 5

    x = tensor([0.0, 0.0])
    Returns.apply(x).sum().backward()
    same(x.grad, [5, 5])
    assert weight.is_leaf and weight.grad is None


def test_saved_tensors_are_checked_and_freed() -> None:
    x = tensor([1.0, 2.0])
    y = x * 1
    z = Power.apply(y, 2)
    y.add_(1)
    with pytest.raises(RuntimeError, match=r"Power.*changed in place"):
        z.sum().backward()
    total = Power.apply(x, 2).sum()
    total.backward()
    with pytest.raises(RuntimeError, match=r"Power.*freed"):
        total.backward()


def test_a_saved_output_makes_no_cycle() -> None:
    class Exp(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, unused: Any) -> Tensor:
            y = Tensor(np.exp(x.data))
            ctx.save_for_backward(y, None)
            return y

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            y, nothing = ctx.saved_tensors
            assert nothing is None
            return g * y, None

    x = tensor([0.1, 0.2])
    assert gradgradcheck(lambda t: Exp.apply(t, 1), x)
    gc.collect()
    gc.disable()
    try:
        y = Exp.apply(x, 1)
        node, array = weakref.ref(y.grad_fn), weakref.ref(y.data)
        del y
        assert node() is None and array() is None
    finally:
        gc.enable()


def test_once_differentiable() -> None:
    class Cube(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return Tensor(x.data**3)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            assert not (x * 2).requires_grad
            return Tensor(3 * x.data**2 * g.data)

    x = tensor([2.0])
    Cube.apply(x).backward()
    same(x.grad, [12])
    (first,) = grad(Cube.apply(x) + x**2, x, create_graph=True)
    same(first, [16])
    with pytest.raises(RuntimeError, match=r"Cube.*once_differentiable"):
        grad(first, x)  # never the derivative of x**2 alone


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda g: (g,), RuntimeError, "1 gradients for 2"),
        (lambda g: (g, None, g), RuntimeError, "3 gradients for 2"),
        (lambda g: (g, g), RuntimeError, "argument 1 is no Tensor"),
        (lambda g: (g.numpy(), None), TypeError, "gradient 0 must be a Tensor or None, got ndarray"),
        (lambda g: (g.sum().reshape(1, 1, 1), None), RuntimeError, r"shape \(1, 1, 1\), expected \(2,\)"),
    ],
)
def test_what_backward_returns_must_fit(returned: Any, error: type[Exception], message: str) -> None:
    class Wrong(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, k: int) -> Tensor:
            return x * k

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            return returned(g)

    with pytest.raises(error, match=message):
        Wrong.apply(tensor([1.0, 2.0]), 2).sum().backward()


def test_trailing_nones_and_broadcast_gradients_are_accepted() -> None:
    class Wide(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.expand(3, 2) * 1.0

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            return g, None, None

    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    (Wide.apply(x) * tensor(np.ones((3, 2)), False)).sum().backward()
    assert x.grad is not None and x.grad.dtype == np.float32 and x.grad.tolist() == [3, 3]


def test_mistakes_in_forward() -> None:
    class Lists(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            return [x * 1, x * 2]

    class SavesArrays(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            ctx.save_for_backward(x.data)

    class Nothing(Function):
        pass

    x = tensor([1.0])
    with pytest.raises(TypeError, match="tuple"):
        Lists.apply(x)
    with pytest.raises(TypeError, match=r"save_for_backward.*ndarray"):
        SavesArrays.apply(x)
    with pytest.raises(NotImplementedError, match="forward"):
        Nothing.apply(x)
