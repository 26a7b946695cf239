"""The kernels in CUDA C++, on CuPy's arrays. Importing this does not import CuPy."""

from .conv import conv2d, conv2d_input_grad, conv2d_weight_grad
from .pooling import (
    avg_pool2d,
    avg_pool2d_input_grad,
    max_pool2d,
    max_pool2d_gather,
    max_pool2d_indices,
    max_pool2d_scatter,
)
from .softmax_cross_entropy import softmax_cross_entropy, softmax_cross_entropy_scale

__all__ = [
    "avg_pool2d",
    "avg_pool2d_input_grad",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "max_pool2d",
    "max_pool2d_gather",
    "max_pool2d_indices",
    "max_pool2d_scatter",
    "softmax_cross_entropy",
    "softmax_cross_entropy_scale",
]
