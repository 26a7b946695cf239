"""Winograd's minimal filtering F(4 × 4, 3 × 3), the algebra that `winograd_lines` and `winograd_tiles` share.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). A tile of 4 × 4 outputs sees 6 × 6
inputs d. With the filter's transform U = G g Gᵀ and the tile's V = Bᵀ d B, the tile's outputs are Aᵀ M A, where
M at each of 36 places is the sum over the channels of U · V: a matrix product with a quarter of the direct
way's multiplications. For the weight gradient the same algebra runs backwards: dU is the sum over the tiles of
(A dy Aᵀ) · V, and dw is Gᵀ dU G.

The points of interpolation 0, ±5/8, ±3/2 and infinity keep the numbers of one size. Measured in float32 on normal
numbers against float64, the error over the result's norm is 6e-7 with 32 channels, 8e-7 with 64 and 1.3e-6 with 256 and
512 (the direct way: 3e-7), for the weight gradient at most 1e-6; the worst element is off by 4e-6 of the largest one.
With the usual points 0, ±1 and ±2 it is 1.5e-6 with 64 channels and 3e-6 with 512; with F(2 × 2, 3 × 3) it is 5e-7 with
512, for 2.25 instead of 4 times fewer multiplications.
"""

from __future__ import annotations

import numpy as np

TILE = 4
TAPS = 3
SIDE = TILE + TAPS - 1
PLACES = SIDE * SIDE
# The first place is infinity.
_POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)


def _away(point: float, points: tuple[float, ...]) -> float:
    """The product of the distances to all other points."""
    return float(np.prod([point - other for other in points if other != point]))


def output_matrix(outputs: int) -> np.ndarray:
    """A (places, outputs) of a tile of at most four outputs: with fewer, it has the first places only."""
    finite = [point ** np.arange(outputs) for point in _POINTS[: outputs + 1]]
    return np.array([np.arange(outputs) == outputs - 1, *finite], np.float32)


def input_matrix(outputs: int) -> np.ndarray:
    """Bᵀ (places, places) of a tile of so many outputs, by Toom and Cook's interpolation."""
    points = _POINTS[: outputs + 1]
    rows = [np.poly(points)[::-1]]
    for point in points:
        # G divides by the distances to all points, those that such a tile does without included.
        scale = _away(point, _POINTS) / _away(point, points)
        rows.append(np.append(scale * np.poly([other for other in points if other != point])[::-1], 0))
    return np.array(rows, np.float32)


def _filter_matrix() -> np.ndarray:
    """G (6, 3)"""
    finite = [point ** np.arange(TAPS) / _away(point, _POINTS) for point in _POINTS]
    return np.array([np.arange(TAPS) == TAPS - 1, *finite])


A, B_T = output_matrix(TILE), input_matrix(TILE)
# G g Gᵀ for a filter as one vector of 9 taps.
GG = np.kron(_filter_matrix(), _filter_matrix()).astype(np.float32)
