"""Gradients compared with finite differences, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .backend import CPU, device_of, transfer
from .dtypes import float64, is_floating
from .grad_mode import enable_grad
from .gradients import grad
from .tensor import Tensor, wrap


class GradcheckError(RuntimeError):
    """A gradient differs from finite differences, or backward from itself."""


def gradcheck(
    func: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    fast_mode: bool = False,
) -> bool:
    """Compare the gradients of `func(*inputs)` with central differences of step `eps`; True if they agree.

    Inputs that require a gradient must be float64. The default compares whole Jacobians, `fast_mode` a random
    direction of each input, which takes two forwards. Backward run twice may differ by `nondet_tol`. With
    `check_undefined_grad`, backward from one output gets no gradient for the others, else zeros. Where they
    disagree a GradcheckError gives both; without `raise_exception` the result is False.
    """
    try:
        _Check(func, inputs, eps, atol, rtol, nondet_tol, check_undefined_grad).run(fast_mode)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def gradgradcheck(
    func: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    grad_outputs: Tensor | Sequence[Tensor] | None = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    gen_non_contig_grad_outputs: bool = False,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    fast_mode: bool = False,
) -> bool:
    """`gradcheck` of the gradients of `func` in its inputs and in `grad_outputs` (random by default)."""
    given = _as_tuple(inputs)
    count = len(given)
    if grad_outputs is None:
        rng = np.random.default_rng(1)
        weights = []
        for output in _differentiable(func(*given)):
            shape = (*output.shape, 2) if gen_non_contig_grad_outputs else output.shape
            array = transfer(rng.standard_normal(shape), device_of(output._data)).astype(output.dtype)
            weights.append(Tensor(array[..., 0] if gen_non_contig_grad_outputs else array, requires_grad=True))
    else:
        weights = [weight.detach().requires_grad_() for weight in _as_tuple(grad_outputs)]

    def gradients(*arguments: Any) -> tuple[Tensor, ...]:
        outputs = _differentiable(func(*arguments[:count]))
        wanted = [value for value in arguments[:count] if isinstance(value, Tensor) and value.requires_grad]
        found = grad(outputs, wanted, arguments[count:], create_graph=True, allow_unused=True)
        return tuple(gradient for gradient in found if gradient is not None)

    return gradcheck(
        gradients, (*given, *weights), eps=eps, atol=atol, rtol=rtol, raise_exception=raise_exception,
        nondet_tol=nondet_tol, check_undefined_grad=check_undefined_grad, fast_mode=fast_mode,
    )  # fmt: skip


class _Check:
    """One comparison: the function, where it is taken, and how much may differ."""

    def __init__(
        self,
        func: Callable[..., Any],
        inputs: Any,
        eps: float,
        atol: float,
        rtol: float,
        nondet: float,
        undefined: bool,
    ) -> None:
        self.func, self.inputs = func, _as_tuple(inputs)
        self.eps, self.atol, self.rtol = eps, atol, rtol
        self.nondet, self.undefined = nondet, undefined
        self.rng = np.random.default_rng(0)
        self.positions = [i for i, v in enumerate(self.inputs) if isinstance(v, Tensor) and v.requires_grad]
        if not self.positions:
            raise ValueError("gradcheck: expected at least one input that requires a gradient")
        for i in self.positions:
            if self.inputs[i].dtype != float64:
                dtype = self.inputs[i].dtype
                raise ValueError(f"gradcheck: input {i} must be float64 for finite differences, got {dtype}")
        self.targets = [self.inputs[i] for i in self.positions]
        with enable_grad():
            self.all_outputs = [t for t in _tensors(func(*self.inputs)) if is_floating(t.dtype)]
        self.outputs = [output for output in self.all_outputs if output.requires_grad]

    def run(self, fast: bool) -> None:
        """Raise where something is wrong."""
        for k in range(len(self.outputs)):
            self._check_repeats(k)
        for j in range(len(self.positions)):
            if fast:
                self._compare_direction(j)
            else:
                self._compare_jacobian(j)

    def _compare_jacobian(self, j: int) -> None:
        size = self.targets[j].numel()
        columns = [self._difference(j, direction) for direction in np.eye(size)]
        for k, output in enumerate(self.all_outputs):
            numeric = np.stack([column[k] for column in columns], axis=1) if size else np.zeros((output.numel(), 0))
            if not output.requires_grad:
                if np.abs(numeric).max(initial=0) > self.atol:
                    raise GradcheckError(
                        f"gradcheck: output {k} does not require a gradient, but input {self.positions[j]} "
                        f"changes it; numeric:\n{numeric}"
                    )
                continue
            number = next(i for i, other in enumerate(self.outputs) if other is output)
            rows = [self._backward(number, weight)[j] for weight in np.eye(output.numel())]
            analytic = np.stack(rows) if rows else np.zeros((0, size))
            self._compare(j, k, analytic, numeric, "Jacobian (rows: elements of the output, columns: of the input)")

    def _compare_direction(self, j: int) -> None:
        direction = self._random(self.targets[j].numel())
        changes = self._difference(j, direction)
        for k, output in enumerate(self.all_outputs):
            weight = self._random(output.numel())
            numeric = np.array(weight @ changes[k])
            analytic = np.zeros(())
            if output.requires_grad:
                number = next(i for i, other in enumerate(self.outputs) if other is output)
                analytic = np.array(self._backward(number, weight)[j] @ direction)
            self._compare(j, k, analytic, numeric, "derivative along one random direction (fast_mode=False shows more)")

    def _compare(self, j: int, k: int, analytic: Any, numeric: Any, what: str) -> None:
        wrong = ~(np.abs(analytic - numeric) <= self.atol + self.rtol * np.abs(numeric))  # NaN is wrong too
        if not wrong.any():
            return
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise GradcheckError(
            f"gradcheck: output {k} with respect to input {self.positions[j]}: {int(wrong.sum())} of "
            f"{wrong.size} values differ in the {what}; "
            f"at {at}: analytic {analytic[at]:.8g}, numeric {numeric[at]:.8g}\n"
            f"analytic:\n{analytic}\nnumeric:\n{numeric}"
        )

    def _check_repeats(self, k: int) -> None:
        weight = self._random(self.outputs[k].numel())
        for i, first, second in zip(self.positions, self._backward(k, weight), self._backward(k, weight), strict=True):
            difference = np.abs(first - second).max(initial=0)
            if difference > self.nondet:
                raise GradcheckError(
                    f"gradcheck: backward from output {k} to input {i} is not deterministic: two runs differ "
                    f"by {difference:.3g}, more than nondet_tol={self.nondet}"
                )

    def _backward(self, k: int, weight: np.ndarray) -> list[np.ndarray]:
        """The gradients of all inputs, flat, for output `k` weighted by `weight`."""
        outputs, weights = [self.outputs[k]], [_like(weight, self.outputs[k])]
        if not self.undefined:
            others = [output for i, output in enumerate(self.outputs) if i != k]
            outputs += others
            weights += [_like(np.zeros(other.numel()), other) for other in others]
        found = grad(outputs, self.targets, weights, retain_graph=True, allow_unused=True)
        return [
            np.zeros(target.numel()) if gradient is None else _flat(gradient)
            for target, gradient in zip(self.targets, found, strict=True)
        ]

    def _difference(self, j: int, direction: np.ndarray) -> list[np.ndarray]:
        """The central difference of each output, flat, along `direction` of input `j`."""
        ahead, behind = self._evaluate(j, self.eps * direction), self._evaluate(j, -self.eps * direction)
        return [(a - b) / (2 * self.eps) for a, b in zip(ahead, behind, strict=True)]

    def _evaluate(self, j: int, step: np.ndarray) -> list[np.ndarray]:
        arguments = list(self.inputs)
        for i in self.positions:
            arguments[i] = self.inputs[i].detach()
        arguments[self.positions[j]] = _like(_flat(self.targets[j]) + step, self.targets[j])
        for i in self.positions:
            arguments[i].requires_grad_()
        with enable_grad():  # the function may itself take gradients
            result = self.func(*arguments)
        return [_flat(t) for t in _tensors(result) if is_floating(t.dtype)]

    def _random(self, size: int) -> np.ndarray:
        """Values far from 0, so that one wrong element cannot hide."""
        return self.rng.uniform(0.5, 1.5, size) * self.rng.choice([-1.0, 1.0], size)


def _as_tuple(values: Any) -> tuple[Any, ...]:
    return (values,) if isinstance(values, Tensor) else tuple(values)


def _tensors(result: Any) -> list[Tensor]:
    values = result if isinstance(result, tuple | list) else (result,)
    return [value for value in values if isinstance(value, Tensor)]


def _differentiable(result: Any) -> list[Tensor]:
    return [tensor for tensor in _tensors(result) if tensor.requires_grad]


def _flat(tensor: Tensor) -> np.ndarray:
    return transfer(tensor._data, CPU).astype(np.float64).ravel()


def _like(values: np.ndarray, tensor: Tensor) -> Tensor:
    return wrap(transfer(values.reshape(tensor.shape).astype(tensor.dtype), device_of(tensor._data)))
