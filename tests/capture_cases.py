"""What the tests of `cuda.capture` share: devices, and a network in training."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import host_cupy
import numpy as np
import pytest

import adjoint as ad
import adjoint.nn as nn
import adjoint.nn.functional as F
from adjoint import optim
from adjoint.engine import backend, random
from cuda_on_host import compiler, installed


def host_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if compiler() is None:
        pytest.skip("needs a C++ compiler (g++, or set CXX)")
    monkeypatch.setitem(sys.modules, "cupy", host_cupy.module())
    monkeypatch.setattr(random, "_generators", {})
    backend.cupy.cache_clear()
    ad.set_default_device("cpu")
    with installed(host_cupy.Launcher()):
        yield "cuda"
    assert host_cupy.Stream.open_captures == 0 and gc.isenabled()
    ad.set_default_device(None)
    backend.cupy.cache_clear()


def real_gpu() -> str:
    cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install 'cupy-cuda12x[ctk]' (or 13x)")
    if not cupy.is_available():
        pytest.skip("needs a GPU: CuPy finds no CUDA device")
    return "cuda"


def host_fixture() -> Any:
    """A fixture: the device "cuda", which is the stand-in for CuPy."""

    @pytest.fixture
    def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        yield from host_gpu(monkeypatch)

    return host


def device_fixture() -> Any:
    """A fixture over the stand-in for CuPy and, where there is one, a GPU."""

    @pytest.fixture(params=["cuda-on-host", "cuda"])
    def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        if request.param == "cuda-on-host":
            yield from host_gpu(monkeypatch)
            return
        name = real_gpu()
        ad.set_default_device("cpu")
        yield name
        ad.set_default_device(None)

    return device


class LeNet(nn.Module):
    """A small one, with dropout and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 3 * 3, 10), nn.Dropout(0.3), nn.Linear(10, 5))

    def forward(self, x: ad.Tensor) -> ad.Tensor:
        return self.head(self.features(x))


OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, 0.1),
    "SGD-momentum": lambda p: optim.SGD(p, 0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "Adam": lambda p: optim.Adam(p, 0.01, weight_decay=0.1),
    "Adam-amsgrad": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "Adam-lr-tensor": lambda p: optim.Adam(p, ad.tensor(0.01, device=p[0].device)),
    "AdamW": lambda p: optim.AdamW(p, 0.01),
    "RMSprop": lambda p: optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p: optim.Adagrad(p, 0.1, lr_decay=0.1),
    "Adadelta": lambda p: optim.Adadelta(p, 0.5, weight_decay=0.1),
    "NAdam": lambda p: optim.NAdam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "RAdam": lambda p: optim.RAdam(p, 0.01, betas=(0.9, 0.7)),  # variance counts from step 4 on
    "Adamax": lambda p: optim.Adamax(p, 0.01),
}


class Training:
    """A network, an optimizer and a schedule, all made from one seed."""

    def __init__(self, device: str, make: Callable[[Any], optim.Optimizer]) -> None:
        ad.manual_seed(3)
        self.device = device
        self.model = LeNet().to(device)
        self.optimizer = make(list(self.model.parameters()))
        self.schedule = optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        ad.cuda.manual_seed(7)

    def step(self, x: ad.Tensor, y: ad.Tensor) -> tuple[ad.Tensor, ad.Tensor]:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        return loss, norm

    def batch(self, i: int, count: int = 4) -> tuple[ad.Tensor, ad.Tensor]:
        rng = np.random.default_rng(i)
        x = rng.standard_normal((count, 1, 12, 12)).astype(np.float32)
        return ad.tensor(x, device=self.device), ad.tensor(rng.integers(0, 5, count), device=self.device)

    def state(self) -> dict[str, Any]:
        """All that a step changes, on the host."""
        found = {name: tensor.cpu().numpy().copy() for name, tensor in self.model.state_dict().items()}
        for i, parameter in enumerate(self.model.parameters()):
            found[f"grad {i}"] = None if parameter.grad is None else parameter.grad.cpu().numpy().copy()
        for i, known in self.optimizer.state_dict()["state"].items():
            for name, value in known.items():
                found[f"{name} {i}"] = value.cpu().numpy().copy() if isinstance(value, ad.Tensor) else value
        found["generator"] = random.default_generator(backend.as_device(self.device)).get_state().numpy().copy()
        return found


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not np.array_equal(found[name], wanted[name])]
    assert not different, different


def parameter(device: str, *values: float) -> ad.Tensor:
    return ad.tensor(list(values), device=device, requires_grad=True)


def numbers(tensor: Any) -> list[float]:
    return tensor.detach().cpu().tolist()
