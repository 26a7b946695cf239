"""Activations, softmax, and encodings of classes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ...engine import Tensor
from ...engine.backend import array_module
from ...engine.dtypes import int64
from ...engine.operations.activation import LogSigmoid
from ...engine.tensor import wrap
from .checks import check_tensor


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0), elementwise."""
    return check_tensor("relu", "input", input).relu_() if inplace else check_tensor("relu", "input", input).relu()


def relu_(input: Tensor) -> Tensor:
    """`relu` in place."""
    return relu(input, True)


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent, elementwise."""
    return check_tensor("tanh", "input", input).tanh()


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), elementwise."""
    return check_tensor("sigmoid", "input", input).sigmoid()


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)), elementwise, without overflow."""
    return LogSigmoid.apply(check_tensor("logsigmoid", "input", input))


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
    count = int(array.max()) + 1 if num_classes == -1 else num_classes
    if isinstance(array, np.ndarray) and array.size and not (array.min() >= 0 and array.max() < count):
        wrong = int(array.min()) if array.min() < 0 else int(array.max())
        raise ValueError(f"one_hot: class index {wrong} is out of range for {count} classes")
    module = array_module(array)
    return wrap((array[..., None] == module.arange(count)).astype(int64))
