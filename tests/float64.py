"""Tensors in double precision for tests of gradients, and their comparison."""

from __future__ import annotations

from typing import Any

import numpy as np

from adjoint import Tensor


def tensor(values: Any, requires_grad: bool = True) -> Tensor:
    """A float64 leaf."""
    return Tensor(np.array(values, dtype=np.float64), requires_grad=requires_grad)


def same(actual: Any, expected: Any) -> None:
    """Assert that a tensor holds the expected numbers, but for rounding."""
    assert actual is not None
    np.testing.assert_allclose(actual.detach().numpy(), np.asarray(expected), rtol=1e-12, atol=1e-14)
