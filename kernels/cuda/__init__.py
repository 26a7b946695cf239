"""The kernels in CUDA C++, on CuPy's arrays. Importing this does not import CuPy."""

from .activation import activation, activation_input_grad, activation_scale, activation_with_slope, glu, glu_input_grad
from .batch_norm import batch_norm, batch_norm_grad, batch_norm_inference
from .bias_activation import (
    bias_activation,
    bias_activation_grad,
    bias_activation_scale,
    bias_activation_with_slope,
    prelu,
    prelu_grad,
)
from .conv import conv, conv_input_grad
from .conv_weight_grad import conv_weight_grad
from .dropout import dropout, dropout_grad
from .embedding import embedding, embedding_renorm, embedding_weight_grad
from .grad_norm import clamp_grads, clip_grad_norm, clip_grads, grad_norm
from .group_norm import group_norm, group_norm_grad
from .layer_norm import layer_norm, layer_norm_grad, rms_norm, rms_norm_grad
from .matmul import matmul
from .optimizer import adam, sgd
from .pooling import (
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
from .softmax import log_softmax, log_softmax_input_grad, softmax, softmax_input_grad
from .softmax_cross_entropy import softmax_cross_entropy, softmax_cross_entropy_scale
from .sums import conv_bias_grad

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
