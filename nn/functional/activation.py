"""Activations, softmax, and encodings of classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ...engine import Tensor
from ...engine.backend import array_module
from ...engine.dtypes import int64
from ...engine.grad_mode import no_grad
from ...engine.inplace import overwrite
from ...engine.operations.activation import GLU, Activation
from ...engine.operations.arithmetic import where
from ...engine.operations.bias_activation import BiasActivation, PReLU
from ...engine.operations.dims import normalize_dim
from ...engine.operations.sampling import rand_like
from ...engine.recorder import refuse
from ...engine.tensor import wrap
from .checks import check_number, check_tensor


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0), elementwise."""
    return check_tensor("relu", "input", input).relu_() if inplace else check_tensor("relu", "input", input).relu()


def relu_(input: Tensor) -> Tensor:
    """`relu` in place."""
    return relu(input, True)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x, 0), 6), elementwise."""
    return _apply(relu6, input, inplace, "hardtanh", 0.0, 6.0)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where positive, else negative_slope * x, elementwise."""
    slope = check_number("leaky_relu", "negative_slope", negative_slope)
    return _apply(leaky_relu, input, inplace, "leaky_relu", slope)


def leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """`leaky_relu` in place."""
    return leaky_relu(input, negative_slope, True)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where positive, else alpha * (exp(x) - 1), elementwise (Clevert et al., 2016)."""
    return _apply(elu, input, inplace, "elu", check_number("elu", "alpha", alpha))


def elu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """`elu` in place."""
    return elu(input, alpha, True)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """scale * elu(x, alpha), elementwise, with constants that keep mean 0 and variance 1 (Klambauer et al., 2017)."""
    return _apply(selu, input, inplace, "selu")


def selu_(input: Tensor) -> Tensor:
    """`selu` in place."""
    return selu(input, True)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where positive, else alpha * (exp(x / alpha) - 1), elementwise (Barron, 2017)."""
    if check_number("celu", "alpha", alpha) == 0:
        raise ValueError("celu: alpha must not be 0")
    return _apply(celu, input, inplace, "celu", float(alpha))


def celu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """`celu` in place."""
    return celu(input, alpha, True)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x times the normal distribution function of x, elementwise (Hendrycks & Gimpel, 2016).

    approximate "tanh" takes 1/2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) for the distribution function.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate must be "none" or "tanh", got {approximate!r}')
    return _apply(gelu, input, False, "gelu" if approximate == "none" else "gelu_tanh")


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x * sigmoid(x), elementwise; also called swish."""
    return _apply(silu, input, inplace, "silu")


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * tanh(softplus(x)), elementwise (Misra, 2019)."""
    return _apply(mish, input, inplace, "mish")


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta, elementwise; x itself where beta * x is above `threshold`."""
    beta, threshold = check_number("softplus", "beta", beta), check_number("softplus", "threshold", threshold)
    return _apply(softplus, input, False, "softplus", beta, threshold)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """x limited to [min_val, max_val], elementwise."""
    low, high = check_number("hardtanh", "min_val", min_val), check_number("hardtanh", "max_val", max_val)
    if low > high:
        raise ValueError(f"hardtanh: min_val must not be above max_val, got {min_val} and {max_val}")
    return _apply(hardtanh, input, inplace, "hardtanh", low, high)


def hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """`hardtanh` in place."""
    return hardtanh(input, min_val, max_val, True)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x + 3, 0), 6) / 6, elementwise."""
    return _apply(hardsigmoid, input, inplace, "hardsigmoid")


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * hardsigmoid(x), elementwise (Howard et al., 2019)."""
    return _apply(hardswish, input, inplace, "hardswish")


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent, elementwise."""
    return check_tensor("tanh", "input", input).tanh()


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), elementwise."""
    return check_tensor("sigmoid", "input", input).sigmoid()


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)), elementwise, without overflow."""
    return _apply(logsigmoid, input, False, "logsigmoid")


