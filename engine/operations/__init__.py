"""Every differentiable operation, by family. Importing this package attaches their methods to Tensor."""

from . import (
    arithmetic,
    conversion,
    creation,
    elementwise,
    gathering,
    indexing,
    joining,
    linalg,
    reduction,
    sampling,
    shape,
    slicing,
)

__all__ = [
    "arithmetic",
    "conversion",
    "creation",
    "elementwise",
    "gathering",
    "indexing",
    "joining",
    "linalg",
    "reduction",
    "sampling",
    "shape",
    "slicing",
]
