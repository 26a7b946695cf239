"""DataLoader: batches of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ...engine import Tensor
from ...engine.backend import is_array
from ...engine.operations.creation import tensor
from ...engine.operations.joining import stack
from ...engine.random import Generator
from .sampler import BatchSampler, RandomSampler, SequentialSampler


class DataLoader:
    """Iterates over batches of `dataset`, anew each time; with `shuffle` in a new order each time.

    seed: the orders come from a generator of the loader's own, so the same program sees the same batches.
    generator: one to draw from instead. sampler, batch_sampler: iterables of sample numbers, or of lists,
    in place of `shuffle`. batch_size None: single samples. collate_fn: makes a batch of a list of samples, by
    default `default_collate`. The calling thread loads the samples, so num_workers must be 0.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[list[int]] | None = None,
        num_workers: int = 0,
        *,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        generator: Generator | None = None,
        seed: int | None = None,
    ) -> None:
        if num_workers != 0:
            raise ValueError(
                f"DataLoader: the calling thread loads the samples: num_workers must be 0, got {num_workers}"
            )
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"DataLoader: expected a dataset with __getitem__ and __len__, got {type(dataset).__name__}"
            )
        if seed is not None:
            if generator is not None:
                raise ValueError("DataLoader: seed and generator exclude each other")
            generator = Generator("cpu").manual_seed(seed)
        if sampler is not None and shuffle:
            raise ValueError("DataLoader: sampler and shuffle exclude each other")
        if batch_sampler is not None and (batch_size != 1 or shuffle or sampler is not None or drop_last):
            raise ValueError("DataLoader: batch_sampler excludes batch_size, shuffle, sampler and drop_last")
        if batch_size is None and drop_last:
            raise ValueError("DataLoader: drop_last needs a batch_size")
        if sampler is None and batch_sampler is None:
            sampler = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)
        if batch_sampler is None and batch_size is not None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.generator = generator
        self.collate_fn = collate_fn

    def __iter__(self) -> Iterator[Any]:
        if self.batch_sampler is None:
            assert self.sampler is not None
            for index in self.sampler:
                sample = self.dataset[index]
                yield sample if self.collate_fn is None else self.collate_fn(sample)
            return
        at_once = None if self.collate_fn else getattr(self.dataset, "get_batch", None)
        for indices in self.batch_sampler:
            if at_once is not None:
                yield at_once(indices)
            else:
                yield (self.collate_fn or default_collate)([self.dataset[index] for index in indices])

    def __len__(self) -> int:
        return len(self.sampler if self.batch_sampler is None else self.batch_sampler)  # type: ignore[arg-type]


def default_collate(batch: list[Any]) -> Any:
    """One batch of samples: tensors, arrays and numbers stacked in a new first dim, within dicts and tuples.

    Text stays a list. Python's floats become float64, its integers int64, as in PyTorch.
    """
    first = batch[0]
    if isinstance(first, Tensor):
        return stack(batch)
    if is_array(first):
        return stack([tensor(np.asarray(item) if isinstance(item, np.generic) else item) for item in batch])
    if isinstance(first, float):
        return tensor(batch, dtype="float64")
    if isinstance(first, int):
        return tensor(batch)
    if isinstance(first, str | bytes):
        return batch
    if isinstance(first, Mapping):
        return {key: default_collate([item[key] for item in batch]) for key in first}
    if isinstance(first, tuple | list):
        if any(len(item) != len(first) for item in batch):
            raise RuntimeError(f"default_collate: samples of different lengths {[len(item) for item in batch]}")
        parts = [default_collate(list(column)) for column in zip(*batch, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else parts
    raise TypeError(
        f"default_collate: expected tensors, arrays, numbers, text or containers, got {type(first).__name__}"
    )
