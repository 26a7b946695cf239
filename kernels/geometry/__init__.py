"""Output shapes of the kernels, and every error of shape and setting, in pure Python.

Nothing here touches an array: each function takes shapes and settings, raises ValueError naming the
operation, what it got and what it wanted, and returns the shape of the result.
"""

from .batch_norm import batch_norm, channel_runs
from .checks import Padding, Pair, Shape
from .conv import Pads, Sizes, conv, conv_epilogue, conv_grad, conv_name
from .dropout import dropout, dropout_factors
from .embedding import embedding, embedding_renorm, embedding_weight_grad
from .group_norm import group_norm, group_norm_grad
from .layer_norm import layer_norm, layer_norm_grad
from .optimizer import adam, grad_norm, optimizer, sgd
from .softmax import softmax
from .softmax_cross_entropy import softmax_cross_entropy

__all__ = [
    "Padding",
    "Pads",
    "Pair",
    "Shape",
    "Sizes",
    "adam",
    "batch_norm",
    "channel_runs",
    "conv",
    "conv_epilogue",
    "conv_grad",
    "conv_name",
    "dropout",
    "dropout_factors",
    "embedding",
    "embedding_renorm",
    "embedding_weight_grad",
    "grad_norm",
    "group_norm",
    "group_norm_grad",
    "layer_norm",
    "layer_norm_grad",
    "optimizer",
    "sgd",
    "softmax",
    "softmax_cross_entropy",
]
