"""`adjoint.cuda`: what there is of GPUs."""

from .backend import cuda_is_available as is_available
from .backend import device_count, synchronize

__all__ = ["device_count", "is_available", "synchronize"]
