"""Initial values of parameters, under PyTorch's names. Each fills a tensor in place and returns it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..engine import Tensor
from ..engine.backend import array_module
from ..engine.grad_mode import no_grad
from ..engine.random import Generator

_GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "conv3d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "selu": 3 / 4,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """How to scale weights before `nonlinearity`; `param` is the slope of "leaky_relu" (0.01)."""
    if nonlinearity == "leaky_relu":
        if isinstance(param, bool) or not isinstance(param, int | float | None):
            raise ValueError(f"calculate_gain: the slope must be a number, got {param!r}")
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        raise ValueError(f"calculate_gain: expected one of {', '.join(_GAINS)}, leaky_relu, got {nonlinearity!r}")
    return _GAINS[nonlinearity]


@no_grad()
def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform in [a, b)."""
    return tensor.uniform_(a, b, generator=generator)


@no_grad()
def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal with the given mean and standard deviation."""
    return tensor.normal_(mean, std, generator=generator)


@no_grad()
def constant_(tensor: Tensor, val: float) -> Tensor:
    """One value."""
    return tensor.fill_(val)


def ones_(tensor: Tensor) -> Tensor:
    """All 1."""
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """All 0."""
    return constant_(tensor, 0.0)


@no_grad()
def eye_(tensor: Tensor) -> Tensor:
    """The identity, of a matrix."""
    if tensor.ndim != 2:
        raise ValueError(f"eye_: expected a matrix, got shape {tensor.shape}")
    return tensor.copy_(array_module(tensor.data).eye(*tensor.shape, dtype=tensor.dtype))


@no_grad()
def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Normal with the given mean and standard deviation, of which only [a, b] is left."""
    if std <= 0 or not a < b:
        raise ValueError(f"trunc_normal_: expected std > 0 and a < b, got std={std}, a={a}, b={b}")
    low, high = (math.erf((limit - mean) / std / math.sqrt(2)) for limit in (a, b))
    tensor.uniform_(low, high, generator=generator)
    tensor.copy_(_erfinv(tensor.data.astype(np.float64)) * (std * math.sqrt(2)) + mean)
    return tensor.clamp_(a, b)


def _erfinv(x: Any) -> Any:
    """The inverse error function, to about 1e-7 (Giles, "Approximating the erfinv function", 2010)."""
    w = -np.log(np.clip((1 - x) * (1 + x), np.finfo(np.float64).tiny, 1))
    near = _polynomial(_ERFINV_NEAR, w - 2.5)
    far = _polynomial(_ERFINV_FAR, np.sqrt(np.maximum(w, 5)) - 3)
    return array_module(x).where(w < 5, near, far) * x


_ERFINV_NEAR = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
    -0.00417768164, 0.246640727, 1.50140941,
)  # fmt: skip
_ERFINV_FAR = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
    0.00943887047, 1.00167406, 2.83297682,
)  # fmt: skip


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    result = coefficients[0]
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result


def _fans(name: str, tensor: Tensor) -> tuple[int, int]:
    """How many inputs an output element has, and how many outputs an input element."""
    if tensor.ndim < 2:
        raise ValueError(f"{name}: fan in and fan out need at least 2 dimensions, got shape {tensor.shape}")
    taps = math.prod(tensor.shape[2:])
    return tensor.shape[1] * taps, tensor.shape[0] * taps


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform in ±gain · sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio, 2010)."""
    bound = gain * math.sqrt(6 / max(1, sum(_fans("xavier_uniform_", tensor))))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal with the deviation gain · sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio, 2010)."""
    std = gain * math.sqrt(2 / max(1, sum(_fans("xavier_normal_", tensor))))
    return normal_(tensor, 0.0, std, generator)


def _kaiming_std(name: str, tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f'{name}: mode must be "fan_in" or "fan_out", got {mode!r}')
    fan_in, fan_out = _fans(name, tensor)
    fan = fan_in if mode == "fan_in" else fan_out
    return calculate_gain(nonlinearity, a) / math.sqrt(max(1, fan))


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Uniform in ±gain · sqrt(3 / fan) (He et al., 2015); `a` is the slope of leaky_relu."""
    bound = math.sqrt(3) * _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Normal with the deviation gain / sqrt(fan) (He et al., 2015); `a` is the slope of leaky_relu."""
    return normal_(tensor, 0.0, _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity), generator)


@no_grad()
def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """gain times orthogonal rows or columns, all dims but the first seen as one (Saxe et al., 2013)."""
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_: expected at least 2 dimensions, got shape {tensor.shape}")
    if not tensor.numel():
        return tensor
    drawn = tensor.detach().clone().double().normal_(generator=generator)
    matrix = drawn.data.reshape(tensor.shape[0], -1)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    q, r = array_module(matrix).linalg.qr(tall)
    q = q * np.sign(r.diagonal())  # so that all orthogonal matrices are equally likely
    return tensor.copy_((q if tall is matrix else q.T).reshape(tensor.shape) * gain)
