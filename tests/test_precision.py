"""The one setting for float32 products on tensor cores."""

import numpy as np
import pytest

import adjoint as ad


@pytest.fixture(autouse=True)
def restored():
    before = ad.get_float32_matmul_precision()
    yield
    ad.set_float32_matmul_precision(before)


def test_the_default_is_exact_and_the_setting_is_what_was_set():
    assert ad.get_float32_matmul_precision() == "highest"
    ad.set_float32_matmul_precision("high")
    assert ad.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("wrong", ["medium", "HIGH", "", None, 1])
def test_an_unsupported_precision_says_what_is_supported_and_changes_nothing(wrong):
    ad.set_float32_matmul_precision("high")
    with pytest.raises(ValueError, match='supported are "highest" and "high", got'):
        ad.set_float32_matmul_precision(wrong)
    assert ad.get_float32_matmul_precision() == "high"


def test_numpy_computes_in_float32_always():
    random = np.random.default_rng(0)
    a, b = (ad.tensor(random.standard_normal((40, 40)).astype(np.float32)) for _ in range(2))
    exact = (a @ b).numpy()
    ad.set_float32_matmul_precision("high")
    np.testing.assert_array_equal((a @ b).numpy(), exact)
