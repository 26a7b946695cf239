"""The memory and the streams of captured steps."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import host_cupy
import pytest
from capture_cases import OPTIMIZERS, Training, assert_same, device_fixture, host_fixture, numbers

import adjoint as ad
import adjoint.nn as nn
import adjoint.nn.functional as F
from adjoint import optim
from adjoint.engine import backend

device = device_fixture()
host = host_fixture()


def test_garbage_is_not_collected_within_a_capture(device: str) -> None:
    enabled = []

    def look(x: ad.Tensor) -> ad.Tensor:
        enabled.append(gc.isenabled())
        return x + 1

    step = ad.cuda.capture(look)
    for _ in range(3):
        step(ad.ones(1, device=device))
    assert enabled == [True, False] and gc.isenabled()


def live_bytes(device: str) -> int:
    """Bytes taken from the device, but for what the common pool keeps."""
    cupy = backend.cupy()
    gc.collect()
    cupy.cuda.get_current_stream().synchronize()
    cupy.get_default_memory_pool().free_all_blocks()
    if cupy.cuda.Memory is host_cupy.Memory:
        return host_cupy.Memory.live_bytes()
    free, total = cupy.cuda.runtime.memGetInfo()
    return total - free


def test_memory_goes_back_when_the_object_goes(device: str) -> None:
    x = ad.ones(2048, 2048, device=device)
    step = ad.cuda.capture(lambda x: ((x * 2).relu() + 1).sum())
    step(x)
    before = live_bytes(device)
    for _ in range(3):
        result = step(x)
    assert live_bytes(device) >= before + 2 * x.nbytes  # a static input, and what comes of it
    reference = weakref.ref(step)
    gc.disable()  # no cycle holds it
    try:
        del step
        assert reference() is None
    finally:
        gc.enable()
    assert live_bytes(device) <= before + x.nbytes // 8  # the result, and what the driver keeps
    assert result.item() == 3 * 2048**2


def test_what_outlives_the_object_keeps_its_memory(device: str) -> None:
    training = Training(device, OPTIMIZERS["SGD"])
    step = ad.cuda.capture(training.step)
    for i in range(3):
        step(*training.batch(i))
    before = training.state()
    del step
    gc.collect()
    backend.cupy().get_default_memory_pool().free_all_blocks()
    others = [ad.zeros(4096, device=device) for _ in range(64)]
    assert_same(training.state(), before)
    training.step(*training.batch(3))
    assert len(others) == 64


def test_memory_goes_back_after_an_error(device: str) -> None:
    x = ad.ones(1024, 1024, device=device)

    def fail(x: ad.Tensor) -> None:
        y = x + 1
        (y * 2).sum().item()

    step = ad.cuda.capture(fail)
    step(x)
    before = live_bytes(device)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            step(x)
        step(x)
    assert live_bytes(device) <= before


def test_what_the_step_frees_serves_again_in_its_graph(host: str) -> None:
    def deep(x: ad.Tensor) -> ad.Tensor:
        for _ in range(50):
            x = x + 1
        return x

    step = ad.cuda.capture(deep)
    x = ad.zeros(1000, device=host)
    for _ in range(3):
        assert numbers(step(x)) == [50.0] * 1000
    (run,) = step._runs.values()
    assert run[0].graph.memory.nbytes <= 5 * 4096


def test_a_pool_that_is_short_gives_nothing_back_that_the_graph_uses(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short of memory, CuPy's pool frees its free blocks, also during a capture."""
    malloc = host_cupy.MemoryPool.malloc

    def short(pool: host_cupy.MemoryPool, nbytes: int) -> Any:
        pool.free_all_blocks()
        return malloc(pool, nbytes)

    monkeypatch.setattr(host_cupy.MemoryPool, "malloc", short)
    step = ad.cuda.capture(lambda x: ((x + 1) * 2 + x).sum())
    for i in range(4):
        assert numbers(step(ad.ones(500, device=host) * i)) == 500 * (3 * i + 2)


