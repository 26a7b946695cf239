"""Indexing and assignment, with their gradients, against PyTorch's for indices of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjoint.engine import Tensor
from adjoint.engine.operations.define import functions
from adjoint.engine.operations.positions import sorted_sums, sums_at


@pytest.fixture(scope="module")
def torch() -> Any:
    """The reference."""
    return pytest.importorskip("torch", reason="the reference is PyTorch (extra `peers`)")


def as_index(index: Any, kind: Any) -> Any:
    """`index` with its arrays as tensors of one library."""
    if isinstance(index, tuple):
        return tuple(as_index(item, kind) for item in index)
    return kind(np.ascontiguousarray(index)) if isinstance(index, np.ndarray) else index


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """An index for a tensor of `shape`: integers, slices, None, Ellipsis, lists, integer tensors, masks."""
    items: list[Any] = []
    common = draw(st.sampled_from([(2,), (3,), (2, 2), (1,)]))
    dim = 0
    masked = False
    while dim < len(shape) and draw(st.integers(0, 5)):
        size = shape[dim]
        kinds = ["slice", "none"] + ["int", "array", "list"] * (size > 0) + ["mask"] * (not masked)
        kind = draw(st.sampled_from(kinds))
        if kind == "none":
            items.append(None)
            continue
        if kind == "int":
            items.append(draw(st.integers(-size, size - 1)))
        elif kind == "slice":
            start, stop = draw(st.integers(-size - 1, size + 1)), draw(st.integers(-size - 1, size + 1))
            items.append(slice(start, stop, draw(st.integers(1, 3))))
        elif kind in ("array", "list"):
            count = int(np.prod(common))
            values = draw(st.lists(st.integers(-size, size - 1), min_size=count, max_size=count))
            array = np.array(values).reshape(common)
            items.append(array if kind == "array" else array.tolist())
        elif common != (1,):
            items.append(slice(None))  # a mask beside index arrays need not broadcast with them
        else:
            depth = draw(st.integers(1, len(shape) - dim))
            covered = shape[dim : dim + depth]
            bits = draw(st.lists(st.booleans(), min_size=int(np.prod(covered)), max_size=int(np.prod(covered))))
            items.append(np.array(bits, bool).reshape(covered))
            masked = True
            dim += depth - 1
        dim += 1
    if draw(st.booleans()) and len(items) < 5:
        items.append(Ellipsis)
    single = len(items) == 1 and not isinstance(items[0], list)  # PyTorch warns of a bare nested list
    return items[0] if single and draw(st.booleans()) else tuple(items)


CASES = st.sampled_from([(3, 4), (5,), (2, 3, 4), (3, 1, 2, 2), (0, 3)]).flatmap(
    lambda shape: st.tuples(st.just(shape), indices(shape))
)


@given(CASES)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_getitem_is_that_of_pytorch(torch: Any, case: tuple[tuple[int, ...], Any]) -> None:
    shape, index = case
    values = np.random.default_rng(0).standard_normal(shape)
    mine: Any = Tensor(values.copy(), requires_grad=True)
    other = torch.tensor(values, requires_grad=True)
    expected = other[as_index(index, torch.tensor)]
    got = mine[as_index(index, Tensor)]
    assert got.shape == tuple(expected.shape)
    np.testing.assert_array_equal(got.detach().numpy(), expected.detach().numpy())
    direction = np.asarray(np.random.default_rng(1).standard_normal(got.shape))
    got.backward(Tensor(direction))
    expected.backward(torch.tensor(direction))
    np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-12, atol=1e-14)
    basic = not any(isinstance(item, np.ndarray | list) for item in (index if isinstance(index, tuple) else (index,)))
    if got.numel():
        assert np.may_share_memory(got.data, mine.data) == basic, "a view exactly for integers and slices"


@given(CASES, st.booleans())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_setitem_is_that_of_pytorch(torch: Any, case: tuple[tuple[int, ...], Any], scalar: bool) -> None:
    shape, index = case
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape)
    positions = np.arange(values.size).reshape(shape)
    named = Tensor(positions)[as_index(index, Tensor)]
    unique = len(np.unique(named.data)) == named.numel()
    new = np.asarray(rng.standard_normal(() if scalar else named.shape))
    leaves: list[Any] = [Tensor(values.copy(), requires_grad=True), Tensor(new.copy(), requires_grad=True)]
    others = [torch.tensor(values, requires_grad=True), torch.tensor(new, requires_grad=True)]
    mine, other = leaves[0] * 1, others[0] * 1
    mine[as_index(index, Tensor)] = leaves[1]
    if not unique and not scalar:
        return  # PyTorch leaves open which value wins; below is a test of ours
    other[as_index(index, torch.tensor)] = others[1]
    np.testing.assert_array_equal(mine.detach().numpy(), other.detach().numpy())
    direction = rng.standard_normal(shape)
    mine.backward(Tensor(direction))
    other.backward(torch.tensor(direction))
    if unique:
        np.testing.assert_allclose(leaves[0].grad.numpy(), others[0].grad.numpy())
        mine_grad = np.zeros_like(new) if leaves[1].grad is None else leaves[1].grad.numpy()
        other_grad = np.zeros_like(new) if others[1].grad is None else others[1].grad.numpy()
        np.testing.assert_allclose(mine_grad, other_grad, rtol=1e-12, atol=1e-14)


def test_of_values_written_to_one_place_the_last_gets_the_gradient() -> None:
    x: Any = Tensor(np.zeros((3, 2)), requires_grad=True)
    value: Any = Tensor(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), requires_grad=True)
    y = x * 1
    y[[1, 0, 1]] = value
    assert y.tolist() == [[3.0, 4.0], [5.0, 6.0], [0.0, 0.0]]
    (y * Tensor(np.array([[1.0], [10.0], [100.0]]))).sum().backward()
    assert value.grad.tolist() == [[0.0, 0.0], [1.0, 1.0], [10.0, 10.0]]
    assert x.grad.tolist() == [[0.0, 0.0], [0.0, 0.0], [100.0, 100.0]]


def test_repeated_indices_add_up() -> None:
    x: Any = Tensor(np.arange(3.0), requires_grad=True)
    x[[1, 1, 1, 2]].sum().backward()
    assert x.grad.tolist() == [0.0, 3.0, 1.0]


def test_sums_at_equal_positions_are_exact_on_either_path() -> None:
    rng = np.random.default_rng(3)
    for count, size, width in [
        (0, 4, ()),
        (1, 1, ()),
        (50, 7, ()),
        (64, 1, (3,)),
        (100, 30, (2, 3)),
        (33, 40, (1,)),
    ]:
        positions = rng.integers(0, size, count)
        values = rng.integers(-50, 50, (count, *width)).astype(np.float64)  # whole numbers: any order is exact
        expected = np.zeros((size, *width))
        for position, value in zip(positions, values, strict=True):
            expected[position] += value
        np.testing.assert_array_equal(sums_at(positions, values, size), expected)
        np.testing.assert_array_equal(sorted_sums(positions, values, size), expected)  # what a GPU runs
    infinite = sorted_sums(np.array([0, 1, 0]), np.array([1.0, np.inf, 2.0]), 2)
    np.testing.assert_array_equal(infinite, [3.0, np.inf])


def test_views_write_through_and_gradients_follow(torch: Any) -> None:
    x: Any = Tensor(np.arange(12.0).reshape(3, 4), requires_grad=True)
    y = x * 1
    y[1, 1:3] *= 10
    y[:, 0] = 0
    y.t()[3][2] = x[0, 1] * 7
    expected = torch.arange(12.0, dtype=torch.float64).reshape(3, 4).requires_grad_()
    z = expected * 1
    z[1, 1:3] *= 10
    z[:, 0] = 0
    z.t()[3][2] = expected[0, 1] * 7
    np.testing.assert_array_equal(y.detach().numpy(), z.detach().numpy())
    (y * y).sum().backward()
    (z * z).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), expected.grad.numpy())


@pytest.mark.parametrize("pieces", [lambda x: x.unbind(0), lambda x: x.split(1), lambda x: x.chunk(3), list])
def test_pieces_are_views(pieces: Any) -> None:
    x: Any = Tensor(np.arange(6.0).reshape(3, 2), requires_grad=True)
    y = x * 1
    parts = pieces(y)
    parts[1].mul_(5)
    assert y[1].tolist() == [10.0, 15.0]
    (parts[0].sum() + (parts[1] ** 2).sum()).backward()  # parts[2] gets no gradient
    assert x.grad.tolist() == [[1.0, 1.0], [100.0, 150.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (3, IndexError, "3 is out of range for dim 0 of size 3"),
        ((0, 0, 0), IndexError, r"too many indices \(3\) for a tensor of shape \(3, 4\)"),
        ([0, 5], IndexError, "index 5 is out of range for dim 0"),
        ((slice(None), [-5]), IndexError, "index -5 is out of range for dim 1"),
        (np.ones((3, 3), bool), IndexError, r"a mask of shape \(3, 3\) does not fit"),
        (([0, 1], [0, 1, 2]), IndexError, "do not broadcast"),
        (1.5, IndexError, "got dtype float32"),
        (np.zeros(2, np.uint8), IndexError, "neither mask nor index"),
        ((Ellipsis, Ellipsis), IndexError, "at most one Ellipsis"),
        ("a", TypeError, "index: expected integers, slices, .* got str"),
        ([0, [1]], TypeError, "index: expected integers, slices, .* got list"),
    ],
)
def test_wrong_indices_are_named(index: Any, error: type[Exception], message: str) -> None:
    x: Any = Tensor(np.zeros((3, 4)))
    with pytest.raises(error, match=message):
        x[index]
    with pytest.raises(error, match=message):
        x[index] = 1.0
    assert not x.data.any()


def test_wrong_values_change_nothing() -> None:
    x: Any = Tensor(np.zeros((3, 4)))
    for index in (0, [0, 1], slice(0, 2)):
        with pytest.raises(ValueError, match=r"setitem: a value of shape \(3,\) does not fit"):
            x[index] = Tensor(np.ones(3))
    assert not x.data.any()
    leaf = Tensor(np.zeros(3), requires_grad=True)
    for index in (0, [0, 1]):
        with pytest.raises(RuntimeError, match="leaf"):
            leaf[index] = 1.0
    assert not leaf.data.any() and leaf._version == 0


def test_changing_an_indexed_tensor_is_noticed() -> None:
    x: Any = Tensor(np.ones(3), requires_grad=True)
    y = x * 1
    z = y * y
    y[[0, 1]] = 5.0
    with pytest.raises(RuntimeError, match="changed in place"):
        z.sum().backward()


def test_gather_and_scatter_name_wrong_indices() -> None:
    x: Any = Tensor(np.zeros((3, 4)))
    for name in ("gather", "scatter_add"):
        more = (Tensor(np.ones((1, 1))),) if name == "scatter_add" else ()
        for wrong in (4, -1):
            with pytest.raises(IndexError, match=rf"{name}: index {wrong} is out of range for dim 1"):
                functions[name](x, 1, np.array([[wrong]]), *more)
    with pytest.raises(TypeError, match="index_select: the index must be an int64 or int32 tensor, got dtype float64"):
        x.index_select(0, np.array([0.0]))
