"""Every differentiable operation, by family. Importing this package attaches their methods to Tensor."""

from . import arithmetic, conversion, elementwise, reduction, shape

__all__ = ["arithmetic", "conversion", "elementwise", "reduction", "shape"]
