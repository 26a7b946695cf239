"""Datasets: samples under the numbers from 0 on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...engine import Tensor
from ...engine.backend import array_module, is_array
from ...engine.operations.sampling import randperm
from ...engine.random import Generator
from ...engine.tensor import as_array, wrap


class Dataset:
    """Base of all datasets: subclasses define `__getitem__(index)` and `__len__()`.

    A dataset that collects a whole batch at once may define `get_batch(indices)`; then `DataLoader` uses it
    in place of single samples and the default collation.
    """

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.__getitem__")

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__}.__len__")


class TensorDataset(Dataset):
    """Sample i is the tuple of the i-th slices of the tensors (or arrays, which are shared)."""

    def __init__(self, *tensors: Any) -> None:
        for tensor in tensors:
            if not isinstance(tensor, Tensor) and not is_array(tensor):
                raise TypeError(f"TensorDataset: expected tensors or arrays, got {type(tensor).__name__}")
        self.tensors = tuple(t if isinstance(t, Tensor) else wrap(as_array(t)) for t in tensors)
        shapes = [tensor.shape for tensor in self.tensors]
        if not shapes or not all(shapes) or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(f"TensorDataset: expected tensors with one length, got shapes {shapes}")

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def get_batch(self, indices: Sequence[int]) -> list[Tensor]:
        """The samples at `indices`, as one tensor for each of the dataset's."""
        rows = np.asarray(indices)
        return [_taken(tensor, rows) for tensor in self.tensors]


def _taken(tensor: Tensor, rows: np.ndarray) -> Tensor:
    if tensor.requires_grad:
        return tensor[rows]
    return wrap(tensor._data.take(array_module(tensor._data).asarray(rows), 0))  # much faster than an index


class Subset(Dataset):
    """The samples of `dataset` at `indices`."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices
        if hasattr(dataset, "get_batch"):
            self.get_batch = self._get_batch

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)

    def _get_batch(self, indices: Sequence[int]) -> Any:
        return self.dataset.get_batch([self.indices[i] for i in indices])


def random_split(dataset: Any, lengths: Sequence[int | float], generator: Generator | None = None) -> list[Subset]:
    """Disjoint random subsets of the given lengths, or of the given parts when these add up to 1."""
    total = len(dataset)
    counts = [int(length) for length in lengths]
    if lengths and math.isclose(sum(lengths), 1) and all(0 <= length <= 1 for length in lengths) and total != 1:
        counts = [math.floor(total * length) for length in lengths]
        for i in range(total - sum(counts)):  # what rounding left over, one each from the first on
            counts[i % len(counts)] += 1
    elif any(count != length or count < 0 for count, length in zip(counts, lengths, strict=True)):
        raise ValueError(f"random_split: expected lengths, or parts that add up to 1, got {list(lengths)}")
    if sum(counts) != total:
        raise ValueError(f"random_split: lengths {counts} add up to {sum(counts)}, the dataset has {total} samples")
    order = randperm(total, generator=generator, device="cpu").tolist()
    ends = np.cumsum(counts).tolist()
    return [Subset(dataset, order[end - count : end]) for count, end in zip(counts, ends, strict=True)]
