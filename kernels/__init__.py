"""Array in, array out: the numerical kernels, on NumPy and on CUDA.

Each function checks shapes and settings, then calls `kernels.cpu` or `kernels.cuda` by the type of its
arrays. Arrays may have any strides and may be empty; inputs are never changed; results are new C-contiguous
arrays of the input's dtype, which is float32, float64, float16 or bfloat16 (the half types compute in float32
and round once). Images are (N, C, H, W), volumes (N, C, D, H, W), filters (K, C / groups, taps along each of
these axes); settings are in the order of the axes. Optimizers, clipping, `embedding_renorm` and an `inplace_grad`
change arrays in place.
"""

from .interface.activation import (
    activation,
    activation_input_grad,
    activation_scale,
    activation_with_slope,
    bias_activation,
    bias_activation_grad,
    bias_activation_scale,
    bias_activation_with_slope,
    glu,
    glu_input_grad,
    prelu,
    prelu_grad,
)
from .interface.batch_norm import batch_norm, batch_norm_grad, batch_norm_inference
from .interface.conv import conv, conv_bias_grad, conv_input_grad, conv_weight_grad
from .interface.dropout import dropout, dropout_grad
from .interface.embedding import embedding, embedding_renorm, embedding_weight_grad
from .interface.grad_norm import clamp_grads, clip_grad_norm, clip_grads, grad_norm
from .interface.group_norm import group_norm, group_norm_grad
from .interface.layer_norm import layer_norm, layer_norm_grad, rms_norm, rms_norm_grad
from .interface.matmul import matmul
from .interface.optimizer import adam, sgd
from .interface.pooling import (
    adaptive_avg_pool,
    adaptive_avg_pool_input_grad,
    adaptive_max_pool,
    adaptive_max_pool_gather,
    adaptive_max_pool_scatter,
    avg_pool,
    avg_pool_input_grad,
    lp_pool,
    lp_pool_input_grad,
    max_pool,
    max_pool_gather,
    max_pool_indices,
    max_pool_scatter,
    max_unpool,
    max_unpool_input_grad,
)
from .interface.softmax import log_softmax, log_softmax_input_grad, softmax, softmax_input_grad
from .interface.softmax_cross_entropy import softmax_cross_entropy, softmax_cross_entropy_scale

__all__ = [
    "activation",
    "activation_input_grad",
    "activation_scale",
    "activation_with_slope",
    "adam",
    "adaptive_avg_pool",
    "adaptive_avg_pool_input_grad",
    "adaptive_max_pool",
    "adaptive_max_pool_gather",
    "adaptive_max_pool_scatter",
    "avg_pool",
    "avg_pool_input_grad",
    "batch_norm",
    "batch_norm_grad",
    "batch_norm_inference",
    "bias_activation",
    "bias_activation_grad",
    "bias_activation_scale",
    "bias_activation_with_slope",
    "clamp_grads",
    "clip_grad_norm",
    "clip_grads",
    "conv",
    "conv_bias_grad",
    "conv_input_grad",
    "conv_weight_grad",
    "dropout",
    "dropout_grad",
    "embedding",
    "embedding_renorm",
    "embedding_weight_grad",
    "glu",
    "glu_input_grad",
    "grad_norm",
    "group_norm",
    "group_norm_grad",
    "layer_norm",
    "layer_norm_grad",
    "log_softmax",
    "log_softmax_input_grad",
    "lp_pool",
    "lp_pool_input_grad",
    "matmul",
    "max_pool",
    "max_pool_gather",
    "max_pool_indices",
    "max_pool_scatter",
    "max_unpool",
    "max_unpool_input_grad",
    "prelu",
    "prelu_grad",
    "rms_norm",
    "rms_norm_grad",
    "sgd",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_scale",
    "softmax_input_grad",
]
