"""The suites by name. A new one is a module with a SUITE, listed here."""

from . import (
    activation,
    conv,
    depthwise,
    dropout,
    embedding,
    gemm,
    norm,
    optimizer,
    overhead,
    pooling,
    softmax_cross_entropy,
    train,
)

SUITES = {
    module.SUITE.name: module.SUITE
    for module in (
        activation,
        conv,
        depthwise,
        gemm,
        pooling,
        softmax_cross_entropy,
        embedding,
        dropout,
        norm,
        optimizer,
        overhead,
        train,
    )
}
