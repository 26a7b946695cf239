"""What nn.functional says to wrong shapes, dtypes and settings."""

from __future__ import annotations

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn.functional as F

x4, w4 = ad.zeros(1, 4, 5, 5), ad.zeros(6, 4, 3, 3)
BAD = {
    "conv2d-array": (
        lambda: F.conv2d(np.zeros((1, 4, 5, 5)), w4),
        TypeError,
        "conv2d: input must be a Tensor",
    ),
    "conv2d-rank": (lambda: F.conv2d(ad.zeros(4, 5), w4), ValueError, r"conv2d: input .*\(4, 5\)"),
    "conv2d-weight": (lambda: F.conv2d(x4, ad.zeros(6, 4)), ValueError, r"conv2d: weight .*\(6, 4\)"),
    "conv2d-channels": (
        lambda: F.conv2d(ad.zeros(1, 3, 5, 5), w4),
        ValueError,
        "conv2d: .*4 input channels, got 3",
    ),
    "conv2d-stride": (
        lambda: F.conv2d(x4, w4, stride=0),
        ValueError,
        "conv2d: stride must be at least 1, got",
    ),
    "conv2d-stride-float": (
        lambda: F.conv2d(x4, w4, stride=1.5),
        TypeError,
        "conv2d: stride must be an integer",
    ),
    "conv2d-padding": (lambda: F.conv2d(x4, w4, padding="full"), ValueError, "conv2d: padding .*'full'"),
    "conv2d-same-stride": (lambda: F.conv2d(x4, w4, stride=2, padding="same"), ValueError, "needs stride 1"),
    "conv2d-groups": (lambda: F.conv2d(x4, w4, groups=4), ValueError, "conv2d: groups must divide"),
    "conv2d-kernel": (
        lambda: F.conv2d(ad.zeros(1, 4, 2, 2), w4),
        ValueError,
        "kernel is larger than the padded",
    ),
    "conv2d-bias": (lambda: F.conv2d(x4, w4, ad.zeros(5)), ValueError, r"bias must have the shape \(6,\)"),
    "conv2d-dtype": (lambda: F.conv2d(x4.double(), w4), TypeError, "float64.*float32|one dtype"),
    "max_pool2d-padding": (lambda: F.max_pool2d(x4, 2, padding=2), ValueError, "at most half the kernel"),
    "max_pool2d-stride": (lambda: F.max_pool2d(x4, 2, 0), ValueError, "stride must be at least 1"),
    "max_pool2d-integers": (lambda: F.max_pool2d(x4.long(), 2), TypeError, "max_pool2d.*int64"),
    "avg_pool2d-rank": (lambda: F.avg_pool2d(ad.zeros(3), 2), ValueError, "avg_pool2d: input must have"),
    "avg_pool2d-divisor": (lambda: F.avg_pool2d(x4, 2, divisor_override=0), ValueError, "divisor_override"),
    "linear-shape": (
        lambda: F.linear(ad.zeros(2, 3), ad.zeros(4, 5)),
        ValueError,
        r"linear.*\(2, 3\).*\(4, 5\)",
    ),
    "cross_entropy-shape": (
        lambda: F.cross_entropy(ad.zeros(5, 4), ad.zeros(4).long()),
        ValueError,
        r"\(5,\).*got \(4,\)",
    ),
    "cross_entropy-range": (
        lambda: F.cross_entropy(ad.zeros(2, 4), ad.tensor([1, 4])),
        ValueError,
        "class index 4 in row 1 is out of range for 4 classes",
    ),
    "cross_entropy-bool": (
        lambda: F.cross_entropy(ad.zeros(2, 4), ad.zeros(2).bool()),
        TypeError,
        "class indices or probabilities, got dtype bool",
    ),
    "cross_entropy-reduction": (
        lambda: F.cross_entropy(ad.zeros(2, 4), ad.tensor([1, 2]), reduction="max"),
        ValueError,
        "reduction must be .*'max'",
    ),
    "cross_entropy-smoothing": (
        lambda: F.cross_entropy(ad.zeros(2, 4), ad.tensor([1, 2]), label_smoothing=1.5),
        ValueError,
        "label_smoothing must be between 0 and 1, got 1.5",
    ),
    "cross_entropy-weight": (
        lambda: F.cross_entropy(ad.zeros(2, 4), ad.tensor([1, 2]), ad.zeros(3)),
        ValueError,
        r"weight must have the shape \(4,\)",
    ),
    "nll_loss-range": (lambda: F.nll_loss(ad.zeros(2, 4), ad.tensor([1, 4])), (ValueError, IndexError), "4"),
    "nll_loss-floats": (lambda: F.nll_loss(ad.zeros(2, 4), ad.zeros(2)), TypeError, "integer class indices"),
    "bce-shape": (
        lambda: F.binary_cross_entropy_with_logits(ad.zeros(2), ad.zeros(2, 1)),
        ValueError,
        r"the input's shape \(2,\), got \(2, 1\)",
    ),
    "dropout-p": (lambda: F.dropout(x4, 1.5), ValueError, "dropout: p must be between 0 and 1, got 1.5"),
    "batch_norm-one": (
        lambda: F.batch_norm(ad.zeros(1, 3), None, None, training=True),
        ValueError,
        "more than one",
    ),
    "batch_norm-running": (lambda: F.batch_norm(ad.zeros(2, 3), None, None), ValueError, "running_mean"),
    "batch_norm-weight": (
        lambda: F.batch_norm(ad.zeros(2, 3), None, None, ad.zeros(2), training=True),
        ValueError,
        r"weight must have the shape \(3,\), got \(2,\)",
    ),
    "one_hot-range": (
        lambda: F.one_hot(ad.tensor([1, 5]), 3),
        ValueError,
        "class index 5 is out of range for 3",
    ),
    "one_hot-floats": (lambda: F.one_hot(ad.zeros(2)), TypeError, "integer class indices, got dtype float32"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_clear_error(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def test_different_shapes_in_mse_loss_warn() -> None:
    with pytest.warns(UserWarning, match="differ in shape"):
        F.mse_loss(ad.zeros(3, 1), ad.zeros(3))
