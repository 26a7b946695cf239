"""Module, the containers and the layers."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import adjoint as ad
import adjoint.nn as nn


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.scale = nn.Parameter(ad.ones(2))
        self.register_buffer("offset", ad.zeros(2))
        self.register_buffer("scratch", ad.zeros(1), persistent=False)
        self.count = 5

    def forward(self, x: Any, shift: float = 0.0) -> Any:
        return self.linear(x) * self.scale + self.offset + shift


# ---- attributes


def test_parameters_buffers_and_modules_are_registered_by_assignment() -> None:
    block = Block()
    assert [name for name, _ in block.named_parameters()] == ["scale", "linear.weight", "linear.bias"]
    assert [name for name, _ in block.named_buffers()] == ["offset", "scratch"]
    assert [name for name, _ in block.named_modules()] == ["", "linear"]
    assert list(block.state_dict()) == ["scale", "offset", "linear.weight", "linear.bias"]
    assert {"scale", "offset", "linear", "count", "forward"} <= set(dir(block))
    block.extra = nn.Buffer(ad.ones(1))
    block.hidden = nn.Buffer(ad.ones(1), persistent=False)
    assert "extra" in block.state_dict() and "hidden" not in block.state_dict()
    assert [name for name, _ in block.named_buffers()][-2:] == ["extra", "hidden"]


def test_an_attribute_changes_its_kind() -> None:
    block = Block()
    block.count = nn.Parameter(ad.ones(1))
    assert "count" in dict(block.named_parameters()) and "count" not in block.__dict__
    block.count = None
    assert block.count is None and "count" not in dict(block.named_parameters())
    block.scale = nn.Identity()
    assert "scale" in dict(block.named_children()) and "scale" not in dict(block.named_parameters())
    del block.scale
    assert not hasattr(block, "scale")
    with pytest.raises(AttributeError, match="'Block' object has no attribute 'scale'"):
        _ = block.scale
    block.offset = ad.ones(2)
    assert dict(block.named_buffers())["offset"] is block.offset


def test_wrong_assignments_are_errors() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            self.weight = nn.Parameter(ad.ones(1))
            super().__init__()

    with pytest.raises(AttributeError, match=r"cannot assign parameters before Module.__init__\(\) call"):
        Early()
    block = Block()
    with pytest.raises(TypeError, match="cannot assign Tensor as 'scale': expected a Parameter or None"):
        block.scale = ad.ones(2)
    with pytest.raises(TypeError, match="cannot assign int as 'linear': expected a Module"):
        block.linear = 3
    with pytest.raises(TypeError, match="cannot assign list as buffer 'b'"):
        block.register_buffer("b", [1.0])
    with pytest.raises(KeyError, match="must not be empty or contain"):
        block.register_parameter("a.b", nn.Parameter(ad.ones(1)))
    with pytest.raises(KeyError, match="'count' exists already"):
        block.register_buffer("count", ad.ones(1))
    with pytest.raises(ValueError, match="expected a leaf"):
        computed = nn.Parameter(ad.ones(1))
        computed._edge = (computed * 2)._edge
        block.register_parameter("computed", computed)
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(1)


def test_parameter_shares_its_tensor() -> None:
    x = ad.ones(3)
    parameter = nn.Parameter(x)
    assert parameter.requires_grad and parameter.data is x.data and not x.requires_grad
    assert not nn.Parameter(ad.ones(2).long(), requires_grad=False).requires_grad
    with pytest.raises(RuntimeError, match="only floating"):
        nn.Parameter(ad.ones(2).long())
    y = (parameter * parameter).sum()
    x.add_(1)  # the same memory, which the product has saved
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()
    assert repr(nn.Parameter(ad.ones(2))) == "Parameter containing:\ntensor([1., 1.], requires_grad=True)"


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(2, 2)
    chain = nn.Sequential(layer, nn.ReLU(), layer)
    assert len(list(chain.parameters())) == 2
    assert list(chain.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert len(list(chain.named_parameters(remove_duplicate=False))) == 4
    twin = copy.deepcopy(chain)
    assert twin[0] is twin[2] and twin[0] is not layer


# ---- walking, mode, dtype


def test_lookups_by_full_name() -> None:
    network = nn.Sequential(OrderedDict(body=Block()))
    assert network.get_submodule("body.linear") is network.body.linear
    assert network.get_submodule("") is network
    assert network.get_parameter("body.linear.bias") is network.body.linear.bias
    assert network.get_buffer("body.offset") is network.body.offset
    for call, message in (
        (lambda: network.get_submodule("body.other"), "Block has no module 'other'"),
        (lambda: network.get_parameter("body.offset"), "Block has no parameter 'offset'"),
    ):
        with pytest.raises(AttributeError, match=message):
            call()


def test_train_eval_apply_and_requires_grad() -> None:
    network = nn.Sequential(Block(), nn.Sequential(nn.Dropout()))
    seen = []
    assert network.apply(lambda module: seen.append(type(module).__name__)) is network
    assert seen == ["Linear", "Block", "Dropout", "Sequential", "Sequential"]
    assert network.eval() is network and not any(module.training for module in network.modules())
    assert all(module.training for module in network.train().modules())
    network.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(ValueError, match="mode must be a bool"):
        network.train("yes")


def test_zero_grad() -> None:
    block = Block()
    block(ad.ones(1, 3)).sum().backward()
    block.zero_grad(set_to_none=False)
    assert not block.scale.grad.numpy().any()
    block.zero_grad()
    assert all(parameter.grad is None for parameter in block.parameters())


def test_to_changes_floating_tensors_and_keeps_the_objects() -> None:
    block = Block()
    block.register_buffer("counter", ad.zeros(1).long())
    known = dict(block.named_parameters())
    block(ad.ones(1, 3)).sum().backward()
    assert block.double() is block
    assert all(block.get_parameter(name) is parameter for name, parameter in known.items())
    assert {t.dtype for t in (*block.parameters(), block.offset, block.scale.grad)} == {ad.float64}
    assert block.counter.dtype == ad.int64
    block.zero_grad()
    block(ad.ones(1, 3).double()).sum().backward()
    assert block.scale.grad.dtype == ad.float64
    assert block.half().scale.dtype == ad.float16
    assert block.bfloat16().scale.dtype == ad.bfloat16
    assert block.to("cpu", ad.float32).scale.dtype == ad.float32
    assert block.to(ad.zeros(1).double()).scale.dtype == ad.float64
    with pytest.raises(TypeError, match=r"Block\.to: expected a floating dtype, got int64"):
        block.to(ad.int64)
    with pytest.raises(TypeError, match=r'Block\.to: expected a tensor, "cpu", .* dtype; unknown dtype .tpu.'):
        block.to("tpu")
    with pytest.raises((RuntimeError, ValueError)):
        block.to("cuda:99")
    assert block.scale.device == "cpu"


# ---- state


def test_state_dict_shares_memory_and_has_pytorchs_keys(torch: Any) -> None:
    def network(layers: Any) -> Any:
        return layers.Sequential(
            layers.Conv2d(1, 2, 3),
            layers.BatchNorm2d(2),
            layers.Sequential(layers.Flatten(), layers.Linear(8, 3)),
        )

    mine, theirs = network(nn), network(torch.nn)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    state = mine.state_dict()
    assert not state["0.weight"].requires_grad
    assert state["0.weight"].data is mine[0].weight.data
    assert mine.state_dict(keep_vars=True)["0.weight"] is mine[0].weight
    theirs[1].running_mean += 1
    assert mine.load_state_dict(theirs.state_dict()) == ([], [])
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(state[name].numpy(), tensor.numpy())  # written in place
    theirs.bfloat16()
    mine.load_state_dict(theirs.state_dict())
    np.testing.assert_array_equal(state["0.weight"].numpy(), theirs[0].weight.detach().float().numpy())


def test_load_state_dict_takes_arrays_and_converts() -> None:
    layer = nn.Linear(2, 3)
    result = layer.load_state_dict({"weight": np.arange(6.0).reshape(3, 2), "bias": ad.ones(3).half()})
    assert result.missing_keys == [] and result.unexpected_keys == []
    assert layer.weight.dtype == ad.float32 and layer.weight.requires_grad
    np.testing.assert_array_equal(layer.weight.detach().numpy(), np.arange(6).reshape(3, 2))
    array = np.zeros((3, 2))
    layer.load_state_dict({"weight": array}, strict=False, assign=True)
    assert layer.weight.data is array
    np.testing.assert_array_equal(layer.bias.detach().numpy(), [1, 1, 1])


def test_a_state_that_does_not_fit_is_listed_in_full_and_changes_nothing() -> None:
    layer = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: tensor.numpy().copy() for name, tensor in layer.state_dict().items()}
    state = {name: array + 1 for name, array in before.items()}
    del state["0.bias"]
    state["1.weight"] = np.ones(4, np.float32)
    state["extra"] = np.ones(1)
    state["1.num_batches_tracked"] = np.array(1.5)
    with pytest.raises(RuntimeError) as error:
        layer.load_state_dict(state)
    message = str(error.value)
    for part in (
        "of Sequential",
        "unexpected keys: extra",
        "missing keys: 0.bias",
        "1.weight has shape (4,) in the given state, (3,) in the module",
        "1.num_batches_tracked has dtype float64, which does not fit int64",
    ):
        assert part in message
    for name, tensor in layer.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])
    del state["1.weight"], state["1.num_batches_tracked"]
    missing, unexpected = layer.load_state_dict(state, strict=False)
    assert missing == ["0.bias", "1.weight", "1.num_batches_tracked"] and unexpected == ["extra"]
    np.testing.assert_array_equal(layer[0].weight.detach().numpy(), before["0.weight"] + 1)
    with pytest.raises(TypeError, match="expected a dict"):
        layer.load_state_dict([("a", 1)])
    with pytest.raises(TypeError, match=r"0\.weight must be a tensor or an array, got str"):
        layer.load_state_dict({"0.weight": "no"}, strict=False)


def test_copies_and_pickles_are_independent() -> None:
    block = Block()
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert type(twin.scale) is nn.Parameter and twin.scale.requires_grad
        twin(ad.ones(1, 3)).sum().backward()
        assert twin.scale.grad is not None and block.scale.grad is None
        with ad.no_grad():
            twin.scale.add_(1)
        np.testing.assert_array_equal(block.scale.detach().numpy(), [1, 1])
        assert list(twin.state_dict()) == list(block.state_dict())


# ---- hooks


def test_forward_hooks_in_order() -> None:
    block, calls = Block(), []
    first = block.register_forward_pre_hook(lambda module, args: calls.append("pre"))
    block.register_forward_pre_hook(lambda module, args: (args[0] * 0,), prepend=True)
    block.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {"shift": kwargs["shift"] + 1}), with_kwargs=True
    )
    block.register_forward_hook(lambda module, args, result: calls.append(args[0].numpy().sum()))
    block.register_forward_hook(lambda module, args, kwargs, result: result * kwargs["shift"], with_kwargs=True)
    x = ad.ones(1, 3)
    expected = (block.linear.bias.detach().numpy() + 3) * 3
    np.testing.assert_allclose(block(x, shift=2).detach().numpy()[0], expected, rtol=1e-6)
    assert calls == ["pre", 0.0]
    first.remove()
    block(x, shift=2)
    assert calls == ["pre", 0.0, 0.0]


def run_with_backward_hooks(library: Any, layers: Any, x: Any) -> list[Any]:
    class Two(layers.Module):
        def forward(self, a: Any, b: Any) -> Any:
            return a * b, a + 1

    two, seen = Two(), []
    two.register_full_backward_pre_hook(lambda module, out: (out[0] * 10, out[1]))
    two.register_full_backward_hook(lambda module, into, out: seen.extend([*into, *out]))
    two.register_full_backward_hook(lambda module, into, out: (into[0] + 1, None))
    a = library.tensor(x, requires_grad=True)
    first, second = two(a * 2, library.tensor(x))
    (first.sum() + 3 * second.sum()).backward()
    return [*seen, a.grad]


def test_full_backward_hooks_see_and_replace_gradients(torch: Any) -> None:
    x = [1.0, 2.0]
    mine, theirs = run_with_backward_hooks(ad, nn, x), run_with_backward_hooks(torch, torch.nn, x)
    assert len(mine) == len(theirs) == 5
    assert mine[1] is None  # the second input needs no gradient; PyTorch gives zeros here
    for i in (0, 2, 3, 4):
        np.testing.assert_allclose(mine[i].numpy(), theirs[i].numpy())
    np.testing.assert_allclose(mine[-1].numpy(), 2 * (10 * np.array(x) + 3 + 1))


def test_a_backward_hook_where_no_input_needs_a_gradient() -> None:
    layer, seen = nn.Linear(2, 1), []
    layer.register_full_backward_hook(lambda module, into, out: seen.append((into, out[0].numpy())))
    layer(ad.ones(1, 2)).sum().backward()
    assert seen == [((None,), np.ones((1, 1)))]
    assert layer.weight.grad is not None
    with ad.no_grad():
        layer(ad.ones(1, 2))
    assert len(seen) == 1


def test_a_changed_input_is_noticed_through_a_backward_hook() -> None:
    layer = nn.Linear(2, 2)
    layer.register_full_backward_hook(lambda module, into, out: None)
    x = ad.ones(1, 2, requires_grad=True) * 2
    y = layer(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


# ---- containers


def test_sequential() -> None:
    a, b, c = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
    chain = nn.Sequential(a, b, c)
    x = ad.randn(4, 2)
    np.testing.assert_array_equal(chain(x).detach().numpy(), c(b(a(x))).detach().numpy())
    assert len(chain) == 3 and chain[-1] is c and list(chain[1:]) == [b, c] and isinstance(chain[:1], nn.Sequential)
    named = nn.Sequential(OrderedDict(first=a, second=b))
    assert named.first is a and [name for name, _ in named[1:].named_children()] == ["second"]
    named.append(c)
    assert [name for name, _ in named.named_children()] == ["first", "second", "2"]
    named[0] = b
    assert named.first is b
    del chain[0]
    assert [name for name, _ in chain.named_children()] == ["0", "1"] and chain[0] is b
    chain.insert(0, a)
    assert list(chain) == [a, b, c] and chain.pop(1) is b and len(chain) == 2
    assert list(nn.Sequential(b, b).append(b)) == [b, b, b]
    assert list(nn.Sequential(a) + nn.Sequential(c)) == [a, c]
    for call, kind in ((lambda: chain[5], IndexError), (lambda: nn.Sequential(a, 3), TypeError)):
        with pytest.raises(kind, match="Sequential"):
            call()
    with pytest.raises(TypeError, match="int at 2"):
        chain.append(3)
    assert list(chain) == [a, c]


def test_module_list_and_dict() -> None:
    layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    layers.extend([nn.ReLU()]).insert(0, nn.Tanh())
    assert len(layers) == 5 and isinstance(layers[1:3], nn.ModuleList)
    assert [name for name, _ in layers.named_parameters()][:2] == ["1.weight", "1.bias"]
    with pytest.raises(NotImplementedError, match="ModuleList has no forward"):
        layers(1)
    table = nn.ModuleDict({"a": nn.Linear(1, 1)})
    table["b"] = nn.ReLU()
    table.update({"c": nn.Tanh()})
    assert list(table) == list(table.keys()) == ["a", "b", "c"] and "b" in table and len(table) == 3
    assert [name for name, _ in table.named_parameters()] == ["a.weight", "a.bias"]
    assert isinstance(table.pop("b"), nn.ReLU) and dict(table.items()).keys() == {"a", "c"}
    with pytest.raises(TypeError, match="as module 'd'"):
        table["d"] = 5
    values = nn.ParameterList([ad.ones(2), nn.Parameter(ad.ones(3))])
    values.append(ad.zeros(1))
    assert [p.shape for p in values.parameters()] == [(2,), (3,), (1,)] and all(p.requires_grad for p in values)
    with pytest.raises(TypeError, match="expected tensors, got int at 0"):
        nn.ParameterList([1])


# ---- text


def test_repr_without_pytorch() -> None:
    assert repr(Block()) == "Block(\n  (linear): Linear(in_features=3, out_features=2, bias=True)\n)"
    assert repr(nn.ModuleList([nn.ReLU(), nn.ReLU()])) == "ModuleList(\n  (0-1): 2 x ReLU()\n)"
