"""Datasets, samplers and DataLoader."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import adjoint as ad
from adjoint.nn.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
    random_split,
)


class Squares(Dataset):
    """Sample i is (i, i²)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, index: int) -> tuple[int, float]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return index, float(index) ** 2

    def __len__(self) -> int:
        return self.size


def numbers(loader: DataLoader) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


def pairs(size: int) -> TensorDataset:
    return TensorDataset(ad.arange(size), ad.arange(size).float() * 2)


@pytest.mark.parametrize("make", [Squares, pairs])
def test_batches_in_order(make: Any) -> None:
    loader = DataLoader(make(7), batch_size=3)
    assert numbers(loader) == [[0, 1, 2], [3, 4, 5], [6]] and len(loader) == 3
    loader = DataLoader(make(7), batch_size=3, drop_last=True)
    assert numbers(loader) == [[0, 1, 2], [3, 4, 5]] and len(loader) == 2
    assert len(DataLoader(make(6), batch_size=3)) == len(DataLoader(make(6), batch_size=3, drop_last=True)) == 2
    assert numbers(DataLoader(make(2))) == [[0], [1]]
    assert numbers(DataLoader(make(0), batch_size=2)) == []


def test_whole_batches_equal_collated_samples() -> None:
    dataset = TensorDataset(ad.randn(9, 2, 3), ad.arange(9))
    fast = DataLoader(dataset, batch_size=4, shuffle=True, seed=1)
    slow = DataLoader(dataset, batch_size=4, shuffle=True, seed=1, collate_fn=default_collate)
    for a, b in zip(fast, slow, strict=True):
        assert type(a) is type(b) is list
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x.numpy(), y.numpy())
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    batch[0].zero_()  # a batch is a copy
    assert dataset.tensors[0].numpy().all()


def test_gradients_flow_through_batches() -> None:
    x = ad.ones(4, 2, requires_grad=True)
    (batch,) = next(iter(DataLoader(TensorDataset(x), batch_size=2)))
    batch.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[1, 1], [1, 1], [0, 0], [0, 0]])


@pytest.mark.parametrize("make", [Squares, pairs])
def test_shuffles_differ_and_repeat(make: Any) -> None:
    loader = DataLoader(make(50), batch_size=50, shuffle=True, seed=3)
    first, second = numbers(loader)[0], numbers(loader)[0]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second and first != list(range(50))
    again = DataLoader(make(50), batch_size=50, shuffle=True, seed=3)
    assert [numbers(again)[0], numbers(again)[0]] == [first, second]
    assert numbers(DataLoader(make(50), batch_size=50, shuffle=True, seed=4))[0] != first
    generator = ad.Generator().manual_seed(3)
    assert numbers(DataLoader(make(50), batch_size=50, shuffle=True, generator=generator))[0] == first
    ad.manual_seed(8)
    by_default = numbers(DataLoader(make(50), batch_size=50, shuffle=True))
    ad.manual_seed(8)
    assert numbers(DataLoader(make(50), batch_size=50, shuffle=True)) == by_default


def test_samplers() -> None:
    data = Squares(6)
    assert list(SequentialSampler(data)) == list(range(6))
    assert sorted(RandomSampler(data)) == list(range(6))
    drawn = list(RandomSampler(data, replacement=True, num_samples=100))
    assert len(drawn) == 100 and set(drawn) == set(range(6))
    few = RandomSampler(data, num_samples=4)
    assert len(few) == 4 and len(set(few)) == 4
    assert sorted(SubsetRandomSampler([5, 2, 7])) == [2, 5, 7]
    batches = BatchSampler(SequentialSampler(data), 4, drop_last=False)
    assert list(batches) == [[0, 1, 2, 3], [4, 5]] and len(batches) == 2
    assert numbers(DataLoader(data, batch_sampler=[[5, 5], [0]])) == [[5, 5], [0]]
    assert numbers(DataLoader(data, batch_size=2, sampler=[3, 1, 2])) == [[3, 1], [2]]
    assert list(DataLoader(data, batch_size=None))[2] == (2, 4.0)


