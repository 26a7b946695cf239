"""Dropout: 16 random bits decide about an element, and more where these are not enough.

Each piece draws from a place of its own in the generator's stream, so that results do not depend on threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import geometry
from . import parallel
from .arithmetic import compute_dtype
from .scratch import scratch

_PIECE = 1 << 16
_SHARED = 1 << 17  # fewer elements are done sooner than by two threads
_BITS = 16
_PER_WORD = 64 // _BITS
# Words of a piece for elements whose 16 bits lie on the threshold: one of 65,536 does.
_SPARE = 64

_kept = threading.local()


def dropout(x: np.ndarray, p: float, random: np.random.Generator, alpha: bool = False) -> tuple[np.ndarray, np.ndarray]:
    y, kept = np.empty(x.shape, x.dtype), np.empty(x.shape, bool)
    source, target, mask = x.reshape(-1), y.reshape(-1), kept.reshape(-1)
    factors = geometry.dropout_factors(p, alpha)
    parts = parallel.split(x.size, _PIECE)
    _check_stream(random)
    if len(parts) == 1:  # copies of the stream take longer than its numbers
        _draw(random, 1 - p, mask)
        _apply(source, mask, factors, target, np.empty(x.size, compute_dtype(x.dtype)))
        return y, kept
    words = _PIECE // _PER_WORD + _SPARE
    start = _reserved(random.bit_generator, len(parts) * words)

    def work(pieces: Iterator[slice]) -> None:
        own = _own_stream()
        generator = np.random.Generator(own)
        with scratch() as memory:
            wide = memory.empty((min(_PIECE, x.size),), compute_dtype(x.dtype))
            for part in pieces:
                own.state = start
                own.advance(part.start // _PIECE * words)
                _draw(generator, 1 - p, mask[part])
                _apply(source[part], mask[part], factors, target[part], wide)

    parallel.share(work, parts, limit=1 if x.size < _SHARED else None)
    return y, kept


def dropout_grad(dy: np.ndarray, p: float, kept: np.ndarray, alpha: bool = False) -> np.ndarray:
    dx = np.empty(dy.shape, dy.dtype)
    source, target, mask = dy.reshape(-1), dx.reshape(-1), kept.reshape(-1)
    scale, _, _ = geometry.dropout_factors(p, alpha)

    def work(pieces: Iterator[slice]) -> None:
        with scratch() as memory:
            wide = memory.empty((min(_PIECE, dy.size),), compute_dtype(dy.dtype))
            for part in pieces:
                _apply(source[part], mask[part], (scale, 0.0, 0.0), target[part], wide)

    parallel.share(work, parallel.split(dy.size, _PIECE), limit=1 if dy.size < _SHARED else None)
    return dx


def _check_stream(random: Any) -> None:
    if not isinstance(getattr(random, "bit_generator", None), np.random.PCG64):
        raise TypeError(f"dropout: random must be a NumPy generator over PCG64, got {random!r}")


def _reserved(stream: Any, words: int) -> Any:
    """The state of the stream, which goes on behind so many words of 64 bits."""
    with stream.lock:
        start = stream.state
        stream.advance(words)
    return start


def _own_stream() -> np.random.PCG64:
    """A stream of this thread alone, to be set to any place."""
    if not hasattr(_kept, "stream"):
        _kept.stream = np.random.PCG64(0)
    return _kept.stream


def _draw(generator: np.random.Generator, share: float, kept: np.ndarray) -> None:
    """Set each element of `kept` with the probability `share`."""
    whole, rest = divmod(share * 2**_BITS, 1)
    if whole == 2**_BITS:
        kept.fill(True)
        return
    words = generator.integers(0, 2**64 - 1, -(-len(kept) // _PER_WORD), np.uint64, endpoint=True)
    bits = words.view(np.uint16)[: len(kept)]
    np.less(bits, np.uint16(whole), out=kept)
    if rest:
        (undecided,) = np.equal(bits, np.uint16(whole)).nonzero()
        if len(undecided):
            kept[undecided] = generator.random(len(undecided)) < rest


@np.errstate(all="ignore")
def _apply(
    x: np.ndarray, kept: np.ndarray, factors: tuple[float, float, float], out: np.ndarray, wide: np.ndarray
) -> None:
    """x times its factor, plus what is added; `wide` is an array to compute in."""
    scale, kept_shift, dropped_shift = factors
    dtype = wide.dtype
    y = out if out.dtype == dtype else wide[: len(x)]
    np.multiply(x, kept, out=y, dtype=dtype, casting="unsafe")
    np.multiply(y, np.asarray(scale, dtype), y)
    if kept_shift or dropped_shift:
        np.add(y, np.where(kept, dtype.type(kept_shift), dtype.type(dropped_shift)), y)
    if y is not out:
        np.copyto(out, y, casting="unsafe")
