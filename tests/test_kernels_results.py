"""Memory of large results, which is used again once nobody holds it."""

import gc
import importlib.util
import sys
import threading

import numpy as np
import pytest

import adjoint as ad
from adjoint import kernels
from adjoint.kernels.cpu import results

FLOAT = np.dtype(np.float32)
LARGE = (600, 1000)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(results, "_kept", {})


def start(array):
    return array.ctypes.data


def test_memory_is_used_again_for_results_of_its_size():
    first = start(results.empty(LARGE, FLOAT))
    assert start(results.empty(LARGE[::-1], FLOAT)) == first
    assert start(results.empty((300, 1000), np.dtype(np.float64))) == first
    assert start(results.empty((601, 1000), FLOAT)) != first


@pytest.mark.parametrize(
    "view",
    [lambda a: a, lambda a: a[3:4, ::2], lambda a: a.reshape(-1, 2).T, memoryview, ad.from_numpy],
    ids=["itself", "part", "shape", "buffer", "tensor"],
)
def test_memory_that_anyone_sees_is_not(view):
    array = results.empty(LARGE, FLOAT)
    first, held = start(array), view(array)
    del array
    assert start(results.empty(LARGE, FLOAT)) != first
    del held
    gc.collect()
    assert first in [start(other) for other in [results.empty(LARGE, FLOAT) for _ in range(2)]]


@pytest.mark.parametrize("traced", ["import", "calls"])
def test_memory_is_not_shared_where_a_debugger_looks_at_local_variables(traced):
    """Which refers to them, so that no count of references taken once tells how many a variable has."""

    def look(frame, event, argument):
        return look if frame.f_locals is not None else None

    module = importlib.util.module_from_spec(importlib.util.find_spec(results.__name__))
    before = sys.gettrace()
    sys.settrace(look)
    try:
        module.__spec__.loader.exec_module(module)
        sys.settrace(look if traced == "calls" else before)
        held = [start(array) for array in [module.empty(LARGE, FLOAT) for _ in range(4)]]
    finally:
        sys.settrace(before)
    assert len(set(held)) == 4


def test_small_results_are_arrays_like_any_other():
    assert results.empty((1000,), FLOAT).base is None
    assert not results._kept


def test_zeros():
    results.empty(LARGE, FLOAT).fill(7)
    assert not results.zeros(LARGE, FLOAT).any()
    assert not results.zeros((5,), FLOAT).any()


def test_no_more_is_kept_than_a_limit(monkeypatch):
    size = FLOAT.itemsize * LARGE[0] * LARGE[1]
    monkeypatch.setattr(results, "_MOST_BYTES", 2 * size)
    held = [results.empty(LARGE, FLOAT) for _ in range(3)]
    assert [array.base is None for array in held] == [False, False, True]
    assert sum(map(len, results._kept.values())) == 2
    held.clear()
    # Another size takes the place of one that nobody holds.
    held.append(results.empty((*LARGE, 2), FLOAT))
    assert held[0].base is not None and results._has_room(0)
    assert sum(len(same) * each for each, same in results._kept.items()) == 2 * size


def test_sizes_of_which_nothing_is_kept_are_forgotten(monkeypatch):
    size = FLOAT.itemsize * LARGE[0] * LARGE[1]
    monkeypatch.setattr(results, "_MOST_BYTES", 3 * size)
    for more in range(20):
        results.empty((LARGE[0] * LARGE[1] + more,), FLOAT)
    assert len(results._kept) <= 3


def test_threads_never_share():
    def work(mine, barrier):
        barrier.wait()
        for k in range(300):
            array = results.empty(LARGE, FLOAT)
            array[::100] = mine
            if not (array[::100] == mine).all():
                wrong.append(k)

    wrong, barrier = [], threading.Barrier(4)
    threads = [threading.Thread(target=work, args=(mine, barrier)) for mine in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(map(len, results._kept.values())) <= 20


def test_convolutions_make_their_results_of_it():
    x, weight = np.ones((16, 64, 32, 32), np.float32), np.ones((512, 64, 3, 3), np.float32)
    settings = ((2, 2), ((1, 1), (1, 1)), (1, 1), 1)

    def run():
        y = kernels.conv(x, weight, None, *settings)
        dx = kernels.conv_input_grad(y, weight, x.shape, *settings)
        return [start(a) for a in (y, dx, kernels.conv_weight_grad(y, x, weight.shape, *settings))]

    assert run() == run()


def test_a_leaf_takes_such_a_gradient_without_copying():
    weight = ad.tensor(np.ones((512, 64, 3, 3), np.float32), requires_grad=True)
    x = ad.tensor(np.ones((4, 64, 8, 8), np.float32))
    for _ in range(2):
        weight.grad = None
        ad.nn.functional.conv2d(x, weight, padding=1).sum().backward()
        assert type(weight.grad.numpy().base) is results.Memory
        kept = weight.grad.numpy().copy()
    # The next gradient does not take the memory of this one.
    first = weight.grad
    weight.grad = None
    (2 * ad.nn.functional.conv2d(x, weight, padding=1)).sum().backward()
    np.testing.assert_array_equal(first.numpy(), kept)
    np.testing.assert_array_equal(weight.grad.numpy(), 2 * kept)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool"])
def test_sums_take_kept_memory(dtype):
    a, b = (np.random.default_rng(seed).integers(0, 3, (2, *LARGE)).astype(dtype) for seed in (0, 1))
    before = results.empty(a.shape, a.dtype)
    place = start(before)
    del before
    total = results.add(a, b)
    assert start(total) == place and total.dtype == a.dtype
    np.testing.assert_array_equal(total, a + b)


def test_sums_of_what_is_not_alike_are_numpys():
    a = np.ones(LARGE, FLOAT)
    for b in (1.0, a[:1], a.astype(np.float64), np.asfortranarray(a), a[0, 0]):
        found, wanted = results.add(a, b), a + b
        assert found.dtype == wanted.dtype and found.base is None
        np.testing.assert_array_equal(found, wanted)
