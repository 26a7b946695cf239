"""Sample inputs of every operation: one table, which the tests run forward, backward and twice backward.

In a row's arguments a float64 array is an input that may carry a gradient, an integer or bool array becomes a
tensor without one, and anything else is passed as it is. The reference is PyTorch's function of the same name
unless the row says otherwise; where PyTorch is not installed, NumPy's under the name in `numpy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_numbers = np.random.default_rng(20240229)


@dataclass(frozen=True)
class Sample:
    """One call of an operation."""

    name: str
    args: tuple[Any, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    numpy: str | None = None
    reference: Callable[..., Any] | None = None  # (torch, *args, **settings)
    differentiable: bool = True
    twice: bool = True  # gradgradcheck as well
    tolerance: float = 1.0  # factor for halves
    halves: bool = True
    note: str = ""

    @property
    def id(self) -> str:
        """A name for the row from what it is called with."""
        return "-".join([self.name, *(_short(arg) for arg in self.args), *map(str, self.settings.values()), self.note])


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "x".join(map(str, value.shape)) or "scalar"
    return str(value) if not isinstance(value, list | tuple) else "_".join(_short(item) for item in value)


def normal(*shape: int) -> np.ndarray:
    """Normal numbers."""
    return np.asarray(_numbers.standard_normal(shape))


def between(low: float, high: float, *shape: int) -> np.ndarray:
    """Uniform numbers."""
    return np.asarray(_numbers.uniform(low, high, shape))


def distinct(*shape: int) -> np.ndarray:
    """Numbers no two of which are close, in random order: nothing ties, and 0 is far."""
    count = int(np.prod(shape))
    return (_numbers.permutation(count).reshape(shape) - count / 2 + 0.25) / 4


def whole(low: int, high: int, *shape: int) -> np.ndarray:
    """Whole numbers below `high`."""
    return _numbers.integers(low, high, shape)


def mask(*shape: int) -> np.ndarray:
    """Bools, some of either kind."""
    values = _numbers.random(shape) < 0.5
    values.flat[:1] = True
    return values


PAIRS = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((1, 3), (2, 4, 3)),
    ((2, 1), (1, 3)),
    ((), (2, 3)),
    ((0, 3), (1, 3)),
    ((), ()),
]
SHAPES = [(), (0, 3), (5,), (2, 3, 4)]

samples: list[Sample] = []


def row(name: str, *args: Any, **options: Any) -> None:
    """Add a row; options that are no field of Sample are settings of the call."""
    fields = {key: options.pop(key) for key in list(options) if key in Sample.__dataclass_fields__}
    arrays = tuple(np.asarray(arg) if isinstance(arg, np.generic) else arg for arg in args)
    samples.append(Sample(name, arrays, options, **fields))


# ---- elementwise, one argument

_UNARY: dict[str, tuple[Callable[..., np.ndarray], str | None]] = {
    "abs": (distinct, "abs"), "acos": (lambda *s: between(-0.9, 0.9, *s), "arccos"),
    "acosh": (lambda *s: between(1.2, 3, *s), "arccosh"), "asin": (lambda *s: between(-0.9, 0.9, *s),
    "arcsin"),
    "asinh": (normal, "arcsinh"), "atan": (normal, "arctan"), "atanh": (lambda *s: between(-0.9, 0.9, *s),
    "arctanh"),
    "cos": (normal, "cos"), "cosh": (normal, "cosh"), "exp": (normal, "exp"), "exp2": (normal, "exp2"),
    "erf": (normal, None), "erfc": (normal, None), "erfinv": (lambda *s: between(-0.9, 0.9, *s), None),
    "expm1": (normal, "expm1"), "log": (lambda *s: between(0.2, 3, *s), "log"),
    "log10": (lambda *s: between(0.2, 3, *s), "log10"), "log1p": (lambda *s: between(-0.5, 3, *s), "log1p"),
    "log2": (lambda *s: between(0.2, 3, *s), "log2"), "neg": (normal, "negative"),
    "reciprocal": (lambda *s: between(0.5, 3, *s), "reciprocal"), "relu": (distinct, None),
    "rsqrt": (lambda *s: between(0.2, 3, *s), None), "sigmoid": (normal, None), "sin": (normal, "sin"),
    "sinh": (normal, "sinh"), "sqrt": (lambda *s: between(0.2, 3, *s), "sqrt"), "square": (normal, "square"),
    "tan": (lambda *s: between(-1, 1, *s), "tan"), "tanh": (normal, "tanh"),
}  # fmt: skip
for _name, (_make, _numpy) in _UNARY.items():
    for _shape in SHAPES:
        row(_name, _make(*_shape), numpy=_numpy)
row("sigmoid", np.array([-1000.0, -20.0, 20.0, 1000.0]), note="large", halves=False)
row("tanh", np.array([-300.0, 300.0]), note="large", halves=False)
for _name, _numpy in {"ceil": "ceil", "floor": "floor", "trunc": "trunc", "sign": "sign", "round": "round"}.items():
    row(_name, distinct(3, 4), numpy=_numpy)
row("round", normal(3, 4), decimals=1, halves=False)
for _name in ("isnan", "isinf", "isfinite", "logical_not"):
    row(_name, np.array([0.0, 1.0, np.nan, np.inf, -np.inf]), numpy=_name, differentiable=False)
row("bitwise_not", whole(-5, 5, 4), differentiable=False)
row("bitwise_not", mask(4), differentiable=False)
for _limits in ((-0.5, 0.5), (None, 0.5), (-0.5, None), (0.5, -0.5)):
    row("clamp", distinct(3, 4), *_limits)
row("clamp", distinct(3, 4), distinct(4) - 0.1, distinct(3, 1) + 0.1)

# ---- elementwise, two arguments

for _name, _numpy in {"add": "add", "sub": "subtract", "mul": "multiply", "maximum": "maximum",
"minimum": "minimum",
                      "logaddexp": "logaddexp"}.items():  # fmt: skip
    for _a, _b in PAIRS:
        row(_name, distinct(*_a), distinct(*_b) + 0.11, numpy=_numpy)
for _a, _b in PAIRS:
    row("div", normal(*_a), between(0.5, 2, *_b), numpy="divide")
    row("pow", between(0.5, 2, *_a), normal(*_b), numpy="power")
    row("atan2", between(0.3, 2, *_a), normal(*_b), numpy="arctan2")
    row("hypot", between(0.3, 2, *_a), normal(*_b), numpy="hypot")
    row("where", mask(*_b), normal(*_a), normal(*_b), numpy="where")
row("add", normal(3), normal(3), alpha=2.5)
row("sub", normal(3), normal(3), alpha=-2)
row("add", normal(3), 2)
row("mul", normal(3), 2.5)
row("div", normal(3), 2.5)
row("div", distinct(3, 4), between(0.5, 2, 4), rounding_mode="floor", differentiable=False, halves=False)
row("div", distinct(3, 4), between(0.5, 2, 4), rounding_mode="trunc", differentiable=False, halves=False)
row("floor_divide", distinct(3, 4), 0.7, differentiable=False, halves=False)
row("remainder", distinct(3, 4), np.array([0.7, -0.7, 1.9, 0.61]), halves=False)
for _power in (2, 3, 0, 1, -1, 0.5, 2.5):
    row("pow", between(0.5, 2, 3, 2), _power)
row("pow", np.array([-1.5, 0.0, 2.0]), 2, note="zero")
row("pow", 2.0, normal(3), note="base")
row("pow", np.array([0.0, 0.0]), np.array([2.0, 3.0]), note="of zero", twice=False)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    row(_name, np.array([1.0, 2.0, np.nan]), np.array([[1.0], [2.0]]), differentiable=False)
    row(_name, whole(0, 3, 3), 1, differentiable=False)
for _name in ("logical_and", "logical_or", "logical_xor"):
    row(_name, np.array([0.0, 1.0, 2.0]), np.array([[0.0], [3.0]]), numpy=_name, differentiable=False)
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    row(_name, whole(-8, 8, 5), whole(-8, 8, 5), numpy=_name, differentiable=False)
    row(_name, mask(3, 1), mask(4), numpy=_name, differentiable=False)
row("isclose", np.array([1.0, 1.0, np.nan, np.inf]), np.array([1.0 + 1e-7, 1.1, np.nan, np.inf]),
    differentiable=False,
    halves=False)  # fmt: skip
row("isclose", np.array([1.0, np.nan]), np.array([1.2, np.nan]), rtol=0.5, equal_nan=True, differentiable=False)
row("allclose", np.array([1.0, 2.0]), np.array([1.0, 2.1]), differentiable=False)
row("allclose", np.array([1.0, 2.0]), np.array([1.0, 2.1]), rtol=0.1, differentiable=False)
row("equal", normal(3), normal(3), differentiable=False)
row("lerp", normal(3, 4), normal(4), 0.3)
row("lerp", normal(3, 4), normal(4), between(0, 1, 3, 1))
row("addcmul", normal(3, 4), normal(4), normal(3, 1), value=0.5)
row("addcdiv", normal(3, 4), normal(4), between(0.5, 2, 3, 1), value=0.5)

# ---- reductions

for _settings in ({}, {"dim": 1}, {"dim": -1, "keepdim": True}, {"dim": (0, 2)}):
    for _name, _numpy in {"sum": "sum", "mean": "mean", "amax": "amax", "amin": "amin"}.items():
        row(_name, distinct(2, 3, 4), **_settings, numpy=None if _settings else _numpy)
    row("var", distinct(2, 3, 4), **_settings, tolerance=4)
    row("std", distinct(2, 3, 4), **_settings, tolerance=4)
    row("norm", distinct(2, 3, 4), **_settings)
    row("count_nonzero", whole(0, 2, 2, 3, 4), **{k: v for k, v in _settings.items() if k != "keepdim"},
        differentiable=False)  # fmt: skip
for _name in ("all", "any"):
    row(_name, mask(3, 4), differentiable=False, numpy=_name)
    row(_name, mask(3, 4), dim=1, keepdim=True, differentiable=False)
row("sum", normal(0, 3), dim=0)
row("sum", normal(), numpy="sum")
row("sum", whole(-5, 5, 3, 4), dim=1, differentiable=False)
row("sum", mask(3, 4), differentiable=False)
row("sum", normal(3, 4) + 1e4, dim=1, note="offset", halves=False)
row("var", normal(40) + 1e4, note="offset", halves=False)
row("var", normal(3, 4), dim=1, correction=0, tolerance=4)
row("std", normal(3, 4), dim=1, unbiased=False, tolerance=4)
row("std", np.full((3,), 2.0), note="flat", reference=lambda torch, x: torch.std(x), twice=False, differentiable=False)
row("var_mean", normal(3, 4), dim=1, tolerance=4)
row("std_mean", normal(3, 4), dim=1, tolerance=4)
row("prod", between(0.5, 2, 3, 4), 1)
row("prod", np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 3.0]]), 1, note="zeros")
row("prod", between(0.5, 2, 6), numpy="prod")
row("prod", normal(2, 0), 1)
for _p in (1, 3, float("inf"), float("-inf")):
    row("norm", distinct(3, 4), _p, 1)
row("norm", np.zeros(3), note="origin", twice=False, differentiable=False)
row("logsumexp", normal(3, 4), 1)
row("logsumexp", normal(3, 4) * 1000, 1, keepdim=True, note="large", halves=False)
row("logsumexp", np.array([[-np.inf, 0.0], [0.0, 1.0]]), 1, note="inf", twice=False, differentiable=False)
row("cumsum", normal(3, 4), 1, tolerance=4)
row("cumsum", normal(3, 4), 0, tolerance=4)
for _name in ("max", "min"):
    row(_name, distinct(3, 4))
    row(_name, distinct(3, 4), 1)
    row(_name, distinct(3, 4), 0, keepdim=True)
for _name in ("argmax", "argmin"):
    row(_name, distinct(3, 4), numpy=_name, differentiable=False)
    row(_name, np.array([[2.0, 2.0, 1.0], [np.nan, 3.0, 3.0]]), 1, keepdim=True, differentiable=False, note="ties")
row("median", distinct(3, 5), 1)
row("median", distinct(3, 4))
row("median", np.array([1.0, np.nan, 0.0]), 0, note="nan", differentiable=False)
for _dim in (0, 1, -1):
    row("softmax", normal(3, 4, 2), _dim)
    row("log_softmax", normal(3, 4, 2), _dim)
for _name in ("softmax", "log_softmax"):
    row(_name, normal(3, 4) * 1e4, 1, note="large", halves=False)
    row(_name, normal(), 0)
    row(_name, normal(0, 3), 1)

# ---- shape

_INT = (2, 3, 4)
row("reshape", normal(*_INT), (4, -1))
row("reshape", normal(), (1, 1))
row("view", normal(*_INT), (6, 4), reference=lambda torch, x, shape: x.reshape(shape), note="contiguous")
row("view_as", normal(2, 3), normal(6), reference=lambda torch, x, y: x.reshape(y.shape), note="contiguous")
row("reshape_as", normal(2, 3), normal(3, 2), reference=lambda torch, x, y: x.reshape(y.shape))
row("flatten", normal(*_INT), 1)
row("flatten", normal(*_INT), 0, 1)
row("flatten", normal())
row("unflatten", normal(6, 2), 0, (2, -1))
row("permute", normal(*_INT), (1, 2, 0))
row("transpose", normal(*_INT), 0, -1)
row("t", normal(2, 3))
row("movedim", normal(*_INT), 0, 2)
row("expand", normal(3, 1), (2, 3, 4), reference=lambda torch, x, shape: x.expand(shape))
row("expand", normal(3), (3,), reference=lambda torch, x, shape: x.expand(shape))
row("expand_as", normal(3, 1), normal(3, 4), reference=lambda torch, x, y: x.expand_as(y))
row("broadcast_to", normal(3, 1), (2, 3, 4), numpy="broadcast_to")
row("broadcast_tensors", normal(3, 1), normal(4))
row("unsqueeze", normal(2, 3), 1)
row("unsqueeze", normal(2, 3), -1)
row("squeeze", normal(2, 1, 3, 1))
row("squeeze", normal(2, 1, 3, 1), 1)
row("ravel", normal(2, 3))
row("flip", normal(*_INT), (0, 2))
row("roll", normal(3, 4), 1, 1)
row("roll", normal(3, 4), (1, -2), (0, 1))
row("roll", normal(3, 4), 2)
row("tril", normal(2, 3, 3))
row("triu", normal(3, 4), 1)
row("clone", normal(2, 3))
row("contiguous", normal(2, 3), reference=lambda torch, x: x.clone())
row("to", normal(2, 3), "float64", reference=lambda torch, x, _: x.to(torch.float64), halves=False)
row("type_as", normal(2, 3), normal(1), reference=lambda torch, x, y: x.type_as(y))
row("cpu", normal(2, 3), reference=lambda torch, x: x.clone())

# ---- parts

row("select", normal(3, 4), 1, -2)
row("narrow", normal(3, 4), 1, 1, 2)
row("split", normal(5, 2), 2)
row("split", normal(2, 5), [1, 0, 4], dim=1)
row("chunk", normal(2, 5), 3, dim=1)
row("unbind", normal(3, 4), 1)
row("diagonal", normal(3, 4))
row("diagonal", normal(3, 4, 5), -1, 1, 2)
row("diag", normal(3), 1)
row("diag", normal(3, 4), -1)
_ROWS = np.array([2, 0, 2, 1])
row("index_select", normal(3, 4), 0, _ROWS)
row("index_select", normal(2, 3), 1, _ROWS)
row("index_add", normal(3, 4), 0, _ROWS, normal(4, 4), alpha=0.5)
row("index_add", normal(2, 3), 1, _ROWS, normal(2, 4))
row("index_copy", normal(3, 4), 1, np.array([3, 0]), normal(3, 2))
row("index_fill", normal(3, 4), 1, np.array([3, 0]), 2.5)
row("index_put", normal(3, 4), (np.array([0, 2]), np.array([1, 1])), normal(2))
row("index_put", normal(3, 4), (np.array([0, 0, 2]),), normal(4), accumulate=True)
row("index_put", normal(3, 4), (mask(3, 4),), normal())
row("gather", normal(3, 4), 1, whole(0, 4, 2, 6))
row("gather", normal(3, 4), 0, whole(0, 3, 1, 4))
row("take_along_dim", normal(3, 4), whole(0, 4, 1, 2), 1)
row("take_along_dim", normal(3, 4), whole(0, 12, 5))
row("scatter", normal(3, 4), 1, np.array([[0, 2], [3, 1]]), normal(2, 2))
row(
    "scatter", normal(3, 4), 0, whole(0, 3, 1, 4), value=1.5, reference=lambda t, x, d, i, value: x.scatter(d, i, value)
)
row("scatter", normal(3, 4), 1, whole(0, 4, 3, 5), normal(3, 5), reduce="add",
    reference=lambda torch, x, dim, index, source, reduce: x.scatter_add(dim, index, source))  # fmt: skip
row("scatter_add", normal(3, 4), 1, whole(0, 4, 3, 5), normal(3, 5))
row("scatter_add", normal(3, 4), 0, whole(0, 3, 5, 2), normal(6, 4),
    reference=lambda torch, x, dim, index, source: x.scatter_add(dim, index, source[:5, :2]))  # fmt: skip
row("masked_fill", normal(3, 4), mask(4), 2.5)
row("masked_fill", normal(3, 4), mask(3, 4), normal())
row("masked_select", normal(3, 4), mask(4))
row("nonzero", mask(3, 4), differentiable=False)
row("nonzero", whole(0, 2, 5), as_tuple=True, differentiable=False)
row("argwhere", mask(3, 4), numpy="argwhere", differentiable=False)

# ---- joining

row("cat", [normal(2, 3), normal(4, 3)])
row("cat", [normal(2, 3), normal(2, 1), normal(2, 0)], 1)
row("stack", [normal(2, 3), normal(2, 3)], -1)
row("hstack", [normal(2), normal(3)])
row("hstack", [normal(2, 1), normal(2, 3)])
row("vstack", [normal(3), normal(2, 3)])
row("repeat", normal(2, 3), 2, 1, 2)
row("repeat", normal(2, 3), (1, 1))
row("tile", normal(2, 3), (2, 1, 2))
row("tile", normal(2, 3), (2,))
row("repeat_interleave", normal(2, 3), 3, 1)
row("repeat_interleave", normal(2, 3), 2)
row("repeat_interleave", normal(3, 2), np.array([2, 0, 1]), 0)
_PAD = {"reference": lambda torch, *args, **settings: torch.nn.functional.pad(*args, **settings)}
row("pad", normal(2, 3), (1, 2), **_PAD)
row("pad", normal(2, 3), (-1, 2, 1, -1), value=0.5, **_PAD)
for _mode in ("reflect", "replicate", "circular"):
    row("pad", normal(1, 2, 3, 4), (2, 1, 1, 2), mode=_mode, **_PAD)
row("meshgrid", normal(2), normal(3), indexing="ij")
row("meshgrid", normal(2), normal(3), indexing="xy")

# ---- order

row("sort", distinct(3, 5))
row("sort", distinct(3, 5), 0, descending=True)
row("sort", np.array([2.0, np.nan, 1.0, 2.0]), stable=True, descending=True, note="nan", differentiable=False)
row("argsort", distinct(3, 5), 1, differentiable=False)
row("topk", distinct(3, 5), 2)
row("topk", distinct(3, 5), 3, 0, largest=False)
row("kthvalue", distinct(3, 5), 2)
row("unique", np.array([3.0, 1.0, 3.0, 2.0]), differentiable=False, numpy="unique")
row("unique", whole(0, 3, 3, 4), return_inverse=True, return_counts=True, differentiable=False)

# ---- products

for _a, _b in [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((2, 3),
    (5, 3, 4)),
               ((5, 1, 2, 3), (4, 3, 2)), ((3,), (5, 3, 2)), ((5, 2, 3), (3,)), ((0, 3), (3, 2)), ((2, 0),
                   (0, 3))]:  # fmt: skip
    row("matmul", normal(*_a), normal(*_b), numpy="matmul", tolerance=2)
row("mm", normal(2, 3), normal(3, 4), numpy="matmul", tolerance=2)
row("bmm", normal(5, 2, 3), normal(5, 3, 4), numpy="matmul", tolerance=2)
row("mv", normal(2, 3), normal(3), numpy="matmul", tolerance=2)
row("dot", normal(3), normal(3), numpy="dot", tolerance=2)
row("outer", normal(3), normal(2), numpy="outer")
row("addmm", normal(4), normal(2, 3), normal(3, 4), beta=0.5, alpha=2, tolerance=4)
row("baddbmm", normal(5, 2, 4), normal(5, 2, 3), normal(5, 3, 4), tolerance=4)
_LINEAR = {"reference": lambda torch, *args: torch.nn.functional.linear(*args), "tolerance": 2}
for _shape in [(2, 3), (3,), (4, 2, 3), (0, 3)]:
    row("linear", normal(*_shape), normal(5, 3), normal(5), **_LINEAR)
row("linear", normal(2, 3), normal(5, 3), **_LINEAR)
for _equation, *_shapes in [
    ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)), ("...ij,jk->...k", (2, 3, 4), (4, 5)), ("ij,jk,kl", (2, 3), (3,
        4), (4, 2)),
    ("iij->j", (3, 3, 2)), ("ij,ij->ij", (1, 3), (2, 3)), ("i,j->", (2,), (3,)), ("ii,i->i", (3, 3), (3,)),
    ("ij->ji", (2, 3)), ("bi,bi->b", (2, 3), (2, 3)),
]:  # fmt: skip
    row("einsum", _equation, *[normal(*_shape) for _shape in _shapes], tolerance=4)
