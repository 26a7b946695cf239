"""One benchmark shape of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes  # noqa: F401 -- NumPy knows "bfloat16" from it
import numpy as np


@dataclass(frozen=True)
class Case:
    """A call of `kernels.cuda`, at a size that a traced run on the host takes milliseconds for.

    Rows and planes are as in the benchmark shape that it stands for; there are fewer of them.
    """

    operation: str
    shape: str  # the benchmark shape
    dtype: str
    # Makes the inputs; returns the call, whose launches are counted.
    prepare: Callable[[], Callable[[], object]]
    needed: int  # bytes that any implementation must read or write, at the traced size
    operations: int | None = None  # of floating point, where they might be the bound
    capability: int | None = None  # of the device to stand in for, where it must be a certain one
    # Limits that the tests hold; a case with others says why.
    most_bytes: float = 1.1  # moved, over those needed
    most_sectors: float = 1.25  # of a request, over the fewest that hold its bytes
    most_conflicts: float = 0.1  # cycles lost in a request to shared memory
    why: str = ""
    family: str = ""  # set to the module's name

    def __post_init__(self) -> None:
        usual = (self.most_bytes, self.most_sectors, self.most_conflicts) == (1.1, 1.25, 0.1)
        if usual == bool(self.why):
            raise ValueError(f"{self}: limits of its own and `why` go together")

    def __str__(self) -> str:
        return " ".join(text for text in (self.family, self.operation, self.shape, self.dtype) if text)


def normal(shape: Sequence[int], dtype: str, seed: int = 0) -> Any:
    """An array of normally distributed numbers."""
    return np.random.default_rng(seed).standard_normal(tuple(shape), np.float32).astype(dtype)


def itemsize(dtype: str) -> int:
    """Bytes of one value."""
    return np.dtype(dtype).itemsize
