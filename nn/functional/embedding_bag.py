"""Sums, means and maxima of embeddings."""

from __future__ import annotations

import numpy as np

from ...engine import Tensor
from ...engine.backend import array_module
from ...engine.operations.embedding import EmbeddingWeightGrad
from ...engine.recorder import refuse
from ...engine.tensor import wrap
from .checks import check_tensor
from .embedding import embedding, row_of_padding

MODES = ("sum", "mean", "max")


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """The sum, mean or maximum of the rows of weight (V, D) that each bag of indices names, as (bags, D).

    input: (bags, length), or (n,) with `offsets`, where each bag begins (`include_last_offset`: and where the last one
    ends). per_sample_weights: of the input's shape, multiplies the rows of a "sum". padding_idx: indices that do not
    count and have no gradient. An empty bag is 0. mode "max" with offsets waits for a GPU, to learn the longest bag.
    """
    name = "embedding_bag"
    check_tensor(name, "input", input)
    check_tensor(name, "weight", weight)
    if mode not in MODES:
        raise ValueError(f'{name}: mode must be "sum", "mean" or "max", got {mode!r}')
    bags = _begins(name, input, offsets, include_last_offset)
    if per_sample_weights is not None:
        _check_weights(name, mode, input, weight, per_sample_weights)
    padding = row_of_padding(name, padding_idx, weight.shape[0])
    indices = input.reshape(-1)
    rows = embedding(indices, weight, padding, max_norm, norm_type, scale_grad_by_freq, sparse)
    array = indices._data
    counts = np.ones(array.shape, bool) if padding is None else array != padding
    counts = array_module(array).asarray(counts)
    if mode == "max":
        return _maxima(rows, counts, bags)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1, 1)
    if padding is not None:
        rows = rows.where(wrap(counts[:, None]), 0.0)
    of_each = array_module(array).searchsorted(bags[1:], array_module(array).arange(len(array)), side="right")
    settings = {"num_embeddings": len(bags) - 1, "padding_idx": -1, "scale_grad_by_freq": False}
    sums = EmbeddingWeightGrad.apply(rows, wrap(of_each), **settings)
    if mode == "sum":
        return sums
    sizes = EmbeddingWeightGrad.apply(wrap(counts[:, None].astype(np.float32)), wrap(of_each), **settings)
    return sums / sizes.clamp(min=1).to(sums.dtype)


def _begins(name: str, input: Tensor, offsets: Tensor | None, include_last_offset: bool) -> np.ndarray:
    """Where the bags begin in the flat input, and where the last one ends."""
    module = array_module(input._data)
    if input.ndim == 2:
        if offsets is not None:
            raise ValueError(f"{name}: offsets are for input of one dimension, got input {input.shape}")
        return module.arange(input.shape[0] + 1) * input.shape[1]
    if input.ndim != 1:
        raise ValueError(f"{name}: input must have the shape (bags, length) or (n,), got {input.shape}")
    if offsets is None:
        raise ValueError(f"{name}: input {input.shape} needs offsets")
    begins = check_tensor(name, "offsets", offsets)._data
    if begins.dtype.kind not in "iu" or begins.ndim != 1:
        raise ValueError(f"{name}: offsets must be integers of one dimension, got {offsets.dtype} {offsets.shape}")
    if include_last_offset and not len(begins):
        raise ValueError(f"{name}: include_last_offset=True needs at least one offset")
    if isinstance(begins, np.ndarray) and len(begins):
        ascending = begins[0] == 0 and (np.diff(begins) >= 0).all() and begins[-1] <= len(input)
        if not ascending:
            raise ValueError(
                f"{name}: offsets must begin with 0, ascend, and not be above {len(input)}, got {begins.tolist()}"
            )
    begins = begins.astype(np.int64)
    return begins if include_last_offset else module.concatenate([begins, module.asarray([len(input)])])


def _check_weights(name: str, mode: str, input: Tensor, weight: Tensor, given: Tensor) -> None:
    if mode != "sum":
        raise ValueError(f'{name}: per_sample_weights are for mode "sum", got mode {mode!r}')
    if check_tensor(name, "per_sample_weights", given).shape != input.shape:
        raise ValueError(f"{name}: per_sample_weights must have the input's shape {input.shape}, got {given.shape}")
    if given.dtype != weight.dtype:
        raise TypeError(f"{name}: per_sample_weights must have weight's dtype {weight.dtype}, got {given.dtype}")


def _maxima(rows: Tensor, counts: np.ndarray, bags: np.ndarray) -> Tensor:
    """The maximum of each bag's rows that count."""
    module = array_module(counts)
    sizes = bags[1:] - bags[:-1]
    refuse("look at values")
    longest = int(sizes.max()) if sizes.size else 0
    if not longest:
        return rows[:0].sum(0).expand(len(sizes), rows.shape[1]).clone()
    places = bags[:-1, None] + module.arange(longest)
    inside = places < bags[1:, None]
    places = module.where(inside, places, 0)
    inside = (inside & counts[places])[:, :, None]
    values = rows[wrap(places)].where(wrap(inside), -float("inf")).max(1).values
    return values.where(wrap(inside.any(axis=1)), 0.0)