def softsign(input: Tensor) -> Tensor:
    """x / (1 + |x|), elementwise."""
    return _apply(softsign, input, False, "softsign")


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x moved by lambd towards 0, which it does not pass, elementwise."""
    if check_number("softshrink", "lambd", lambd) < 0:
        raise ValueError(f"softshrink: lambd must not be negative, got {lambd}")
    return _apply(softshrink, input, False, "softshrink", float(lambd))


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """0 where |x| is at most lambd, else x, elementwise."""
    return _apply(hardshrink, input, False, "hardshrink", check_number("hardshrink", "lambd", lambd))


def tanhshrink(input: Tensor) -> Tensor:
    """x - tanh(x), elementwise."""
    return _apply(tanhshrink, input, False, "tanhshrink")


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """x where above `threshold`, else `value`, elementwise."""
    limit, value = check_number("threshold", "threshold", threshold), check_number("threshold", "value", value)
    return _apply(_threshold, input, inplace, "threshold", limit, value)


def threshold_(input: Tensor, threshold: float, value: float) -> Tensor:
    """`threshold` in place."""
    limit, value = check_number("threshold", "threshold", threshold), check_number("threshold", "value", value)
    return _apply(_threshold, input, True, "threshold", limit, value)


_threshold = threshold  # where an argument has its name


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """x where positive, else weight * x (He et al., 2015); one weight, or one for each channel of (N, C, ...)."""
    _check_floating("prelu", input)
    check_tensor("prelu", "weight", weight)
    if weight.ndim == 0:
        weight = weight.reshape(1)
    return PReLU.apply(input, weight)


def rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """x where positive, else x times a slope (Xu et al., 2015).

    In training each element's is drawn uniformly from [lower, upper]; else it is their mean.
    """
    low, high = check_number("rrelu", "lower", lower), check_number("rrelu", "upper", upper)
    if low > high:
        raise ValueError(f"rrelu: lower must not be above upper, got {lower} and {upper}")
    if not training:
        return _apply(rrelu, input, inplace, "leaky_relu", (low + high) / 2)
    _check_floating("rrelu", input)
    with no_grad():
        slopes = where(input <= 0, rand_like(input) * (high - low) + low, 1.0)
    return input.mul_(slopes) if inplace else input * slopes


def rrelu_(input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Tensor:
    """`rrelu` in place."""
    return rrelu(input, lower, upper, training, True)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """The first half of the input along `dim` times the sigmoid of the second (Dauphin et al., 2017)."""
    _check_floating("glu", input)
    if input.ndim == 0:
        raise ValueError("glu: input must have at least one dimension, got a scalar")
    return GLU.apply(input, dim=normalize_dim("glu", dim, input.ndim))


def bias_activation(
    input: Tensor,
    bias: Tensor,
    activation: str = "relu",
    dim: int = -1,
    *,
    a: float | None = None,
    b: float | None = None,
) -> Tensor:
    """activation(input + bias) in one pass over memory, the bias (C,) along `dim`: 1 for images (N, C, H, W).

    `activation` is the name of a function of this module that takes one tensor, or "gelu_tanh"; `a` and `b` are its
    settings, in its order, by default its defaults.
    """
    _check_floating("bias_activation", input)
    check_tensor("bias_activation", "bias", bias)
    if activation not in _DEFAULTS:
        raise ValueError(f"bias_activation: activation must be one of {', '.join(_DEFAULTS)}, got {activation!r}")
    kind, *defaults = _DEFAULTS[activation]
    given = [check_number("bias_activation", name, value) for name, value in (("a", a), ("b", b)) if value is not None]
    if len(given) > len(defaults) or (a is None and b is not None):
        wanted = f"{activation} has {len(defaults)} settings"
        raise ValueError(f"bias_activation: {wanted}, got a={a} and b={b}")
    settings = [*given, *defaults[len(given) :], 0.0, 0.0]
    dim = normalize_dim("bias_activation", dim, input.ndim)
    return BiasActivation.apply(input, bias, kind=kind, dim=dim, a=settings[0], b=settings[1])


# The kernel's kind of each, and the defaults of its settings.
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    **{name: (name,) for name in ("relu", "selu", "gelu", "gelu_tanh", "silu", "mish", "hardsigmoid", "hardswish")},
    **{name: (name,) for name in ("sigmoid", "tanh", "logsigmoid", "softsign", "tanhshrink")},
    "relu6": ("hardtanh", 0.0, 6.0),
    "leaky_relu": ("leaky_relu", 0.01),
    "elu": ("elu", 1.0),
    "celu": ("celu", 1.0),
    "softplus": ("softplus", 1.0, 20.0),
    "hardtanh": ("hardtanh", -1.0, 1.0),
    "softshrink": ("softshrink", 0.5),
    "hardshrink": ("hardshrink", 0.5),
}


def _apply(
    function: Callable[..., Tensor], input: Tensor, inplace: bool, kind: str, a: float = 0.0, b: float = 0.0
) -> Tensor:
    """The activation of this kind; `function` is the public one, which errors name."""
    _check_floating(function.__name__, input)
    if not inplace:
        return Activation.apply(input, kind=kind, a=a, b=b)

    def form(input: Tensor) -> Tensor:
        return Activation.apply(input, kind=kind, a=a, b=b)

    form.__name__ = function.__name__
    return overwrite(input, form, (), {})


def _check_floating(operation: str, input: Any) -> None:
    if not check_tensor(operation, "input", input).is_floating_point():
        raise TypeError(f"{operation}: input must be a floating tensor, got dtype {input.dtype}")


def softmax(input: Tensor, dim: int | None = None, *, dtype: Any = None) -> Tensor:
    """exp(x) divided by its sum over `dim`; computed in `dtype` where given."""
    dim = _dim("softmax", input, dim)
    return (input if dtype is None else input.to(dtype)).softmax(dim)


def log_softmax(input: Tensor, dim: int | None = None, *, dtype: Any = None) -> Tensor:
    """The logarithm of `softmax`, exact where the softmax vanishes."""
    dim = _dim("log_softmax", input, dim)
    return (input if dtype is None else input.to(dtype)).log_softmax(dim)


def _dim(operation: str, input: Tensor, dim: int | None) -> int:
    check_tensor(operation, "input", input)
    if dim is not None:
        return dim
    dim = 0 if input.ndim in (0, 1, 3) else 1
    warnings.warn(f"{operation}: dim was not given; dim={dim} is taken, as PyTorch does", stacklevel=3)
    return dim


def softmin(input: Tensor, dim: int | None = None, *, dtype: Any = None) -> Tensor:
    """`softmax` of -x."""
    return softmax(-check_tensor("softmin", "input", input), _dim("softmin", input, dim), dtype=dtype)


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Class indices of any shape as int64 vectors with one 1, in a new last dimension.

    num_classes -1 takes the largest index plus 1 (on a GPU this waits for it).
    """
    array = check_tensor("one_hot", "tensor", tensor)._data
    if array.dtype.kind not in "iu":
        raise TypeError(f"one_hot: expected integer class indices, got dtype {array.dtype}")
    if num_classes == -1 and not array.size:
        raise ValueError(f"one_hot: num_classes must be given for an empty tensor (shape {array.shape})")
    if num_classes != -1 and num_classes < 1:
        raise ValueError(f"one_hot: num_classes must be positive or -1, got {num_classes}")
    if num_classes == -1:
        refuse("look at values")
    count = int(array.max()) + 1 if num_classes == -1 else num_classes
    if isinstance(array, np.ndarray) and array.size and not (array.min() >= 0 and array.max() < count):
        wrong = int(array.min()) if array.min() < 0 else int(array.max())
        raise ValueError(f"one_hot: class index {wrong} is out of range for {count} classes")
    module = array_module(array)
    return wrap((array[..., None] == module.arange(count)).astype(int64))
