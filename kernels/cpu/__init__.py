"""The kernels on NumPy arrays; `adjoint.kernels` describes and checks the arguments."""

from .activation import activation, activation_input_grad, activation_scale, activation_with_slope, glu, glu_input_grad
from .batch_norm import batch_norm, batch_norm_grad, batch_norm_inference
from .bias_activation import bias_activation, bias_activation_grad, prelu, prelu_grad
from .conv import conv, conv_input_grad, conv_weight_grad
from .dropout import dropout, dropout_grad
from .grad_norm import clip_grad_norm, clip_grads, grad_norm
from .optimizer import adam, sgd
from .pooling import (
    avg_pool2d,
    avg_pool2d_input_grad,
    max_pool2d,
    max_pool2d_gather,
    max_pool2d_indices,
    max_pool2d_scatter,
)
from .softmax import log_softmax, log_softmax_input_grad, softmax, softmax_input_grad
from .softmax_cross_entropy import softmax_cross_entropy, softmax_cross_entropy_scale

__all__ = [
    "activation",
    "activation_input_grad",
    "activation_scale",
    "activation_with_slope",
    "adam",
    "avg_pool2d",
    "avg_pool2d_input_grad",
    "batch_norm",
    "batch_norm_grad",
    "batch_norm_inference",
    "bias_activation",
    "bias_activation_grad",
    "clip_grad_norm",
    "clip_grads",
    "conv",
    "conv_input_grad",
    "conv_weight_grad",
    "dropout",
    "dropout_grad",
    "glu",
    "glu_input_grad",
    "grad_norm",
    "log_softmax",
    "log_softmax_input_grad",
    "max_pool2d",
    "max_pool2d_gather",
    "max_pool2d_indices",
    "max_pool2d_scatter",
    "prelu",
    "prelu_grad",
    "sgd",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_scale",
    "softmax_input_grad",
]
