"""Whose memory the gradient of a leaf is: its own, taken without a copy where nobody else sees it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from float64 import same, tensor

from adjoint import Tensor


def gradient_of_a_leaf_given(array: np.ndarray) -> np.ndarray:
    """`grad` of a leaf where a gradient with this array arrives; the caller's name for it is gone by then."""
    x, given = tensor(np.ones((3, 4))), [array]
    del array
    x.register_hook(lambda _: Tensor(given.pop()))
    x.sum().backward()
    assert x.grad is not None
    return x.grad.data


def test_a_leaf_takes_the_first_gradient_if_its_memory_is_nobody_elses() -> None:
    addresses = []

    def fresh(*shape: int) -> np.ndarray:
        array = np.full(shape, 7.0)
        addresses.append(array.ctypes.data)
        return array

    for number, found in enumerate(
        [gradient_of_a_leaf_given(fresh(3, 4)), gradient_of_a_leaf_given(fresh(12).reshape(3, 4))]
    ):
        assert found.ctypes.data == addresses[number] and (found == 7).all()


@pytest.mark.parametrize(
    ("base", "view"),
    [
        (np.full((3, 4), 7.0), lambda base: base),
        (np.full(12, 7.0), lambda base: base.reshape(3, 4)),
        (np.full((2, 3, 4), 7.0), lambda base: base[1]),
        (np.full((3, 4), 7.0), np.lib.stride_tricks.as_strided),
        (bytearray(np.full(12, 7.0).tobytes()), lambda base: np.frombuffer(base).reshape(3, 4)),
        (np.full((3, 4), 7.0), lambda base: without_an_owner(base)),
    ],
)
def test_a_leaf_copies_a_gradient_that_somebody_else_sees(base: Any, view: Callable[[Any], np.ndarray]) -> None:
    found = gradient_of_a_leaf_given(view(base))
    assert (found == 7).all() and not np.shares_memory(found, np.asarray(base))


def without_an_owner(memory: np.ndarray) -> np.ndarray:
    """An array as C libraries make them of their own memory, which refers to nothing."""
    pointer, words = ctypes.c_void_p, ctypes.c_ssize_t * memory.ndim
    capsule = ctypes.PYFUNCTYPE(pointer, ctypes.py_object, pointer)(("PyCapsule_GetPointer", ctypes.pythonapi))
    table = ctypes.cast(capsule(np._core.multiarray._ARRAY_API, None), ctypes.POINTER(pointer))
    new = ctypes.PYFUNCTYPE(
        ctypes.py_object, ctypes.py_object, ctypes.c_int, words, ctypes.c_int, pointer, pointer,
        ctypes.c_int, ctypes.c_int, pointer,
    )(table[93])  # fmt: skip
    made = new(
        np.ndarray, memory.ndim, words(*memory.shape), memory.dtype.num, None, memory.ctypes.data, 0, 0x501, None
    )
    assert made.base is None and not made.flags.owndata
    return made


@pytest.mark.parametrize(
    "export",
    [
        lambda a: a, lambda a: a[:1], lambda a: a.T[::-1], lambda a: a.flat, lambda a: a.ctypes, memoryview, np.nditer,
        lambda a: a.__dlpack__(), lambda a: a.__array_struct__, np.from_dlpack, Tensor, lambda a: lambda: a,
    ],
)  # fmt: skip
@pytest.mark.parametrize("base", [lambda a: a, lambda a: a.base])
def test_a_leaf_copies_a_gradient_that_was_handed_out(export: Callable[[Any], Any], base: Callable[[Any], Any]) -> None:
    held, addresses = [], []

    def gradient() -> np.ndarray:
        array = np.full(12, 7.0).reshape(3, 4)
        held.append(export(base(array)))
        addresses.append(array.ctypes.data)
        return array

    assert gradient_of_a_leaf_given(gradient()).ctypes.data not in addresses


def test_gradients_that_cannot_be_written_to_are_added_up() -> None:
    x = tensor(np.ones((3, 4)))

    def constant(_: Tensor) -> Tensor:
        array = np.full((3, 4), 7.0)
        array.flags.writeable = False
        return Tensor(array)

    x.register_hook(constant)
    for total in (7, 14):
        x.sum().backward()
        same(x.grad, np.full((3, 4), total))


def test_a_leaf_copies_parts_and_transposed_gradients() -> None:
    for given in (np.full((2, 3, 4), 7.0)[1], np.full((4, 3), 7.0).T):
        found = gradient_of_a_leaf_given(given)
        assert found.base is None and found.flags.c_contiguous and (found == 7).all()


def test_leaves_that_get_one_gradient_have_memory_of_their_own() -> None:
    x, y, seen = tensor([1.0, 2.0]), tensor([3.0, 4.0]), []
    total = x + y
    total.register_hook(seen.append)
    (total * 2).sum().backward()
    assert x.grad is not None and y.grad is not None
    x.grad.data[...] = 7
    y.grad.data[...] = 8
    same(seen[0], [2, 2])
    same(x.grad, [7, 7])
