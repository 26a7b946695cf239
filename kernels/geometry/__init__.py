"""Output shapes of the kernels, and every error of shape and setting, in pure Python.

Nothing here touches an array: each function takes shapes and settings, raises ValueError naming the
operation, what it got and what it wanted, and returns the shape of the result.
"""

from .checks import Padding, Pair, Shape
from .conv import conv2d, conv2d_grad
from .pooling import avg_pool2d, avg_pool2d_grad, max_pool2d, max_pool2d_offsets, max_pool2d_scatter
from .softmax_cross_entropy import softmax_cross_entropy

__all__ = [
    "Padding",
    "Pair",
    "Shape",
    "avg_pool2d",
    "avg_pool2d_grad",
    "conv2d",
    "conv2d_grad",
    "max_pool2d",
    "max_pool2d_offsets",
    "max_pool2d_scatter",
    "softmax_cross_entropy",
]
