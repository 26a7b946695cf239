"""`adjoint.cuda`: what there is of GPUs, steps as CUDA graphs, and generators of random numbers."""

from __future__ import annotations

from typing import Any

from .backend import Device, as_device, device_count, synchronize
from .backend import cuda_is_available as is_available
from .capture import capture
from .random import default_generator
from .tensor import Tensor

__all__ = [
    "capture",
    "device_count",
    "get_rng_state",
    "initial_seed",
    "is_available",
    "manual_seed",
    "manual_seed_all",
    "set_rng_state",
    "synchronize",
]


def manual_seed(seed: int) -> None:
    """Seed the generator of the current GPU; does nothing where there is no GPU."""
    if is_available():
        default_generator(as_device("cuda")).manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seed the generators of all GPUs; does nothing where there is no GPU."""
    for index in range(device_count()):
        default_generator(as_device(Device("cuda", index))).manual_seed(seed)


def initial_seed() -> int:
    """The seed of the current GPU's generator."""
    return default_generator(as_device("cuda")).initial_seed()


def get_rng_state(device: str | Device = "cuda") -> Tensor:
    """The state of a GPU's generator: 16 bytes, uint8 on the CPU."""
    return default_generator(as_device(device)).get_state()


def set_rng_state(new_state: Any, device: str | Device = "cuda") -> None:
    """Put a GPU's generator into a state that `get_rng_state` gave."""
    default_generator(as_device(device)).set_state(new_state)
