import threading

import numpy as np
import pytest

from adjoint.kernels.cpu import results

SHAPE, DTYPE = (3, 1 << 18), np.dtype(np.float32)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(results, "_known", [])


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_nobody_holds_it():
    first = results.empty(SHAPE, DTYPE)
    assert first.shape == SHAPE and first.dtype == DTYPE and first.flags.c_contiguous and first.flags.writeable
    where = address(first)
    del first
    assert address(results.empty(SHAPE[::-1], np.dtype(np.int32))) == where


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array,
        lambda array: array[1, 5:7],
        lambda array: array.T.reshape(-1, 2)[::2].view(np.int32),
        lambda array: memoryview(array),
        lambda array: np.lib.stride_tricks.as_strided(array, (2,), (4,)),
        lambda array: np.from_dlpack(array),
    ],
    ids=["itself", "part", "views of views", "memoryview", "as_strided", "dlpack"],
)
def test_what_shows_the_memory_keeps_it(hold):
    array = results.empty(SHAPE, DTYPE)
    array.fill(7)
    held = hold(array)
    del array
    other = results.empty(SHAPE, DTYPE)
    other.fill(0)
    assert not np.shares_memory(np.asarray(held), other)
    assert np.asarray(held).size


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(results, "_MOST_BYTES", 10 << 20)
    for rows in range(1, 40):
        results.empty((rows, 1 << 18), DTYPE)
        assert sum(memory.nbytes for memory in results._known) <= 10 << 20
    assert results._known


def test_a_much_larger_block_is_left_alone():
    del results._known[:]
    results.empty((8, 1 << 18), DTYPE)
    results.empty((2, 1 << 18), DTYPE)
    assert len(results._known) == 2


def test_threads_never_share_a_block():
    seen = []

    def work(value):
        for _ in range(200):
            array = results.empty((1, 1 << 18), DTYPE)
            array.fill(value)
            if not (array == value).all():
                seen.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not seen
