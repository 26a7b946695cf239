"""Array in, array out: the numerical kernels, on NumPy and on CUDA.

Each function checks shapes and settings, then calls `kernels.cpu` or `kernels.cuda` by the type of its
arrays. Arrays may have any strides and may be empty; inputs are never changed; results are new C-contiguous
arrays of the input's dtype, which is float32, float64, float16 or bfloat16 (the half types compute in float32
and round once). Images are (N, C, H, W), filters (K, C / groups, R, S); pairs are (height, width).
"""

from .interface.conv import conv2d, conv2d_input_grad, conv2d_weight_grad
from .interface.pooling import (
    avg_pool2d,
    avg_pool2d_input_grad,
    max_pool2d,
    max_pool2d_gather,
    max_pool2d_indices,
    max_pool2d_scatter,
)
from .interface.softmax_cross_entropy import softmax_cross_entropy, softmax_cross_entropy_scale

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
