"""Generators of random numbers: one for each device by default."""

from __future__ import annotations

import secrets
import struct
from typing import Any

import numpy as np

from .backend import CPU, Device, as_device, module_of, on_device, transfer
from .tensor import Tensor, as_array, wrap

_PCG64 = struct.Struct("<16s16sII")
_PHILOX_BYTES = 16


class Generator:
    """A stream of random numbers on one device: NumPy's PCG64 on the CPU, Philox with its state on the device on a GPU.

    The same seed gives the same numbers on the same kind of device, not across kinds.
    """

    stream: Any  # a numpy.random.Generator or a Philox

    def __init__(self, device: str | Device = "cpu") -> None:
        self.device = as_device(device)
        if self.device.type != "cpu":
            from ..kernels.cuda.random import Philox

            with on_device(self.device):
                self.stream = Philox(module_of(self.device).zeros(2, np.int64))
        self.manual_seed(secrets.randbits(63))

    def manual_seed(self, seed: int) -> Generator:
        """Start anew from `seed`, a whole number, and return the generator."""
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise TypeError(f"manual_seed: expected a whole number, got {type(seed).__name__}")
        number = seed.__index__() % 2**64
        if self.device.type == "cpu":
            self._seed = number
            self.stream = np.random.Generator(np.random.PCG64(number))
        else:
            self.restore(np.array([number, 0], np.uint64).view(np.int64))
        return self

    def seed(self) -> int:
        """Start anew from a number that nobody can foresee, and return it."""
        return self.manual_seed(secrets.randbits(63)).initial_seed()

    def initial_seed(self) -> int:
        """The seed from which the numbers come; of a GPU's generator it is read from there."""
        if self.device.type == "cpu":
            return self._seed
        return int(transfer(self.stream.place, CPU).view(np.uint64)[0])

    def get_state(self) -> Tensor:
        """All that decides the numbers to come, as a uint8 tensor on the CPU; of a GPU's generator 16 bytes."""
        if self.device.type != "cpu":
            return wrap(transfer(self.stream.place, CPU).view(np.uint8).copy())
        state = self.stream.bit_generator.state
        packed = _PCG64.pack(
            state["state"]["state"].to_bytes(16, "little"),
            state["state"]["inc"].to_bytes(16, "little"),
            state["has_uint32"],
            state["uinteger"],
        )
        return wrap(np.frombuffer(packed + struct.pack("<Q", self._seed), np.uint8).copy())

    def set_state(self, state: Any) -> Generator:
        """Go on from a state that `get_state` gave for this kind of device."""
        data = transfer(as_array(state), CPU)
        size = _PCG64.size + 8 if self.device.type == "cpu" else _PHILOX_BYTES
        if data.dtype != np.uint8 or data.shape != (size,):
            raise ValueError(f"set_state: expected a uint8 tensor of shape ({size},), got {data.dtype} of {data.shape}")
        if self.device.type != "cpu":
            self.restore(np.frombuffer(data.tobytes(), np.int64))
            return self
        value, increment, has_half, half = _PCG64.unpack(data[:-8].tobytes())
        (self._seed,) = struct.unpack("<Q", data[-8:].tobytes())
        self.stream.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": int.from_bytes(value, "little"), "inc": int.from_bytes(increment, "little")},
            "has_uint32": has_half,
            "uinteger": half,
        }
        return self

    def snapshot(self) -> Any:
        """The state for `restore`; nothing waits for a GPU."""
        return self.get_state() if self.device.type == "cpu" else self.stream.place.copy()

    def restore(self, snapshot: Any) -> None:
        """Go on from a `snapshot`. On a GPU the state stays where it is, so that captured graphs find it."""
        if self.device.type == "cpu":
            self.set_state(snapshot)
            return
        with on_device(self.device):
            self.stream.place[...] = transfer(snapshot, self.device)


_generators: dict[Device, Generator] = {}
_seed: int | None = None  # for generators of devices that are used for the first time later


def default_generator(device: Device = CPU) -> Generator:
    """The generator that operations on `device` use unless given one."""
    generator = _generators.get(device)
    if generator is None:
        generator = _generators[device] = Generator(device)
        if _seed is not None:
            generator.manual_seed(_seed)
    return generator


def manual_seed(seed: int) -> Generator:
    """Seed the default generators of all devices; returns the CPU's."""
    global _seed
    result = default_generator().manual_seed(seed)
    _seed = result.initial_seed()
    for generator in _generators.values():
        generator.manual_seed(_seed)
    return result


def seed() -> int:
    """Seed the default generators with a number that nobody can foresee, and return it."""
    return manual_seed(secrets.randbits(63)).initial_seed()


def initial_seed() -> int:
    """The seed of the CPU's default generator."""
    return default_generator().initial_seed()


def get_rng_state() -> Tensor:
    """The state of the CPU's default generator."""
    return default_generator().get_state()


def set_rng_state(state: Any) -> None:
    """Put the CPU's default generator into a state that `get_rng_state` gave."""
    default_generator().set_state(state)
