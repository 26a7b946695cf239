"""New tensors and random ones."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from adjoint.engine import Tensor
from adjoint.engine import random as generators
from adjoint.engine.backend import Device, cuda_is_available
from adjoint.engine.operations.define import functions
from adjoint.engine.random import Generator

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Functions:
    """The registered functions as attributes."""

    def __getattr__(self, name: str) -> Any:
        return functions[name]


ad = Functions()

# ---- new tensors


@pytest.mark.parametrize("dtype", [None, "float64", "float16", "int64", "bool"])
def test_constants_are_those_of_pytorch(dtype: str | None) -> None:
    torch = pytest.importorskip("torch", reason="the reference is PyTorch (extra `peers`)")
    theirs = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    ours = {} if dtype is None else {"dtype": dtype}
    for name, args in [
        ("zeros", (2, 3)), ("zeros", ((2, 3),)), ("ones", (2,)), ("ones", ((),)), ("full", ((2, 3), 1)),
        ("full", ((2,), 2.5)),
        ("full", ((2,), True)), ("arange", (5,)), ("arange", (2, 8, 3)), ("arange", (5, 1, -2)), ("arange",
            (0, 1, 0.25)),
        ("arange", (1.5,)), ("linspace", (0, 1, 5)), ("eye", (3,)), ("eye", (2, 3)),
    ]:  # fmt: skip
        fraction = dtype == "int64" and any(isinstance(arg, float) for arg in args)  # refused, or steps of 0
        if fraction or (name in ("arange", "linspace") and dtype == "bool") or (name, dtype) == ("linspace", "int64"):
            continue
        expected, got = getattr(torch, name)(*args, **theirs), getattr(ad, name)(*args, **ours)
        assert str(got.dtype) == str(expected.dtype).removeprefix("torch."), name
        assert got.tolist() == expected.tolist(), name
    assert ad.arange(0.0, 1.0, 0.1).shape == tuple(torch.arange(0.0, 1.0, 0.1).shape)
    assert ad.arange(1000, dtype="float32")[999] == 999


@pytest.mark.parametrize("data", [1, 2.5, True, [1, 2], [[1.0], [2.0]], [], [True, False], [1, 2.5], (1, 2)])
def test_tensor_reads_python_as_pytorch_does(data: Any) -> None:
    torch = pytest.importorskip("torch", reason="the reference is PyTorch (extra `peers`)")
    expected, got = torch.tensor(data), ad.tensor(data)
    assert str(got.dtype) == str(expected.dtype).removeprefix("torch.")
    assert got.tolist() == expected.tolist() and got.shape == tuple(expected.shape)


NESTED = [
    [np.float64(1)], [np.ones(2), np.zeros(2)], [np.float32(1), 2.0], [np.float16(1)], [np.float16(1), 2.0],
    [np.int32(1)], [np.int32(1), 2.0], [True, 1.0], [[]],
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Creating a tensor from a list of numpy.ndarrays")
@pytest.mark.parametrize("data", NESTED, ids=repr)
def test_the_dtypes_of_arrays_in_lists_count_as_in_pytorch(data: Any) -> None:
    torch = pytest.importorskip("torch", reason="the reference is PyTorch (extra `peers`)")
    assert str(ad.tensor(data).dtype) == str(torch.tensor(data).dtype).removeprefix("torch.")


def test_tensors_in_lists_keep_their_dtype() -> None:
    assert ad.tensor([ad.ones(2, dtype="bfloat16")]).dtype == BFLOAT16
    assert ad.tensor([ad.ones(2, dtype="float64"), ad.ones(2)]).dtype == np.float64
    assert ad.tensor([ad.ones(2, dtype="float64")], dtype="float32").dtype == np.float32


def test_reading_a_list_leaves_nothing_to_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        ad.tensor([[1.0, 2.0], [3.0, 4.0]])
        assert not gc.collect()
    finally:
        gc.enable()


def test_tensor_copies_and_converts() -> None:
    array = np.arange(3.0)
    for source in (array, Tensor(array)):
        copy = ad.tensor(source, requires_grad=True)
        assert copy.dtype == np.float64 and copy.is_leaf and copy.requires_grad
        assert not np.shares_memory(copy.data, array)
    assert ad.tensor(array, dtype="bfloat16").dtype == BFLOAT16
    assert ad.tensor([Tensor(array), array]).shape == (2, 3)
    x = Tensor(array)
    assert ad.as_tensor(x) is x and ad.as_tensor(x, dtype="float32").dtype == np.float32
    with pytest.raises(ValueError, match="tensor: expected numbers in a regular shape"):
        ad.tensor([[1, 2], [3]])
    with pytest.raises(TypeError, match="tensor: expected numbers"):
        ad.tensor("abc")


def test_like_and_new_take_over_what_is_not_said() -> None:
    x = Tensor(np.ones((2, 3), np.float16))
    for name in ("zeros_like", "ones_like", "empty_like", "rand_like", "randn_like"):
        made = getattr(ad, name)(x, requires_grad=True)
        assert made.shape == (2, 3) and made.dtype == np.float16 and made.requires_grad and made.is_leaf
        assert getattr(ad, name)(x, dtype="float64").dtype == np.float64
    assert ad.full_like(x, 7).tolist() == [[7.0] * 3] * 2
    assert x.new_zeros(2).tolist() == [0.0, 0.0] and x.new_ones((1, 2)).dtype == np.float16
    assert x.new_empty(4).shape == (4,) and x.new_full((2,), 3).tolist() == [3.0, 3.0]
    assert x.new_tensor([1, 2]).dtype == np.float16
    assert ad.randint_like(x, 5, 6).tolist() == [[5.0] * 3] * 2


def test_wrong_settings_are_named() -> None:
    for attempt, message in [
        (lambda: ad.zeros(-1), "zeros: expected sizes of at least 0"), (lambda: ad.arange(0, 5, -1),
            "arange: a step of -1 does not lead"),
        (lambda: ad.arange(0, 5, 0), "arange: a step of 0"), (lambda: ad.linspace(0, 1, -1), "linspace"),
        (lambda: ad.eye(-1), "eye"), (lambda: ad.randint(3, 3, (2,)), "randint: expected low < high"),
        (lambda: ad.randperm(-1), "randperm"), (lambda: ad.normal(0, -1, (2,)),
            "normal: expected a standard deviation"),
        (lambda: ad.rand(3).bernoulli_(1.5), "bernoulli_: expected a probability"), (lambda: ad.rand(-2),
            "rand: expected sizes of at least 0"),
        (lambda: ad.randint(3, (-1,)), "randint: expected sizes"), (lambda: ad.ones(1).new_zeros(-1), "new_zeros: "),
        (lambda: ad.rand(3).uniform_(1, 0), "uniform_"), (lambda: ad.rand(3).normal_(0, -1), "normal_"),
        (lambda: ad.multinomial(ad.zeros(3), 1), "multinomial"), (lambda: ad.multinomial(ad.ones(3), 4),
            "multinomial"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            attempt()
    for wrong in (lambda: ad.zeros(2.5), lambda: ad.zeros(2, dtype="text"), lambda: ad.rand(2, dtype="int64"),
                  lambda: Generator().set_state("a"), lambda: ad.arange(3).bernoulli(),
                  lambda: ad.randint(3), lambda: ad.randperm(2.5), lambda: ad.eye("a"),
                  lambda: ad.linspace(0, 1, 2.5), lambda: ad.ones(2).clamp("a")):  # fmt: skip
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(RuntimeError, match="only floating tensors"):
        ad.zeros(2, dtype="int64", requires_grad=True)


@pytest.mark.skipif(cuda_is_available(), reason="a GPU is there")
def test_asking_for_a_gpu_that_is_missing_says_how_to_get_one() -> None:
    with pytest.raises(RuntimeError, match="the CUDA backend needs"):
        ad.zeros(1, device="cuda")
    code = "from adjoint.engine.operations.define import functions; functions['zeros'](1)"
    for backend, message in {
        "cupy": "the CUDA backend needs",
        "tpu": "ADJOINT_BACKEND: expected one of",
    }.items():
        environment = {**os.environ, "ADJOINT_BACKEND": backend}
        ended = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 1 and message in ended.stderr.splitlines()[-1]


# ---- random ones

DRAWS: dict[str, Any] = {
    "rand": lambda g: ad.rand(50, generator=g), "randn": lambda g: ad.randn(50, generator=g),
    "randint": lambda g: ad.randint(1000, (50,), generator=g), "randperm": lambda g: ad.randperm(50,
    generator=g),
    "normal": lambda g: ad.normal(1.0, 2.0, (50,), generator=g),
    "bernoulli": lambda g: ad.full((50,), 0.5).bernoulli(generator=g),
    "multinomial": lambda g: ad.multinomial(ad.ones(60), 50, generator=g),
    "uniform_": lambda g: ad.zeros(50).uniform_(generator=g),
    "normal_": lambda g: ad.zeros(50).normal_(generator=g),
    "bernoulli_": lambda g: ad.zeros(50).bernoulli_(0.5, generator=g),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_the_same_seed_gives_the_same_numbers(name: str) -> None:
    draw = DRAWS[name]
    generators.manual_seed(7)
    first = draw(None).tolist()
    second = draw(None).tolist()
    assert first != second
    generators.manual_seed(7)
    assert draw(None).tolist() == first
    own = Generator().manual_seed(7)
    state = own.get_state()
    assert draw(own).tolist() == first, "a generator of one's own with the same seed"
    assert draw(own).tolist() == second
    assert own.set_state(state) is own
    assert draw(own).tolist() == first
    before = generators.get_rng_state()
    third = draw(None).tolist()
    generators.set_rng_state(before)
    assert draw(None).tolist() == third


def test_seeds() -> None:
    assert generators.manual_seed(5).initial_seed() == generators.initial_seed() == 5
    assert generators.seed() != generators.seed()
    own = Generator()
    assert own.initial_seed() != Generator().initial_seed()
    own.manual_seed(3)
    own.set_state(Generator().manual_seed(9).get_state())
    assert own.initial_seed() == 9
    with pytest.raises(ValueError, match="set_state: expected a uint8 tensor of shape"):
        own.set_state(np.zeros(3, np.uint8))
    # Streams of one seed must not change between versions without being noticed.
    generators.manual_seed(0)
    np.testing.assert_allclose(ad.rand(2, dtype="float64").data, np.random.Generator(np.random.PCG64(0)).random(2))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_distributions(dtype: str) -> None:
    generators.manual_seed(1)
    n = 40000
    uniform = ad.rand(n, dtype=dtype)
    assert str(uniform.dtype) == dtype and float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert abs(float(uniform.double().mean()) - 0.5) < 0.01 and abs(float(uniform.double().var()) - 1 / 12) < 0.003
    gauss = ad.randn(n, dtype=dtype).double()
    assert abs(float(gauss.mean())) < 0.02 and abs(float(gauss.std()) - 1) < 0.02
    assert abs(float((gauss.abs() < 1).double().mean()) - 0.6827) < 0.01
    scaled = ad.empty(n, dtype=dtype).normal_(3, 0.5).double()
    assert abs(float(scaled.mean()) - 3) < 0.02 and abs(float(scaled.std()) - 0.5) < 0.01
    spread = ad.empty(n, dtype=dtype).uniform_(-2, 6).double()
    assert float(spread.min()) >= -2 and float(spread.max()) <= 6 and abs(float(spread.mean()) - 2) < 0.06
    assert abs(float(ad.full((n,), 0.25, dtype=dtype).bernoulli().double().mean()) - 0.25) < 0.01
    assert abs(float(ad.empty(n, dtype=dtype).bernoulli_(0.75).double().mean()) - 0.75) < 0.01


def test_whole_numbers_and_orders() -> None:
    generators.manual_seed(2)
    drawn = ad.randint(-2, 3, (5000,))
    assert drawn.dtype == np.int64
    np.testing.assert_allclose(np.bincount(drawn.data + 2) / 5000, 0.2, atol=0.03)
    assert ad.randint(5, (2, 3), dtype="float32").dtype == np.float32
    assert ad.randint(1, ()).item() == 0
    assert sorted(ad.randperm(100).tolist()) == list(range(100)) != ad.randperm(100).tolist()


def test_draws_by_weight() -> None:
    generators.manual_seed(3)
    weights = Tensor(np.array([[1.0, 0.0, 3.0], [0.0, 2.0, 0.0]]))
    drawn = ad.multinomial(weights, 4000, replacement=True)
    assert drawn.shape == (2, 4000)
    np.testing.assert_allclose(np.bincount(drawn.data[0], minlength=3) / 4000, [0.25, 0, 0.75], atol=0.03)
    assert (drawn[1] == 1).all()
    first = [ad.multinomial(Tensor(np.array([1.0, 0.0, 3.0])), 2).tolist() for _ in range(2000)]
    assert all(sorted(pair) == [0, 2] for pair in first)
    assert abs(sum(pair[0] == 2 for pair in first) / 2000 - 0.75) < 0.04


def test_filling_a_tensor_counts_as_a_change() -> None:
    x = ad.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        x.normal_()
    y = x * 2
    z = y * y
    y.uniform_()
    with pytest.raises(RuntimeError, match="changed in place"):
        z.sum().backward()
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 0.0]


def test_a_generator_of_another_device_is_refused() -> None:
    generator = Generator()
    generator.device = Device("cuda", 0)
    with pytest.raises(RuntimeError, match="rand: expected a generator on cpu, got one on cuda:0"):
        ad.rand(2, generator=generator, device="cpu")
