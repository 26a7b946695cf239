import inspect
import types

import numpy as np
import pytest

import adjoint as ad
from adjoint import kernels
from adjoint.kernels import cpu, cuda
from adjoint.kernels.geometry.checks import remembered
from adjoint.kernels.interface.checks import side


@pytest.mark.parametrize("name", kernels.__all__)
@pytest.mark.parametrize("side", [cpu, cuda], ids=["cpu", "cuda"])
def test_both_sides_have_the_interface(side, name):
    wanted, got = inspect.signature(getattr(kernels, name)), inspect.signature(getattr(side, name))
    assert list(got.parameters) == list(wanted.parameters)
    for parameter, other in zip(wanted.parameters.values(), got.parameters.values(), strict=True):
        assert (other.kind, other.default) == (parameter.kind, parameter.default), parameter.name


@pytest.mark.parametrize("side", [cpu, cuda], ids=["cpu", "cuda"])
def test_a_side_offers_nothing_else(side):
    functions = {name for name, value in vars(side).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert functions == set(kernels.__all__)


SETTINGS = ((1, 1), ((0, 0), (0, 0)), (1, 1), 1)


def cupy_like(shape=(1, 1, 4, 4)):
    """An object that says it comes from CuPy."""
    ndarray = type("ndarray", (), {"__module__": "cupy", "shape": shape, "dtype": np.dtype(np.float32), "ndim": 4})
    return ndarray()


def test_the_type_of_the_array_chooses_the_side(monkeypatch):
    called = []
    fake = types.SimpleNamespace(conv=lambda *arguments: called.append(arguments))
    monkeypatch.setattr(
        "adjoint.kernels.interface.conv.side", lambda array: fake if not isinstance(array, np.ndarray) else cpu
    )
    x = cupy_like()
    kernels.conv(x, x, None, *SETTINGS)
    assert called == [(x, x, None, (1, 1), ((0, 0), (0, 0)), (1, 1), 1, None, None)]
    monkeypatch.undo()
    assert side(np.zeros(1)) is cpu and side(x) is cuda


def test_arrays_of_two_kinds():
    with pytest.raises(TypeError, match="conv2d: all arrays must live on one device, got: x is NumPy, weight is CuPy"):
        kernels.conv(np.zeros((1, 1, 4, 4), np.float32), cupy_like(), None, *SETTINGS)


def test_what_is_remembered_differs_by_type():
    calls = []

    @remembered
    def check(*arguments):
        calls.append(arguments)
        if arguments[0] == "wrong":
            raise ValueError(arguments)
        return len(calls)

    different = [(1, (2, 3)), (1.0, (2, 3)), (True, (2, 3)), (1, [2, 3]), (1, (2, None)), (-0.0,), (0.0,), (1 << 99,)]
    assert [check(*arguments) for arguments in different] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [check(*arguments) for arguments in different] == [1, 2, 3, 4, 5, 6, 7, 8]
    for count in (9, 10):
        with pytest.raises(ValueError, match="wrong"):
            check("wrong", 1)
        assert len(calls) == count
    assert check(object(), 1) == 11 and check(object(), 1) == 12
    # Of these the same bytes are the whole difference that marshal sees.
    assert [check(0, [kind(0)]) for kind in (np.int64, np.float64, np.uint64, np.zeros)] == [13, 14, 15, 16]


def test_a_setting_that_equals_a_good_one_is_still_an_error():
    x = np.zeros((1, 1, 4, 4), np.float32)
    kernels.conv(x, x, None, *SETTINGS)
    for stride in ((1.0, 1.0), (True, True), [1, 1]):
        with pytest.raises(ValueError, match="stride must be"):
            kernels.conv(x, x, None, stride, *SETTINGS[1:])


def test_a_setting_of_the_bytes_of_a_good_one_is_still_an_error():
    x = ad.tensor(np.zeros((1, 1, 4, 4), np.float32))
    ad.nn.functional.conv2d(x, x, padding=np.int64(0))
    with pytest.raises(TypeError, match="padding must be"):
        ad.nn.functional.conv2d(x, x, padding=np.float64(0))
