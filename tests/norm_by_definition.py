"""Normalisation of rows and its gradient from the definition, in float64."""

from __future__ import annotations

import numpy as np


def normalized(x, weight, bias, eps, centred=True):
    """y, mean and 1 / sqrt(var + eps) of rows (..., size); weight and bias broadcast with them."""
    x = x.astype(np.float64)
    mean = x.mean(axis=-1, keepdims=True) if centred else np.zeros_like(x[..., :1])
    rstd = 1 / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + eps)
    y = (x - mean) * rstd
    if weight is not None:
        y = y * weight.astype(np.float64)
    if bias is not None:
        y = y + bias.astype(np.float64)
    return y, mean[..., 0], rstd[..., 0]


def gradients(dy, x, weight, eps, centred=True):
    """The gradient of x; and what each element adds to those of weight and bias."""
    dy = dy.astype(np.float64)
    normal, _, rstd = normalized(x, None, None, eps, centred)
    g = dy if weight is None else dy * weight.astype(np.float64)
    level = g.mean(axis=-1, keepdims=True) if centred else 0
    dx = rstd[..., None] * (g - level - normal * (g * normal).mean(axis=-1, keepdims=True))
    return dx, dy * normal, dy
