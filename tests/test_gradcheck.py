"""gradcheck and gradgradcheck find what is wrong, and say what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adjoint import Tensor, no_grad
from adjoint.engine.function import Function
from adjoint.engine.gradcheck import GradcheckError, gradcheck, gradgradcheck
from adjoint.engine.gradients import grad


def tensor(values: Any, requires_grad: bool = True) -> Tensor:
    return Tensor(np.array(values, dtype=np.float64), requires_grad=requires_grad)


class Scaled(Function):
    """Sine whose gradient is off in one element by `error`, and whose second derivative may be cut."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, error: float, cut: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.error, ctx.cut = error, cut
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        factor = np.ones(x.shape)
        factor.flat[-1] += ctx.error
        slope = x.cos().detach() if ctx.cut else x.cos()
        return g * slope * Tensor(factor), None, None


X = np.linspace(-1, 1, 6).reshape(2, 3)


@pytest.mark.parametrize("fast", [False, True])
def test_right_gradients_pass(fast: bool) -> None:
    x, w = tensor(X), tensor([0.5, -0.2, 0.3])
    assert gradcheck(lambda a, b: (a * b, (a + b).exp().sum()), (x, w), fast_mode=fast)
    assert gradgradcheck(lambda a, b: (a * b, (a + b).exp().sum()), (x, w), fast_mode=fast)
    assert x.grad is None and np.array_equal(x.data, X)


@pytest.mark.parametrize("fast", [False, True])
def test_one_wrong_element_fails(fast: bool) -> None:
    x = tensor(X)
    assert gradcheck(lambda t: Scaled.apply(t, 0.0, False), x, fast_mode=fast)
    with pytest.raises(GradcheckError, match="output 0 with respect to input 0"):
        gradcheck(lambda t: Scaled.apply(t, 0.05, False), x, fast_mode=fast)
    assert not gradcheck(lambda t: Scaled.apply(t, 0.05, False), x, fast_mode=fast, raise_exception=False)
    assert gradcheck(lambda t: Scaled.apply(t, 0.05, False), x, fast_mode=fast, rtol=0.5, atol=0.5)


def test_the_message_holds_both_values_and_the_place() -> None:
    x = tensor([[0.5, 0.0]])
    with pytest.raises(GradcheckError) as raised:
        gradcheck(lambda a, t: (a * 2, Scaled.apply(t, 1.0, False)), (tensor([1.0]), x))
    text = str(raised.value)
    assert "output 1 with respect to input 1: 1 of 4 values" in text
    assert "at (1, 1): analytic 2, numeric 1" in text


@pytest.mark.parametrize("fast", [False, True])
def test_a_wrong_second_derivative_fails_only_gradgradcheck(fast: bool) -> None:
    x = tensor(X)
    assert gradcheck(lambda t: Scaled.apply(t, 0.0, True), x, fast_mode=fast)
    with pytest.raises(GradcheckError, match="gradcheck: output 0"):
        gradgradcheck(lambda t: Scaled.apply(t, 0.0, True), x, fast_mode=fast)


def test_nan_fails() -> None:
    with np.errstate(all="ignore"), pytest.raises(GradcheckError, match="nan"):
        gradcheck(lambda t: t.sqrt(), tensor([0.0, 1.0]))


def test_float64_and_a_gradient_are_demanded() -> None:
    with pytest.raises(ValueError, match=r"input 1 must be float64.*float32"):
        gradcheck(lambda a, b: a * b, (tensor([1.0]), Tensor(np.ones(1, np.float32), requires_grad=True)))
    with pytest.raises(ValueError, match="at least one input"):
        gradcheck(lambda a: a, tensor([1.0], False))


@pytest.mark.parametrize("fast", [False, True])
def test_outputs_without_a_gradient(fast: bool) -> None:
    x = tensor([0.3, 0.7])
    assert gradcheck(lambda t: (t.sin(), (t > 0.5).sum(), t.detach() * 0, "text"), x, fast_mode=fast)
    with pytest.raises(GradcheckError):
        gradcheck(lambda t: (t.sin(), t.detach() * 2), x, fast_mode=fast)


def test_plain_arguments_empty_inputs_and_kept_layout() -> None:
    layout = Tensor(np.arange(12.0).reshape(3, 4)[::-1, ::2] / 10, requires_grad=True)
    assert gradcheck(lambda t, k, c: (t * k * c).sin(), (layout, 2, tensor(3.0, False)))
    assert gradcheck(lambda t: t.exp(), tensor(np.zeros((0, 3))))
    assert gradcheck(lambda t: t[:0], tensor([1.0]))


def test_a_function_that_takes_gradients_works_under_no_grad() -> None:
    with no_grad():
        assert gradcheck(lambda t: grad(t.exp().sum(), t, create_graph=True), tensor([0.1, 0.2]))


def test_backward_that_differs_from_run_to_run() -> None:
    class Random(Function):
        runs = 0.0

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            Random.runs += 1e-9
            return g * (1 + Random.runs)

    with pytest.raises(GradcheckError, match="not deterministic"):
        gradcheck(Random.apply, tensor([1.0]))
    assert gradcheck(Random.apply, tensor([1.0]), nondet_tol=1e-6)


def test_undefined_gradients_are_tried() -> None:
    class Careless(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            ctx.set_materialize_grads(False)
            return x * 2, x * 3

        @staticmethod
        def backward(ctx: Any, a: Any, b: Any) -> Tensor:
            return a * 2 + b * 3

    x = tensor([1.0])
    with pytest.raises(TypeError):
        gradcheck(Careless.apply, x)
    assert gradcheck(Careless.apply, x, check_undefined_grad=False)


def test_gradgradcheck_with_given_and_with_strided_weights() -> None:
    x = tensor(X)
    assert gradgradcheck(lambda t: (t.sin(), t.exp()), x, (tensor(X + 1), tensor(X - 1)))
    assert gradgradcheck(lambda t: t.sin(), x, gen_non_contig_grad_outputs=True)
    assert gradgradcheck(lambda t: t * 3, x)  # linear: the second derivative in x is none