def test_the_default_stream_is_not_captured(host: str) -> None:
    """The capture has a stream of its own, whichever is the user's; the replay goes to the user's."""
    cupy = backend.cupy()
    step = ad.cuda.capture(lambda x: x + 1)
    stream = cupy.cuda.Stream(non_blocking=True)
    for i in range(6):
        with stream if i % 2 else cupy.cuda.Stream(null=True):
            assert numbers(step(ad.ones(1, device=host))) == [2]
    with pytest.raises(RuntimeError, match="default"):
        cupy.cuda.Stream(null=True).begin_capture()


def test_the_stand_in_has_nothing_that_cupy_lacks() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed; its names cannot be looked up (it needs no GPU)")
    stand_in = host_cupy.module()
    for name in vars(stand_in.cuda):
        assert hasattr(cupy.cuda, name), name
    for name, members in {
        "Stream": "begin_capture end_capture is_capturing synchronize",
        "Graph": "launch",
        "MemoryPool": "malloc free_all_blocks",
        "Memory": "ptr size device_id",
        "MemoryPointer": "ptr mem device_id",
        "UnownedMemory": "ptr size _owner device_id",
    }.items():
        for member in members.split():
            assert hasattr(getattr(cupy.cuda, name), member), (name, member)
    owner = object()
    memory = cupy.cuda.UnownedMemory(512, 16, owner, 3)
    pointer = cupy.cuda.MemoryPointer(memory, 0)
    assert (pointer.ptr, pointer.device_id) == (512, 3) and pointer.mem is memory and memory._owner is owner
    assert callable(cupy.get_default_pinned_memory_pool().malloc)


def test_what_a_graph_writes_first_does_not_lie_where_its_numbers_are(device: str) -> None:
    """Gradients that are gone when the optimizer runs leave memory of the size that its numbers need."""

    def losses(captured: bool) -> list[float]:
        ad.manual_seed(0)
        model = nn.Sequential(nn.Linear(144, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
        model = model.to(device)
        optimizer = optim.SGD(model.parameters(), 0.1)
        x, y = ad.randn(4, 144).to(device), ad.arange(4).to(device)

        def step(x: ad.Tensor, y: ad.Tensor) -> ad.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        call = ad.cuda.capture(step) if captured else step
        return [float(call(x, y).cpu()) for _ in range(4)]

    eager = losses(False)
    assert losses(True) == eager and len(set(eager)) == 4


def test_a_generator_that_the_program_let_go_stays_with_the_graph(device: str) -> None:
    generators = [ad.Generator(device).manual_seed(3)]
    step = ad.cuda.capture(lambda x: x + ad.rand(4, generator=generators[0], device=device))
    x = ad.zeros(4, device=device)
    for _ in range(3):
        step(x)
    generators.clear()
    backend.cupy().get_default_memory_pool().free_all_blocks()
    assert all(0 <= number < 1 for number in numbers(step(x)))


def test_an_index_that_the_program_let_go_stays_with_the_graph(device: str) -> None:
    order = [ad.tensor([1, 0], device=device)]
    step = ad.cuda.capture(lambda x: x[order[0]])
    x = ad.tensor([3.0, 4.0], device=device)
    for _ in range(3):
        step(x)
    order.clear()
    backend.cupy().get_default_memory_pool().free_all_blocks()
    assert numbers(step(x)) == [4, 3]


def test_a_capture_in_another_thread_waits(device: str) -> None:
    """Whether garbage is collected and where pinned memory comes from is the same for all threads."""
    events: list[Any] = []
    threads: list[threading.Thread] = []

    def beside() -> None:
        step = ad.cuda.capture(lambda x: x + 1)
        for _ in range(2):
            step(ad.ones(2, device=device))
        events.append("captured beside")

    def work(x: ad.Tensor) -> ad.Tensor:
        if events:
            threads.append(threading.Thread(target=beside))
            threads[0].start()
            threads[0].join(0.2)
            events.append("captured" if not gc.isenabled() else "disturbed")
        events.append("ran")
        return x * 2

    step = ad.cuda.capture(work)
    for _ in range(2):
        step(ad.ones(2, device=device))
    threads[0].join()
    assert events == ["ran", "captured", "ran", "captured beside"] and gc.isenabled()
