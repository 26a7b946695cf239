import numpy as np
import pytest

from adjoint.kernels.cpu.parallel import SMALL_PRODUCT
from adjoint.kernels.cpu.products import multiply

# (m, inside, n): small ones, and such as need parts of rows, of columns, of both, with and without a rest.
SIZES = [
    (1, 1, 1),
    (5, 3, 7),
    (0, 3, 4),
    (4, 0, 3),
    (32, 256, 256),
    (100, 64, 640),
    (3, 700, 1000),
    (1000, 700, 3),
    (1, 600_000, 2),
    (17, 9, 10_000),
    (130, 130, 131),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stack", [(), (3,), (2, 3)], ids=str)
def test_every_part_lands_in_its_place(size, stack):
    m, inside, n = size
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((*stack, m, inside)), rng.standard_normal((*stack, inside, n))
    for transposed in (False, True):
        out = np.full((*stack, n, m), np.nan).swapaxes(-1, -2) if transposed else np.full((*stack, m, n), np.nan)
        multiply(a, np.asfortranarray(b) if transposed else b, out)
        np.testing.assert_allclose(out, np.einsum("...mk,...kn->...mn", a, b), 1e-9, 1e-9)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_no_part_is_large_enough_for_the_threads_of_blas(size, monkeypatch):
    seen = []

    def matmul(a, b, out):
        seen.append(a.shape[-2] * a.shape[-1] * b.shape[-1])
        return real(a, b, out=out)

    real = np.matmul
    monkeypatch.setattr(np, "matmul", matmul)
    m, inside, n = size
    multiply(np.ones((m, inside), np.float32), np.ones((inside, n), np.float32), np.empty((m, n), np.float32))
    # A single sum cannot be taken apart.
    assert max(seen) <= max(SMALL_PRODUCT, inside)
