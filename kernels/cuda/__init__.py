"""The kernels in CUDA C++, on CuPy's arrays. Importing this does not import CuPy."""

from .conv import conv2d, conv2d_input_grad, conv2d_weight_grad

__all__ = [
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
]
