"""The array backend, the Tensor, the autograd graph and the operations on them."""

from . import operations
from .tensor import Tensor

__all__ = ["Tensor", "operations"]