def test_subset_and_random_split() -> None:
    data = pairs(10)
    subset = Subset(data, [3, 8, 5])
    assert len(subset) == 3 and subset[1][0].item() == 8
    assert numbers(DataLoader(subset, batch_size=2)) == [[3, 8], [5]]
    assert numbers(DataLoader(Subset(subset, [2, 0]), batch_size=2)) == [[5, 3]]
    assert numbers(DataLoader(Subset(Squares(9), [4, 1]), batch_size=2)) == [[4, 1]]
    parts = random_split(data, [0.5, 0.25, 0.25], ad.Generator().manual_seed(1))
    assert [len(part) for part in parts] == [6, 2, 2]
    assert sorted(i for part in parts for i in part.indices) == list(range(10))
    again = random_split(data, [6, 2, 2], ad.Generator().manual_seed(1))
    assert [part.indices for part in again] == [part.indices for part in parts]
    for lengths, message in (
        ([4, 5], "add up to 9, the dataset has 10"),
        ([0.5, 0.6], "parts that add up to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            random_split(data, lengths)


class Point(NamedTuple):
    x: Any
    y: Any


def test_default_collate() -> None:
    batch = default_collate(
        [
            {
                "t": ad.ones(2) * i,
                "n": np.full(3, i, np.float32),
                "i": i,
                "f": i / 2,
                "s": str(i),
                "p": Point(i, [i, np.int32(i)]),
            }
            for i in range(4)
        ]
    )
    assert batch["t"].shape == (4, 2) and batch["n"].shape == (4, 3) and batch["n"].dtype == ad.float32
    assert batch["i"].dtype == ad.int64 and batch["f"].dtype == ad.float64
    assert batch["s"] == ["0", "1", "2", "3"]
    assert isinstance(batch["p"], Point) and batch["p"].x.tolist() == [0, 1, 2, 3]
    assert batch["p"].y[1].dtype == ad.int32
    with pytest.raises(TypeError, match="got object"):
        default_collate([object()])
    with pytest.raises(RuntimeError, match=r"different lengths \[1, 2\]"):
        default_collate([(1,), (1, 2)])


def test_collation_is_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    samples = [(i, i * 0.5, np.arange(3) + i, {"a": True}) for i in range(3)]
    mine, theirs = default_collate(samples), torch.utils.data.default_collate(samples)
    assert type(mine) is type(theirs)
    for a, b in zip([*mine[:3], mine[3]["a"]], [*theirs[:3], theirs[3]["a"]], strict=True):
        assert f"torch.{a.dtype}" == str(b.dtype)
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_custom_collation_and_errors_of_samples() -> None:
    loader = DataLoader(Squares(4), batch_size=2, collate_fn=lambda samples: [i for i, _ in samples])
    assert list(loader) == [[0, 1], [2, 3]]
    with pytest.raises(IndexError):
        list(DataLoader(Squares(4), sampler=[0, 9]))


def test_arrays_are_shared_by_a_tensor_dataset() -> None:
    array = np.arange(6.0).reshape(3, 2)
    dataset = TensorDataset(array, ad.zeros(3))
    array[1] = 7
    np.testing.assert_array_equal(dataset[1][0].numpy(), [7, 7])


BAD = {
    "lengths": (
        lambda: TensorDataset(ad.zeros(3), ad.zeros(4)),
        ValueError,
        r"one length, got shapes \[\(3,\), \(4,\)\]",
    ),
    "none": (lambda: TensorDataset(), ValueError, "one length"),
    "scalar": (lambda: TensorDataset(ad.zeros(())), ValueError, "one length"),
    "list": (lambda: TensorDataset([1, 2]), TypeError, "expected tensors or arrays, got list"),
    "batch": (
        lambda: DataLoader(Squares(3), batch_size=0),
        ValueError,
        "batch_size must be a positive integer, got 0",
    ),
    "workers": (lambda: DataLoader(Squares(3), num_workers=2), ValueError, "num_workers must be 0, got 2"),
    "dataset": (lambda: DataLoader(5), TypeError, "with __getitem__ and __len__, got int"),
    "sampler": (lambda: DataLoader(Squares(3), shuffle=True, sampler=[0]), ValueError, "exclude each other"),
    "seed": (
        lambda: DataLoader(Squares(3), seed=1, generator=ad.Generator()),
        ValueError,
        "exclude each other",
    ),
    "batch_sampler": (
        lambda: DataLoader(Squares(3), 2, batch_sampler=[[0]]),
        ValueError,
        "batch_sampler excludes",
    ),
    "drop_last": (
        lambda: DataLoader(Squares(3), None, drop_last=True),
        ValueError,
        "drop_last needs a batch_size",
    ),
    "samples": (
        lambda: RandomSampler(Squares(3), num_samples=5),
        ValueError,
        "5 of 3 samples need replacement",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_clear_errors(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()
