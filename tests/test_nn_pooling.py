"""Pooling in nn: against PyTorch, finite differences, and what modules say of themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn.functional as F
from adjoint import nn
from adjoint.engine.gradcheck import gradcheck, gradgradcheck

rng = np.random.default_rng(11)
RANKS = (1, 2, 3)
SIZES = {1: (9,), 2: (6, 7), 3: (4, 5, 6)}


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def distinct(*shape: int) -> np.ndarray:
    """No two elements are close, so that no maximum changes within a finite difference."""
    return rng.permutation(int(np.prod(shape))).reshape(shape) / 7.0 - 3.03


@dataclass(frozen=True)
class Case:
    """One call, the same for both libraries."""

    id: str
    call: Callable[..., Any]
    x: np.ndarray
    indices: np.ndarray | None = None
    twice: bool = True


def _cases(rank: int) -> list[Case]:
    def of(kind: str, *args: Any, **settings: Any) -> Callable[..., Any]:
        name = f"{kind}{rank}d"
        return lambda f, x: getattr(f, name)(x, *args, **settings)

    size, odd = SIZES[rank], (3, 2, 1)[:rank]
    batch, x, apart = (2, 3, *size), normal(2, 3, *size), distinct(2, 3, *size)
    out = tuple(n // 2 for n in size)
    cells = np.stack([rng.permutation(int(np.prod(size)))[: np.prod(out)] for _ in range(6)]).reshape(2, 3, *out)
    unpool = f"max_unpool{rank}d"
    zeros = np.abs(normal(*batch)) + 0.3
    zeros[0] = 0
    return [
        Case(f"max-{rank}", of("max_pool", 2), apart),
        Case(f"max-all-{rank}", of("max_pool", 3, 2, 1, ceil_mode=True), apart),
        Case(f"max-dilated-{rank}", of("max_pool", 2, stride=1, dilation=2), apart),
        Case(f"max-uneven-{rank}", of("max_pool", odd, stride=2), apart),
        Case(f"max-alone-{rank}", of("max_pool", 2), apart[0]),
        Case(f"max-stride-list-{rank}", of("max_pool", [2] * rank, [1] * rank), apart),
        Case(f"avg-{rank}", of("avg_pool", 2), x),
        Case(f"avg-all-{rank}", of("avg_pool", 3, 2, 1, ceil_mode=True, count_include_pad=False), x),
        Case(f"avg-padded-{rank}", of("avg_pool", odd, 1, tuple(n // 2 for n in odd)), x),
        Case(f"avg-alone-{rank}", of("avg_pool", 3, 1), x[0]),
        Case(f"lp-2-{rank}", of("lp_pool", 2, 2), np.abs(x) + 0.2),
        Case(f"lp-1-{rank}", of("lp_pool", 1.0, 3, 2, ceil_mode=True), x),
        Case(f"lp-3.5-{rank}", of("lp_pool", 3.5, 2, 1), np.abs(x[0]) + 0.2),
        Case(f"lp-zeros-{rank}", of("lp_pool", 3, 2), zeros, twice=False),
        Case(f"adaptive-max-{rank}", of("adaptive_max_pool", 3), apart),
        Case(f"adaptive-max-equal-{rank}", of("adaptive_max_pool", 1), apart[0]),
        Case(f"adaptive-avg-{rank}", of("adaptive_avg_pool", 4), x),
        Case(f"adaptive-avg-one-{rank}", of("adaptive_avg_pool", 1), x),
        Case(f"adaptive-avg-alone-{rank}", of("adaptive_avg_pool", (3,) * rank), x[0]),
        Case(
            f"unpool-{rank}",
            lambda f, x, i: getattr(f, unpool)(x, i, 2, output_size=size),
            normal(2, 3, *out),
            cells,
        ),
        Case(
            f"unpool-alone-{rank}",
            lambda f, x, i: getattr(f, unpool)(x, i, 2, 2, 0, list(size)),
            normal(3, *out),
            cells[0],
        ),
    ]


CASES = [case for rank in RANKS for case in _cases(rank)] + [
    Case("avg-divisor-2", lambda f, x: f.avg_pool2d(x, 3, divisor_override=5), normal(3, 6, 7)),
    Case("avg-divisor-3", lambda f, x: f.avg_pool3d(x, 2, divisor_override=-2), normal(1, 2, 4, 4, 4)),
    Case("adaptive-max-none", lambda f, x: f.adaptive_max_pool2d(x, (None, 3)), distinct(2, 2, 4, 7)),
    Case("adaptive-avg-none", lambda f, x: f.adaptive_avg_pool3d(x, (2, None, 4)), normal(2, 4, 3, 5)),
    Case("adaptive-avg-larger", lambda f, x: f.adaptive_avg_pool2d(x, (7, 5)), normal(2, 2, 4, 3)),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def ours(case: Case, dtype: Any = ad.float64) -> list[ad.Tensor]:
    x = ad.Tensor(case.x.astype(dtype), requires_grad=True)
    return [x] if case.indices is None else [x, ad.Tensor(case.indices)]


@cases
def test_values_and_gradients_are_pytorchs(torch: Any, case: Case) -> None:
    x, *rest = ours(case)
    tx = torch.tensor(case.x, requires_grad=True)
    y = case.call(F, x, *rest)
    ty = case.call(torch.nn.functional, tx, *(torch.tensor(i.numpy()) for i in rest))
    assert y.shape == tuple(ty.shape)
    np.testing.assert_allclose(y.detach().numpy(), ty.detach().numpy(), rtol=1e-10, atol=1e-10)
    upstream = normal(*y.shape)
    (dx,) = ad.autograd.grad(y, (x,), ad.Tensor(upstream), create_graph=True)
    (tdx,) = torch.autograd.grad(ty, (tx,), torch.tensor(upstream), create_graph=True)
    np.testing.assert_allclose(dx.detach().numpy(), tdx.detach().numpy(), rtol=1e-10, atol=1e-10)
    if case.id.startswith("lp") and case.twice:
        again, expected = ad.autograd.grad((dx**2).sum(), (x,))[0], torch.autograd.grad((tdx**2).sum(), (tx,))[0]
        np.testing.assert_allclose(again.numpy(), expected.numpy(), rtol=1e-8, atol=1e-8)


@cases
def test_gradients_are_finite_differences(case: Case) -> None:
    if not case.twice:
        pytest.skip("a norm has no derivative at zero")
    x, *rest = ours(case)
    before = x.detach().numpy().copy()
    assert gradcheck(lambda x: case.call(F, x, *rest), (x,), fast_mode=True)
    assert gradgradcheck(lambda x: case.call(F, x, *rest), (x,), fast_mode=True, atol=1e-4)
    np.testing.assert_array_equal(x.detach().numpy(), before)


@pytest.mark.parametrize("name", ["lp-3.5-2", "max-all-3", "adaptive-avg-1", "unpool-2"])
def test_third_derivatives(name: str) -> None:
    case = next(case for case in CASES if case.id == name)
    x, *rest = ours(case)

    def gradient(x: Any) -> Any:
        return ad.autograd.grad((case.call(F, x, *rest) ** 2).sum(), x, create_graph=True)[0]

    assert gradgradcheck(gradient, (x,), fast_mode=True, atol=1e-3)


@cases
def test_half_types_follow_float64(case: Case) -> None:
    for dtype, tolerance in ((ad.float16, 3e-2), (ad.bfloat16, 2e-1)):
        x, *rest = ours(case, dtype)
        rounded = ad.Tensor(x.detach().numpy().astype(np.float64), requires_grad=True)
        y, exact = case.call(F, x, *rest), case.call(F, rounded, *rest)
        assert y.dtype == dtype
        y.sum().backward()
        exact.sum().backward()
        for mine, other in ((y, exact), (x.grad, rounded.grad)):
            assert mine.dtype == dtype
            wide, other = mine.detach().numpy().astype(np.float64), other.detach().numpy()
            assert abs(wide - other).max() < tolerance * (1 + abs(other).max())


@pytest.mark.parametrize("rank", RANKS)
def test_indices_are_pytorchs(torch: Any, rank: int) -> None:
    x = distinct(2, 3, *SIZES[rank])
    tx = torch.tensor(x)
    for kind, args in (("max_pool", (3, 2, 1)), ("adaptive_max_pool", (3,)), ("adaptive_max_pool", (1,))):
        y, indices = getattr(F, f"{kind}{rank}d")(ad.Tensor(x), *args, return_indices=True)
        ty, expected = getattr(torch.nn.functional, f"{kind}{rank}d")(tx, *args, return_indices=True)
        assert indices.dtype == ad.int64 and not indices.requires_grad
        np.testing.assert_array_equal(y.numpy(), ty.numpy())
        np.testing.assert_array_equal(indices.numpy(), expected.numpy())


@pytest.mark.parametrize("rank", RANKS)
def test_unpool_is_the_inverse(rank: int) -> None:
    x = ad.Tensor(distinct(2, 3, *SIZES[rank]))
    pool = getattr(nn, f"MaxPool{rank}d")(2, return_indices=True)
    unpool = getattr(nn, f"MaxUnpool{rank}d")(2)
    y, indices = pool(x)
    back = unpool(y, indices, output_size=x.shape)
    assert back.shape == x.shape
    np.testing.assert_array_equal(getattr(F, f"max_pool{rank}d")(back.abs(), 2).numpy(), y.abs().numpy())
    assert unpool(y, indices % 2).shape == (2, 3, *(n // 2 * 2 for n in SIZES[rank]))


def test_of_repeated_indices_the_last_alone_gets_a_gradient() -> None:
    x = ad.tensor([[[1.0, 2.0, 3.0, 4.0]]], requires_grad=True)
    y = F.max_unpool1d(x, ad.tensor([[[0, 5, 0, 5]]]), 2)
    np.testing.assert_array_equal(y.detach().numpy(), [[[3, 0, 0, 0, 0, 4, 0, 0]]])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[[0, 0, 1, 1]]])


def test_a_norm_of_zeros_passes_no_gradient_on() -> None:
    x = ad.zeros(1, 1, 4, requires_grad=True)
    F.lp_pool1d(x, 2, 2).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [[[0, 0, 0, 0]]])


MODULES: dict[str, Callable[[Any], Any]] = {
    "MaxPool1d": lambda nn: nn.MaxPool1d(3),
    "MaxPool1d all": lambda nn: nn.MaxPool1d(2, 1, 1, 2, ceil_mode=True),
    "MaxPool2d": lambda nn: nn.MaxPool2d((3, 2), stride=(2, 1)),
    "MaxPool3d": lambda nn: nn.MaxPool3d(2, padding=1),
    "MaxPool3d indices": lambda nn: nn.MaxPool3d((1, 2, 3), return_indices=True),
    "AvgPool1d": lambda nn: nn.AvgPool1d(3, 2, 1),
    "AvgPool2d": lambda nn: nn.AvgPool2d((2, 1), padding=(1, 0), count_include_pad=False),
    "AvgPool3d": lambda nn: nn.AvgPool3d(2, ceil_mode=True, divisor_override=3),
    "LPPool1d": lambda nn: nn.LPPool1d(2, 3),
    "LPPool2d": lambda nn: nn.LPPool2d(1, (3, 2), stride=2, ceil_mode=True),
    "LPPool3d": lambda nn: nn.LPPool3d(2, 2, 1),
    "AdaptiveMaxPool1d": lambda nn: nn.AdaptiveMaxPool1d(2),
    "AdaptiveMaxPool2d": lambda nn: nn.AdaptiveMaxPool2d((2, None)),
    "AdaptiveMaxPool3d": lambda nn: nn.AdaptiveMaxPool3d(2, return_indices=True),
    "AdaptiveAvgPool1d": lambda nn: nn.AdaptiveAvgPool1d(4),
    "AdaptiveAvgPool2d": lambda nn: nn.AdaptiveAvgPool2d((None, 2)),
    "AdaptiveAvgPool3d": lambda nn: nn.AdaptiveAvgPool3d((1, 1, 1)),
    "MaxUnpool1d": lambda nn: nn.MaxUnpool1d(2),
    "MaxUnpool2d": lambda nn: nn.MaxUnpool2d(3, 2, 1),
    "MaxUnpool3d": lambda nn: nn.MaxUnpool3d((2, 1, 2)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_pytorchs(torch: Any, name: str) -> None:
    mine, theirs = MODULES[name](nn), MODULES[name](torch.nn)
    assert repr(mine) == repr(theirs)
    expected = list(inspect.signature(type(theirs).__init__).parameters.values())[1:]
    got = list(inspect.signature(type(mine).__init__).parameters.values())[1:]
    assert [(p.name, p.default) for p in got] == [(p.name, p.default) for p in expected]
    if "Unpool" in name:
        return
    x = distinct(2, 3, *SIZES[int(name.split()[0][-2])])
    y, ty = mine(ad.Tensor(x)), theirs(torch.tensor(x))
    for a, b in zip(y, ty, strict=True) if isinstance(y, tuple) else [(y, ty)]:
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12)


KINDS = ("max_pool", "max_unpool", "avg_pool", "lp_pool", "adaptive_avg_pool")


@pytest.mark.parametrize("name", [f"{kind}{rank}d" for kind in KINDS for rank in RANKS])
def test_functions_have_pytorchs_arguments(torch: Any, name: str) -> None:
    parameters = inspect.signature(getattr(F, name)).parameters
    theirs = getattr(torch.nn.functional, name)
    if name.startswith("avg_pool") or name == "adaptive_avg_pool1d":  # built in: the text says
        listed = theirs.__doc__.split("\n\n")[0].split("(")[1].split(")")[0]
        expected = [argument.split("=")[0].strip() for argument in listed.split(",")]
    elif name.startswith("max_pool"):
        theirs = getattr(torch.nn.functional, f"_{name}")
        expected = list(inspect.signature(theirs).parameters)
    else:
        expected = list(inspect.signature(theirs).parameters)
    assert list(parameters) == expected


x3, x4 = ad.zeros(2, 3, 6), ad.zeros(2, 3, 4, 4)
ERRORS = {
    "rank": (lambda: F.max_pool1d(x4, 2), ValueError, r"max_pool1d: input must have the shape \(N, C, L\) or \(C, L\)"),
    "kernel": (lambda: F.max_pool3d(x4, (2, 2)), ValueError, "max_pool3d: kernel_size must be an integer or a triple"),
    "text": (lambda: F.avg_pool1d(x3, "2"), TypeError, "avg_pool1d: kernel_size must be an integer .*got '2'"),
    "stride": (lambda: F.lp_pool1d(x3, 2, 2, 0), ValueError, "lp_pool1d: stride must be at least 1, got 0"),
    "norm": (lambda: F.lp_pool2d(x4, 0, 2), ValueError, "lp_pool2d: norm_type must not be 0"),
    "size": (lambda: F.adaptive_avg_pool2d(x4, (1, 2, 3)), ValueError, "pool2d: output_size must be an integer or 2"),
    "negative": (lambda: F.adaptive_max_pool1d(x3, -1), ValueError, "adaptive_max_pool1d: output_size must be at"),
    "integers": (lambda: F.adaptive_avg_pool1d(x3.long(), 4), TypeError, "adaptive_avg_pool1d: x must be float32"),
    "indices": (
        lambda: F.max_unpool2d(x4, x4[:1].long(), 2),
        ValueError,
        r"max_unpool2d: indices must have the shape \(2, 3, 4, 4\) of input, got \(1, 3, 4, 4\)",
    ),
    "types": (lambda: F.max_unpool1d(x3, x3, 2), TypeError, "max_unpool1d: indices must be int64, got float32"),
    "output": (
        lambda: F.max_unpool1d(x3, x3.long(), 2, output_size=(14,)),
        ValueError,
        r"max_unpool1d: output_size must be between 11 and 13 in dimension -1, got \(14,\)",
    ),
    "outside": (
        lambda: F.max_unpool1d(x3, x3.long() + 12, 2),
        ValueError,
        "max_unpool: indices must be positions in a plane of 12 elements",
    ),
    "array": (lambda: F.max_pool1d(np.zeros((1, 1, 4)), 2), TypeError, "max_pool1d: input must be a Tensor"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()
