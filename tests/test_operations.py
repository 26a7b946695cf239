"""Every row of the sample table: values, numeric derivatives, dtypes and memory layouts."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import samples as table

from adjoint.engine import Tensor
from adjoint.engine.autograd import grad, gradcheck, gradgradcheck
from adjoint.engine.operations.define import functions

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of NaN and infinity among the inputs
ROWS = [pytest.param(sample, id=f"{i}-{sample.id}") for i, sample in enumerate(table.samples)]
DIFFERENTIABLE = [row for row in ROWS if row.values[0].differentiable]
# Made from nothing, or random: test_creation_random.py has them.
WITHOUT_SAMPLES = {
    "arange", "as_tensor", "bernoulli", "cuda", "empty", "empty_like", "eye", "from_dlpack", "from_numpy",
    "full",
    "full_like", "linspace", "multinomial", "normal", "ones", "ones_like", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "randperm", "tensor", "zeros", "zeros_like",
}  # fmt: skip


def each(value: Any, change: Callable[[np.ndarray], Any]) -> Any:
    """`value` with every array in it changed."""
    if isinstance(value, np.ndarray):
        return change(value)
    return type(value)(each(item, change) for item in value) if isinstance(value, list | tuple) else value


def all_arrays(value: Any) -> list[np.ndarray]:
    if isinstance(value, list | tuple):
        return [array for item in value for array in all_arrays(item)]
    return [value] if isinstance(value, np.ndarray) else []


def is_float(array: np.ndarray) -> bool:
    return array.dtype.kind in "fV"


def tensors_in(value: Any) -> list[Any]:
    """The floating tensors in nested arguments or results."""
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return [value] if hasattr(value, "requires_grad") and value.is_floating_point() else []


def call(sample: table.Sample, args: Any) -> Any:
    function = functions.get(sample.name) or getattr(Tensor, sample.name)  # some are methods only
    return function(*args, **sample.settings)


def flat(result: Any) -> list[Any]:
    return [item for part in result for item in flat(part)] if isinstance(result, list | tuple) else [result]


def torch_call(torch: Any, sample: table.Sample, args: Any) -> Any:
    if sample.reference is not None:
        return sample.reference(torch, *args, **sample.settings)
    if hasattr(torch, sample.name):
        return getattr(torch, sample.name)(*args, **sample.settings)
    return getattr(args[0], sample.name)(*args[1:], **sample.settings)


def to_torch(torch: Any, array: np.ndarray) -> Any:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.tensor(array.astype(np.float32)).bfloat16()
    return torch.tensor(np.ascontiguousarray(array).reshape(array.shape))


def to_numpy(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        array = value.detach().numpy()
    elif hasattr(value, "detach"):
        value = value.detach()
        array = value.float().numpy() if "bfloat16" in str(value.dtype) else value.numpy()
    else:
        array = np.asarray(value)
    return array.astype(np.float64) if array.dtype.kind == "V" else array


def dtype_name(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.") if hasattr(value, "dtype") else type(value).__name__


def layouts(array: np.ndarray) -> list[np.ndarray]:
    """The same elements laid out otherwise in memory: backwards, with gaps and an offset, columns first."""
    if not array.ndim:
        return [array] * 4
    spread = np.empty((*array.shape[:-1], 2 * array.shape[-1] + 1), array.dtype)[..., 1::2]
    spread[...] = array
    return [array, np.ascontiguousarray(array[..., ::-1])[..., ::-1], spread, np.asfortranarray(array)]


def laid_out(layout: int, array: np.ndarray) -> np.ndarray:
    return layouts(array)[layout] if is_float(array) else array


def test_every_operation_has_samples() -> None:
    missing = set(functions) - {sample.name for sample in table.samples} - WITHOUT_SAMPLES
    assert not missing, f"add rows to tests/samples.py for {sorted(missing)}"
    assert set(functions) >= WITHOUT_SAMPLES


@pytest.mark.parametrize("sample", ROWS)
def test_equals_the_reference(sample: table.Sample) -> None:
    torch = pytest.importorskip("torch", reason="the reference is PyTorch (extra `peers`)")
    needs = sample.differentiable
    expected_args = each(list(sample.args), lambda a: to_torch(torch, a))
    for tensor in tensors_in(expected_args):
        tensor.requires_grad = needs
    expected = flat(torch_call(torch, sample, expected_args))
    roots = [part for part in expected if hasattr(part, "requires_grad") and part.requires_grad]
    directions = [np.asarray(np.random.default_rng(1).standard_normal(root.shape)) for root in roots]
    expected_grads = (
        torch.autograd.grad(roots, tensors_in(expected_args), [torch.tensor(d) for d in directions], allow_unused=True)
        if needs
        else []
    )
    for layout in range(1 if sample.note == "contiguous" else 4):
        arrays = each(list(sample.args), functools.partial(laid_out, layout))
        kept = each(arrays, lambda a: a.copy())
        args = each(arrays, lambda a: Tensor(a, requires_grad=needs and is_float(a)))
        got = flat(call(sample, args))
        assert len(got) == len(expected)
        for ours, theirs in zip(got, expected, strict=True):
            assert dtype_name(ours) == dtype_name(theirs)
            assert np.shape(to_numpy(ours)) == tuple(np.shape(to_numpy(theirs)))
            np.testing.assert_allclose(to_numpy(ours), to_numpy(theirs), rtol=1e-9, atol=1e-11)
        ours = [part for part in got if isinstance(part, Tensor) and part.requires_grad]
        assert len(ours) == len(roots)
        if needs:
            grads = grad(ours, tensors_in(args), [Tensor(d) for d in directions], allow_unused=True)
            for mine, other in zip(grads, expected_grads, strict=True):
                assert (mine is None) == (other is None)
                if mine is not None:
                    np.testing.assert_allclose(to_numpy(mine), to_numpy(other), rtol=1e-8, atol=1e-10)
        for before, after in zip(all_arrays(kept), all_arrays(arrays), strict=True):
            np.testing.assert_array_equal(before, after, err_msg="an input was changed")


@pytest.mark.parametrize("sample", [row for row in ROWS if row.values[0].numpy])
def test_equals_numpy(sample: table.Sample) -> None:
    expected = getattr(np, sample.numpy or "")(*sample.args, **sample.settings)
    np.testing.assert_allclose(to_numpy(call(sample, each(list(sample.args), Tensor))), expected, rtol=1e-10)


@pytest.mark.parametrize("sample", DIFFERENTIABLE)
def test_derivatives_are_those_of_finite_differences(sample: table.Sample) -> None:
    args = each(list(sample.args), lambda a: Tensor(a.copy(), requires_grad=is_float(a)))
    inputs = tensors_in(args)
    used = [
        tensor
        for tensor, found in zip(inputs, grad(summed(flat(call(sample, args))), inputs, allow_unused=True), strict=True)
        if found is not None
    ]

    def function(*given: Tensor) -> Any:
        renamed = {id(old): new for old, new in zip(used, given, strict=True)}
        changed = replace(args, renamed)
        parts = [part for part in flat(call(sample, changed)) if isinstance(part, Tensor) and part.requires_grad]
        return tuple(parts)

    assert gradcheck(function, used, fast_mode=True)
    if sample.twice:
        assert gradgradcheck(function, used, fast_mode=True)


def summed(parts: list[Any]) -> Tensor:
    return sum((part.sum() for part in parts if isinstance(part, Tensor) and part.requires_grad), Tensor(0.0))


def replace(value: Any, renamed: dict[int, Tensor]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(replace(item, renamed) for item in value)
    return renamed.get(id(value), value)


IN_OTHER_DTYPES = [
    pytest.param(sample, dtype, id=f"{i}-{sample.id}-{np.dtype(dtype)}")
    for i, sample in enumerate(table.samples)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16)
    if any(is_float(array) for array in all_arrays(list(sample.args))) and (dtype == np.float32 or sample.halves)
]


@pytest.mark.parametrize(("sample", "dtype"), IN_OTHER_DTYPES)
def test_in_other_dtypes(sample: table.Sample, dtype: Any) -> None:
    """Values near those in float64, results and gradients in the dtype of the input."""
    rounded = each(list(sample.args), lambda a: a.astype(dtype) if is_float(a) else a)
    exact_args = each(rounded, lambda a: Tensor(a.astype(np.float64) if is_float(a) else a))
    args = each(rounded, lambda a: Tensor(a, requires_grad=sample.differentiable and is_float(a)))
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    got = flat(call(sample, args))
    for ours, exact in zip(got, flat(call(sample, exact_args)), strict=True):
        if not isinstance(ours, Tensor):
            assert ours == exact
            continue
        if sample.name != "to":
            assert ours.dtype == (dtype if exact.is_floating_point() else exact.dtype)
        reach = 4 * epsilon * sample.tolerance
        np.testing.assert_allclose(to_numpy(ours).astype(np.float64), to_numpy(exact), rtol=reach, atol=reach)
    if sample.differentiable:
        for found in grad(summed(got), tensors_in(args), allow_unused=True):
            assert found is None or found.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_accumulate_in_float32(dtype: Any) -> None:
    ones = Tensor(np.ones(4096, dtype))
    thirds = np.full(30000, 1 / 3).astype(dtype)
    assert float(ones.sum()) == 4096.0  # bfloat16 alone stops at 256, float16 at 2048
    assert float((ones * 200).mean()) == 200.0  # the sum is more than float16 holds
    assert float(ones @ ones) == 4096.0
    assert float(Tensor(thirds).mean()) == float(thirds[0])
    assert float(functions["linear"](ones.reshape(1, -1), ones.reshape(1, -1))) == 4096.0
    np.testing.assert_allclose(float(Tensor(thirds + dtype(2)).var()), 0.0, atol=1e-6)
    assert float(functions["einsum"]("i,i->", ones, ones)) == 4096.0
    assert float(ones.cumsum(0)[-1]) == 4096.0
    assert float(Tensor(np.zeros(1, dtype)).index_add(0, np.zeros(4096, np.int64), ones)) == 4096.0


def test_shapes_that_do_not_fit_are_named() -> None:
    a, b = Tensor(np.ones((2, 3))), Tensor(np.ones((4, 5)))
    calls: dict[str, Callable[[], Any]] = {
        "Add": lambda: a + b,
        "matmul": lambda: a @ b,
        "mm": lambda: a.mm(a.reshape(-1)),
        "linear": lambda: functions["linear"](a, b),
        "cat": lambda: functions["cat"]([a, b]),
        "stack": lambda: functions["stack"]([a, b]),
        "gather": lambda: a.gather(0, np.zeros((2, 5), np.int64)),
        "split": lambda: a.split([1, 1], 1),
        "topk": lambda: a.topk(9),
        "pad": lambda: functions["pad"](a, (1, 2, 3)),
        "einsum": lambda: functions["einsum"]("ij,ij->i", a, b),
        "diagonal": lambda: a[0].diagonal(),
        "expand": lambda: a.expand(4, 3),
        "reshape": lambda: a.reshape(7),
    }
    for name, attempt in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: "):
            attempt()
    with pytest.raises(TypeError, match=r"^matmul: expected tensors of one dtype, got float64, float32"):
        a @ Tensor(np.ones((3, 1), np.float32))
    flags = a > 0
    for name, wrong in {"sub": lambda: flags - flags, "neg": lambda: -flags, "to": lambda: a.to("tpu")}.items():
        with pytest.raises(TypeError, match=f"^{name}: "):
            wrong()
    for other in (np.array([1j]), np.array(["a"]), np.ones(1, np.uint32)):
        with pytest.raises(TypeError, match=f"there are no tensors of dtype {other.dtype}"):
            a + other
    with pytest.raises(TypeError, match=r"^sum: dim must be an integer or a sequence of them, got float"):
        a.sum(1.5)
    for dim_call in (lambda: a.softmax(2), lambda: a.sum(-3), lambda: a.sort(5), lambda: a.select(0, 2)):
        with pytest.raises(IndexError, match="out of range"):
            dim_call()


def test_no_warning_where_cupy_and_pytorch_give_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = Tensor(np.array([0.0, -1.0, 1e308]), requires_grad=True)
        results = [x.log(), x.sqrt(), 1 / x, x * 10, x - x / 0, (x * 10) ** 2]
        sum(result.sum() for result in results).backward()
    assert not np.isfinite(results[0].detach().numpy()[0])


@pytest.mark.parametrize("divide", ["floor_divide", "remainder", "div"])
def test_an_integer_divided_by_zero_is_an_error(divide):
    settings = {"rounding_mode": "trunc"} if divide == "div" else {}
    with pytest.raises(ZeroDivisionError, match=f"{divide}: an integer divided by 0"):
        functions[divide](Tensor(np.array([1, 2])), Tensor(np.array([1, 0])), **settings)
    assert np.isnan(functions["remainder"](Tensor(np.array([1.0])), 0.0).data).all()
