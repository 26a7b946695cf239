"""What a suite is made of: cases, and the goals that their times are held to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .library import CHANNELS_LAST, Library

# What float32 products are on a GPU, and half a float32: pairs of dtype and precision.
FORMATS = (("float32", "highest"), ("float32", "high"), ("bfloat16", "highest"))
# In which PyTorch is asked: images with their channels first, and last.
LAYOUTS = ("", CHANNELS_LAST)

# A step runs the operation once and returns the tensors that tell whether it was right.
Step = Callable[[], Sequence[Any]]


@dataclass(frozen=True)
class Leaving:
    """A step that leaves more than it returns: `left` gives the rest, which a captured step need not hand out."""

    run: Step
    left: Step

    def __call__(self) -> Sequence[Any]:
        return self.run()


@dataclass(frozen=True)
class Timed:
    """An operation that is timed.

    `make(library, dtype)` prepares it, with the same values for each library. `bytes` and `operations` are
    what any implementation must move and compute; the floor of its time follows from them. With `check` the
    first results are compared with float64. The peer runs in each of `layouts`, and the fastest counts. With
    `captured` each side runs the step as a CUDA graph.
    """

    operation: str
    shape: str
    make: Callable[[Library, str], Step]
    dtype: str = "float32"
    bytes: int = 0
    operations: int = 0
    check: bool = True
    precision: str = "highest"  # of float32 products on a GPU: "high" for TF32
    layouts: Sequence[str] = ("",)
    captured: bool = False

    @property
    def arithmetic(self) -> str:
        """What products are computed in: the dtype, or tf32."""
        return "tf32" if self.dtype == "float32" and self.precision == "high" else self.dtype


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
    """What the rows of one operation must reach: our number over the peer's, or our number itself.

    `arithmetic` picks the rows of one kind of products. `against` names the operation whose peer's times count, for
    instance those of the step that is not captured.
    """

    operation: str
    ratio: float | None = None
    value: float | None = None
    arithmetic: str | None = None
    against: str | None = None


@dataclass(frozen=True)
class Suite:
    """Cases for each device, and their goals."""

    name: str
    cpu: Sequence[Case]
    cuda: Sequence[Case] = ()
    goals: Sequence[Goal] = field(default_factory=tuple)
    cuda_goals: Sequence[Goal] = field(default_factory=tuple)

    def cases(self, device: str) -> Sequence[Case]:
        """The cases of a device."""
        return self.cpu if device == "cpu" else self.cuda

    def goals_of(self, device: str) -> Sequence[Goal]:
        """The goals of a device."""
        return self.goals if device == "cpu" else self.cuda_goals


def itemsize(dtype: str) -> int:
    """Bytes of one value."""
    return {"float64": 8, "float32": 4}.get(dtype, 2)
