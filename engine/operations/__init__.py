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
    logic,
    reduction,
    sampling,
    shape,
    slicing,
    softmax,
    sorting,
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
    "logic",
    "reduction",
    "sampling",
    "shape",
    "slicing",
    "softmax",
    "sorting",
]
