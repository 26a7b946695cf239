"""What a suite is made of: cases, and the goals that their times are held to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .library import Library

# A step runs the operation once and returns the tensors that tell whether it was right.
Step = Callable[[], Sequence[Any]]


@dataclass(frozen=True)
class Timed:
    """An operation that is timed.

    `make(library, dtype)` prepares it, with the same values for each library. `bytes` and `operations` are
    what any implementation must move and compute; the floor of its time follows from them. With `check` the
    first results are compared with float64.
    """

    operation: str
    shape: str
    make: Callable[[Library, str], Step]
    dtype: str = "float32"
    bytes: int = 0
    operations: int = 0
    check: bool = True


@dataclass(frozen=True)
class Counted:
    """A number that a fresh process prints for each library: `python ARGUMENTS`, with {library} filled in."""

    operation: str
    shape: str
    arguments: tuple[str, ...]
    unit: str  # "s" or "B"
    dtype: str = ""


Case = Timed | Counted


@dataclass(frozen=True)
class Goal:
    """What the rows of one operation must reach: our number over the peer's, or our number itself."""

    operation: str
    ratio: float | None = None
    value: float | None = None


@dataclass(frozen=True)
class Suite:
    """Cases for each device, and goals for the CPU."""

    name: str
    cpu: Sequence[Case]
    cuda: Sequence[Case] = ()
    goals: Sequence[Goal] = field(default_factory=tuple)

    def cases(self, device: str) -> Sequence[Case]:
        """The cases of a device."""
        return self.cpu if device == "cpu" else self.cuda
