"""Optimizers and schedules against PyTorch's, step by step, and against their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn as nn
from adjoint.nn import optim
from adjoint.nn.optim import lr_scheduler


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd-decay": ("SGD", {"lr": 0.1, "weight_decay": 0.2}),
    "sgd-momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "sgd-nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "sgd-maximize": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "sgd-maximize-decay": ("SGD", {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam-decay": ("Adam", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}),
    "adam-amsgrad": ("Adam", {"lr": 0.01, "amsgrad": True, "maximize": True, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.01}),
    "adamw-amsgrad": ("AdamW", {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True, "maximize": True}),
    "rmsprop": ("RMSprop", {"lr": 0.01}),
    "rmsprop-momentum": ("RMSprop", {"lr": 0.01, "alpha": 0.8, "momentum": 0.9, "weight_decay": 0.1}),
    "rmsprop-centered": (
        "RMSprop",
        {"lr": 0.01, "eps": 1e-3, "momentum": 0.5, "centered": True, "maximize": True},
    ),
    "adagrad": ("Adagrad", {"lr": 0.1}),
    "adagrad-decay": (
        "Adagrad",
        {"lr": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.5, "weight_decay": 0.1, "maximize": True},
    ),
    "adadelta": ("Adadelta", {"lr": 1.0}),
    "adadelta-decay": ("Adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-4, "weight_decay": 0.1, "maximize": True}),
    "nadam": ("NAdam", {"lr": 0.01}),
    "nadam-decoupled": (
        "NAdam",
        {"lr": 0.1, "weight_decay": 0.2, "decoupled_weight_decay": True, "maximize": True, "momentum_decay": 0.01},
    ),
    "radam": ("RAdam", {"lr": 0.01, "betas": (0.9, 0.7)}),
    "radam-decay": ("RAdam", {"lr": 0.01, "weight_decay": 0.2, "maximize": True}),
    "radam-decoupled": ("RAdam", {"lr": 0.1, "betas": (0.8, 0.6), "weight_decay": 0.2, "decoupled_weight_decay": True}),
    "adamax": ("Adamax", {"lr": 0.01}),
    "adamax-decay": ("Adamax", {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1, "maximize": True}),
}
optimizers = pytest.mark.parametrize("name", OPTIMIZERS)
MU_PRODUCT = 1e-7  # of NAdam, which PyTorch keeps in float32

# One fits whole into a piece, one is cut into pieces, one is a scalar.
SHAPES = [(3, 4), (70_001,), ()]


def gradients(step: int, dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(step)
    return [np.asarray(rng.standard_normal(shape) * 10.0 ** -(step % 3), dtype) for shape in SHAPES]


def parameters(dtype: Any) -> list[nn.Parameter]:
    rng = np.random.default_rng(99)
    return [nn.Parameter(np.asarray(rng.standard_normal(shape), dtype)) for shape in SHAPES]


@optimizers
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-6)])
def test_each_step_is_pytorchs(torch: Any, name: str, dtype: str, tolerance: float) -> None:
    kind, settings = OPTIMIZERS[name]
    tolerance = max(tolerance, MU_PRODUCT) if kind == "NAdam" else tolerance
    mine = parameters(dtype)
    theirs = [torch.nn.Parameter(torch.tensor(p.detach().numpy())) for p in mine]
    ours, reference = getattr(optim, kind)(mine, **settings), getattr(torch.optim, kind)(theirs, **settings)
    for step in range(6):
        for p, q, g in zip(mine, theirs, gradients(step, dtype), strict=True):
            # one parameter has no gradient in the beginning
            p.grad, q.grad = (ad.Tensor(g), torch.tensor(g)) if p.ndim or step > 1 else (None, None)
        ours.step(), reference.step()
        for p, q in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=tolerance, atol=tolerance)


@optimizers
def test_gradients_and_identity_are_kept(name: str) -> None:
    kind, settings = OPTIMIZERS[name]
    mine = parameters("float32")
    arrays, versions = [p.data for p in mine], [p._version for p in mine]
    optimizer = getattr(optim, kind)(mine, **settings)
    for p, g in zip(mine, gradients(0, "float32"), strict=True):
        p.grad = ad.Tensor(g)
    optimizer.step()
    for p, array, version, g in zip(mine, arrays, versions, gradients(0, "float32"), strict=True):
        assert p.data is array and p._version > version and p.requires_grad and p.is_leaf
        np.testing.assert_array_equal(p.grad.numpy(), g)


def test_formulas_by_hand() -> None:
    p, g = np.array([1.0, -2.0]), np.array([0.5, 0.25])
    for optimizer, first, second in (
        (lambda q: optim.SGD(q, lr=0.1, momentum=0.9), p - 0.1 * g, p - 0.1 * g - 0.1 * 1.9 * g),
        (lambda q: optim.Adam(q, lr=0.1, eps=0.0), p - 0.1, p - 0.2),
        (
            lambda q: optim.AdamW(q, lr=0.1, eps=0.0, weight_decay=0.5),
            p * 0.95 - 0.1,
            (p * 0.95 - 0.1) * 0.95 - 0.1,
        ),
    ):
        parameter = nn.Parameter(p.copy())
        steps = optimizer([parameter])
        for expected in (first, second):
            parameter.grad = ad.Tensor(g)
            steps.step()
            np.testing.assert_allclose(parameter.detach().numpy(), expected)


@optimizers
@pytest.mark.parametrize("layout", ["transposed", "reversed", "strided"])
def test_parameters_of_any_layout(name: str, layout: str) -> None:
    kind, settings = OPTIMIZERS[name]
    memory = np.random.default_rng(0).standard_normal((400, 300))
    view = {"transposed": memory.T, "reversed": memory[::-1], "strided": memory[:, ::2]}[layout]
    outside = memory[:, 1::2].copy()
    mine, plain = nn.Parameter(view), nn.Parameter(view.copy())
    for parameter in (mine, plain):
        optimizer = getattr(optim, kind)([parameter], **settings)
        for step in range(2):
            parameter.grad = ad.Tensor(np.random.default_rng(step).standard_normal(view.shape))
            optimizer.step()
    np.testing.assert_allclose(mine.detach().numpy(), plain.detach().numpy(), rtol=1e-14)
    if layout == "strided":
        np.testing.assert_array_equal(memory[:, 1::2], outside)


@optimizers
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_half_types_compute_in_float32(name: str, dtype: str, tolerance: float) -> None:
    kind, settings = OPTIMIZERS[name]
    start = ad.randn(50).to(dtype)
    half, full = nn.Parameter(start.clone()), nn.Parameter(start.float())
    optimizers = [
        getattr(optim, kind)([p], **{**settings, "eps": 1e-3} if "dam" in kind else settings) for p in (half, full)
    ]
    for _ in range(3):
        grad = ad.randn(50).to(dtype)
        half.grad, full.grad = grad, grad.float()
        for optimizer in optimizers:
            optimizer.step()
    assert half.dtype == ad.as_tensor(half.data).dtype == start.dtype
    difference = abs(half.detach().float().numpy() - full.detach().numpy())
    assert 0 < difference.max() < tolerance * 4


def test_empty_parameters_pass() -> None:
    parameter = nn.Parameter(ad.zeros(0, 3))
    for kind in (optim.SGD, optim.Adam):
        parameter.grad = ad.zeros(0, 3)
        kind([parameter], lr=0.1).step()


# ---- groups, closures, saving


def test_groups_have_their_own_settings() -> None:
    a, b = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    optimizer = optim.SGD([{"params": [a]}, {"params": b, "lr": 1.0, "weight_decay": 1.0}], lr=0.1)
    a.grad = b.grad = ad.Tensor(np.ones(2))
    optimizer.step()
    np.testing.assert_allclose(a.detach().numpy(), 0.9)
    np.testing.assert_allclose(b.detach().numpy(), -1.0)
    c = nn.Parameter(np.ones(2))
    optimizer.add_param_group({"params": [c], "lr": 0.5})
    c.grad = ad.Tensor(np.ones(2))
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    np.testing.assert_allclose(a.detach().numpy(), 0.9)
    np.testing.assert_allclose(c.detach().numpy(), 0.5)
    optimizer.zero_grad(set_to_none=False)
    assert not c.grad.numpy().any()
    optimizer.zero_grad()
    assert a.grad is None and c.grad is None


def test_a_closure_runs_with_gradients() -> None:
    parameter = nn.Parameter(np.ones(2))
    optimizer = optim.SGD([parameter], lr=0.25)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (parameter * parameter).sum()
        loss.backward()
        return loss

    with ad.no_grad():
        assert optimizer.step(closure).item() == 2
    np.testing.assert_allclose(parameter.detach().numpy(), 0.5)


def test_a_step_is_noticed_by_a_graph_that_saved_the_parameter() -> None:
    parameter = nn.Parameter(np.ones(2))
    loss = (parameter * parameter).sum()
    loss.backward(retain_graph=True)
    optim.SGD([parameter], lr=0.1).step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


@optimizers
@pytest.mark.parametrize("source", ["ours", "torch"])
def test_going_on_from_a_state_dict(name: str, source: str) -> None:
    library = pytest.importorskip("torch", reason="loads PyTorch's state") if source == "torch" else None
    kind, settings = OPTIMIZERS[name]
    first = parameters("float64")
    optimizer = getattr(optim, kind)(first, **settings)
    if library is not None:
        theirs = [library.nn.Parameter(library.tensor(p.detach().numpy())) for p in first]
        foreign = getattr(library.optim, kind)(theirs, **settings)
    for step in range(3):
        for i, g in enumerate(gradients(step, "float64")):
            first[i].grad = ad.Tensor(g)
            if library is not None:
                theirs[i].grad = library.tensor(g)
        optimizer.step()
        if library is not None:
            foreign.step()
    state = optimizer.state_dict() if library is None else foreign.state_dict()
    second = [nn.Parameter(p.detach().clone()) for p in first]
    resumed = getattr(optim, kind)(second, lr=5.0)
    resumed.load_state_dict(state)
    assert resumed.param_groups[0]["lr"] == settings["lr"]
    for p, q, g in zip(first, second, gradients(3, "float64"), strict=True):
        p.grad = q.grad = ad.Tensor(g)
    optimizer.step(), resumed.step()
    for p, q in zip(first, second, strict=True):
        tolerance = MU_PRODUCT if kind == "NAdam" and library is not None else 1e-12
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=tolerance, atol=tolerance / 100)


def test_state_dict_has_pytorchs_structure(torch: Any) -> None:
    mine, theirs = (
        [nn.Parameter(np.ones(2)) for _ in range(2)],
        [torch.nn.Parameter(torch.ones(2)) for _ in range(2)],
    )
    for kind, settings in OPTIMIZERS.values():
        ours, reference = (
            getattr(optim, kind)(mine, **settings),
            getattr(torch.optim, kind)(theirs, **settings),
        )
        for p, q in zip(mine, theirs, strict=True):
            p.grad, q.grad = ad.Tensor(np.ones(2)), torch.ones(2)
        ours.step(), reference.step()
        a, b = ours.state_dict(), reference.state_dict()
        assert a.keys() == b.keys()
        assert a["param_groups"][0]["params"] == b["param_groups"][0]["params"] == [0, 1]
        assert a["param_groups"][0].keys() <= b["param_groups"][0].keys()
        for number, known in b["state"].items():
            named = {key for key, value in known.items() if value is not None}
            assert named == set(a["state"].get(number, {}))


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    parameter = nn.Parameter(np.ones(2))
    optimizer = optim.Adam([parameter], lr=0.1)
    parameter.grad = ad.Tensor(np.ones(2))
    optimizer.step()
    good = optimizer.state_dict()
    settings = good["param_groups"][0]
    for bad, message in (
        ({}, 'expected a dict with "state"'),
        ({**good, "param_groups": []}, r"groups of \[1\] parameters, but the saved ones have \[\]"),
        ({**good, "param_groups": [{**settings, "params": [0, 1]}]}, r"have \[2\]"),
        ({**good, "state": {0: {"exp_avg": np.ones(3)}}}, r"exp_avg has shape \(3,\), its parameter \(2,\)"),
        ({**good, "state": {7: {}}}, "state for parameter 7"),
        ({**good, "param_groups": [{**settings, "lr": -1.0}]}, "lr must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(bad)
        assert optimizer.param_groups[0]["lr"] == 0.1 and optimizer.state[parameter]["step"] == 1


def test_repr_lists_the_settings() -> None:
    text = repr(optim.SGD([nn.Parameter(np.ones(2))], lr=0.5))
    assert text.startswith("SGD (\nParameter Group 0\n    dampening: 0.0\n    lr: 0.5\n") and text.endswith(")")


# ---- schedules


def test_step_lr_is_pytorchs(torch: Any) -> None:
    groups = [{"lr": 0.5}, {"lr": 0.25}]
    mine = optim.SGD([{"params": [nn.Parameter(np.ones(1))], **g} for g in groups])
    theirs = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], **g} for g in groups])
    ours, reference = lr_scheduler.StepLR(mine, 3, 0.5), torch.optim.lr_scheduler.StepLR(theirs, 3, 0.5)
    for _ in range(8):
        assert ours.get_last_lr() == reference.get_last_lr() == [group["lr"] for group in mine.param_groups]
        theirs.step()
        ours.step(), reference.step()
    resumed = lr_scheduler.StepLR(mine, 1, 0.1)
    resumed.load_state_dict(ours.state_dict())
    assert (resumed.last_epoch, resumed.step_size, resumed.gamma) == (8, 3, 0.5)


def test_step_lr_by_hand() -> None:
    optimizer = optim.SGD([nn.Parameter(np.ones(1))], lr=1.0)
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    seen = []
    for _ in range(5):
        seen.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    np.testing.assert_allclose(seen, [1, 1, 0.1, 0.1, 0.01])
    with pytest.raises(ValueError, match="step_size must be a positive integer, got 0"):
        lr_scheduler.StepLR(optimizer, 0)
    with pytest.raises(TypeError, match="expected an Optimizer, got int"):
        lr_scheduler.StepLR(3, 1)
    with pytest.raises(KeyError, match="initial_lr"):
        lr_scheduler.StepLR(optim.SGD([nn.Parameter(np.ones(1))]), 1, last_epoch=3)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_a_tensor_as_learning_rate_is_changed_in_place(kind: str) -> None:
    lr = ad.tensor(0.5, dtype="float64")
    first, second = nn.Parameter(np.ones(3)), nn.Parameter(np.ones(3))
    optimizers = [getattr(optim, kind)([p], lr=rate) for p, rate in ((first, lr), (second, 0.5))]
    schedulers = [lr_scheduler.StepLR(optimizer, 1, 0.5) for optimizer in optimizers]
    for _ in range(3):
        first.grad = second.grad = ad.Tensor(np.array([1.0, 2.0, -3.0]))
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step(), scheduler.step()
    np.testing.assert_allclose(first.detach().numpy(), second.detach().numpy(), rtol=1e-14)
    assert optimizers[0].param_groups[0]["lr"] is lr and lr.item() == 0.5**4
    assert optimizers[0].param_groups[0]["initial_lr"].item() == 0.5
    with pytest.raises(ValueError, match=f"{kind}: a tensor lr must be one floating number, got float32 of shape"):
        getattr(optim, kind)([first], lr=ad.ones(2))


# ---- bad input

P = [nn.Parameter(np.ones(2))]
BAD = {
    "tensor": (
        lambda: optim.SGD(P[0]),
        TypeError,
        "SGD: params must be an iterable of tensors or dicts, got one",
    ),
    "empty": (lambda: optim.Adam([]), ValueError, "Adam: got an empty list"),
    "numbers": (lambda: optim.SGD([1.0]), TypeError, "SGD: expected tensors, got float"),
    "computed": (lambda: optim.SGD([P[0] * 2]), ValueError, "that was computed"),
    "twice": (lambda: optim.SGD([P[0], P[0]]), ValueError, "given twice"),
    "twice-groups": (lambda: optim.SGD([{"params": P}, {"params": P}]), ValueError, "given twice"),
    "set": (lambda: optim.SGD([{"params": set(P)}]), TypeError, "has no order"),
    "lr": (lambda: optim.SGD(P, lr=-0.1), ValueError, "SGD: lr must be at least 0, got -0.1"),
    "lr-text": (lambda: optim.AdamW(P, lr="1"), TypeError, "AdamW: lr must be a number, got str"),
    "lr-group": (lambda: optim.SGD([{"params": P, "lr": -1}], lr=0.1), ValueError, "SGD: lr must be"),
    "lr-nan": (lambda: optim.SGD(P, lr=float("nan")), ValueError, "lr must be at least 0, got nan"),
    "momentum": (lambda: optim.SGD(P, momentum=-1), ValueError, "momentum must be at least 0"),
    "nesterov": (lambda: optim.SGD(P, nesterov=True), ValueError, "nesterov needs a momentum above 0"),
    "betas": (
        lambda: optim.Adam(P, betas=(0.9, 1.0)),
        ValueError,
        r"betas\[1\] must be at least 0 and below 1, got 1",
    ),
    "betas-one": (lambda: optim.Adam(P, betas=0.9), ValueError, "betas must be two numbers, got 0.9"),
    "no-params": (lambda: optim.SGD([{"lr": 0.1}]), ValueError, "SGD: a group needs \"params\", got only 'lr'"),
    "eps": (lambda: optim.Adam(P, eps=-1e-8), ValueError, "Adam: eps must be at least 0"),
    "rho": (lambda: optim.Adadelta(P, rho=1.5), ValueError, "Adadelta: rho must be at least 0 and at most 1, got 1.5"),
    "alpha": (lambda: optim.RMSprop(P, alpha=-1), ValueError, "RMSprop: alpha must be at least 0, got -1"),
    "nadam": (
        lambda: optim.NAdam(P, betas=(1.0, 0.5)),
        ValueError,
        r"NAdam: betas\[0\] must be at least 0 and below 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_clear_errors(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def test_a_gradient_that_does_not_fit_changes_nothing() -> None:
    good, bad = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    good.grad = bad.grad = ad.Tensor(np.ones(2))
    bad.data = np.ones(1)
    for groups in ([good, bad], [{"params": good}, {"params": bad}]):
        with pytest.raises(RuntimeError, match=r"shape \(1,\) and dtype float64 has a gradient of shape \(2,\)"):
            optim.SGD(groups, lr=0.1).step()
    np.testing.assert_array_equal(good.detach().numpy(), 1)
