"""A stand-in for the cuBLASLt library: C functions that check how they are called, as cublasLt.h wants it, and compute.

A product is computed on the host from what its descriptors say, and from nothing else.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from ctypes import c_int, c_int64, c_size_t, c_uint64, c_void_p
from typing import Any

import ml_dtypes
import numpy as np

INVALID_VALUE, NOT_SUPPORTED = 7, 15

# cudaDataType, and what it is to NumPy.
TYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float64), 2: np.dtype(np.float16), 14: np.dtype(ml_dtypes.bfloat16)}
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77
BIAS, GELU = 4, 32  # of the epilogue

# The bytes of the attributes of each kind of object that have a meaning here, from cublasLt.h.
SIZES = {
    "MatmulDesc": {3: 4, 4: 4, 7: 4, 8: 8},
    "MatrixLayout": {5: 4, 6: 8},
    "MatmulPreference": {1: 8, 3: 4, 5: 4, 6: 4, 7: 4, 8: 4},
}
_A = c_void_p
PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cublasLtGetVersion": (c_size_t, ()),
    "cublasLtGetStatusString": (c_void_p, (c_int,)),  # a callback cannot return text
    "cublasLtCreate": (c_int, (_A,)),
    "cublasLtMatmulDescCreate": (c_int, (_A, c_int, c_int)),
    "cublasLtMatrixLayoutCreate": (c_int, (_A, c_int, c_uint64, c_uint64, c_int64)),
    "cublasLtMatmulPreferenceCreate": (c_int, (_A,)),
    "cublasLtMatmulAlgoGetHeuristic": (c_int, (_A, _A, _A, _A, _A, _A, _A, c_int, _A, _A)),
    "cublasLtMatmul": (c_int, (*(_A,) * 14, c_size_t, _A)),
    **{f"cublasLt{kind}SetAttribute": (c_int, (_A, c_int, _A, c_size_t)) for kind in SIZES},
    **{f"cublasLt{kind}Destroy": (c_int, (_A,)) for kind in SIZES},
}


class HostCublasLt:
    """The functions, as a ctypes library has them. `calls` are their names in order, `products` what was computed.

    `refuses(epilogue)` says for which epilogues there is no algorithm. `failing` maps a function's name to the status
    with which it fails.
    """

    def __init__(self, stream: int, version: int = 120903) -> None:
        self.stream, self.version = stream, version
        self.refuses: Callable[[int], bool] = lambda epilogue: False
        self.failing: dict[str, int] = {}
        self.calls: list[str] = []
        self.products: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.objects: dict[int, dict[Any, Any]] = {}
        self._numbers = itertools.count(0x1000, 0x10)
        for name, (result, arguments) in PROTOTYPES.items():
            kind = next((kind for kind in SIZES if kind in name), "")
            setattr(self, name, ctypes.CFUNCTYPE(result, *arguments)(self._wrapped(name, kind)))

    def _wrapped(self, name: str, kind: str) -> Callable[..., Any]:
        method = getattr(self, "_" + name.removeprefix("cublasLt").removeprefix(kind), None)
        own = getattr(self, "_" + name.removeprefix("cublasLt"), None)

        def run(*arguments: Any) -> Any:
            if own is not None and name in ("cublasLtGetVersion", "cublasLtGetStatusString"):
                return own(*arguments)
            self.calls.append(name)
            if name in self.failing:
                return self.failing[name]
            try:
                if own is not None:
                    return own(*arguments)
                assert method is not None
                return method(kind, *arguments)
            except AssertionError as error:  # a callback cannot raise
                self.problems.append(f"{name}: {error}")
                return INVALID_VALUE

        return run

    def _GetVersion(self) -> int:
        return self.version

    def _GetStatusString(self, status: int) -> int:
        self._words = ctypes.create_string_buffer(b"these are the words of status %d" % status)
        return ctypes.addressof(self._words)

    def _new(self, where: int, **what: Any) -> int:
        number = next(self._numbers)
        self.objects[number] = what
        c_void_p.from_address(where).value = number
        return 0

    def _Create(self, *arguments: Any) -> int:
        if len(arguments) == 1:
            return self._new(arguments[0], kind="handle")
        kind, where, *values = arguments
        if kind == "MatrixLayout":
            names = ["type", "rows", "columns", "pitch"]
            defaults = {5: 1, 6: 0}
        else:
            names = ["compute", "scale"]
            defaults = (
                {3: 0, 4: 0, 7: 1, 8: 0} if kind == "MatmulDesc" else {1: 0, 3: 7, 5: 256, 6: 256, 7: 256, 8: 256}
            )
        return self._new(
            where, kind=kind, **dict(zip(names, values, strict=False)), **{str(k): v for k, v in defaults.items()}
        )

    def _Destroy(self, kind: str, number: int) -> int:
        assert self.objects.pop(number)["kind"] == kind, "an object of this kind"
        return 0

    def _SetAttribute(self, kind: str, number: int, attribute: int, value: int, size: int) -> int:
        assert SIZES[kind].get(attribute) == size, f"attribute {attribute} of {kind} has not {size} bytes"
        assert self._get(number, kind) is not None
        self.objects[number][str(attribute)] = int.from_bytes(
            ctypes.string_at(value, size), "little", signed=attribute == 6
        )
        return 0

    def _get(self, number: int, kind: str) -> dict[Any, Any]:
        found = self.objects.get(number)
        assert found is not None and found["kind"] == kind, f"{number:#x} is no {kind}"
        return found

    def _described(self, numbers: tuple[int, ...]) -> tuple[dict, list[dict], tuple[int, int, int]]:
        """The descriptor, the layouts of A, B, C and D, and (rows, columns, depth) as the library sees them."""
        descriptor = self._get(numbers[0], "MatmulDesc")
        a, b, c, d = layouts = [self._get(number, "MatrixLayout") for number in numbers[1:]]
        rows, depth = (a["columns"], a["rows"]) if descriptor["3"] else (a["rows"], a["columns"])
        depth_b, columns = (b["columns"], b["rows"]) if descriptor["4"] else (b["rows"], b["columns"])
        assert depth == depth_b, "A and B do not fit"
        assert c == d and (d["rows"], d["columns"]) == (rows, columns), "C and D do not fit"
        assert all(layout["pitch"] >= layout["rows"] > 0 for layout in layouts), "columns overlap"
        assert len({layout["5"] for layout in layouts}) == 1, "batches of different sizes"
        assert d["5"] == 1 or abs(d["6"]) >= rows, "results overlap"
        types = {layout["type"] for layout in layouts}
        assert len(types) == 1, "types differ"
        double = types == {1}
        assert descriptor["scale"] == (1 if double else 0), "the type of alpha and beta"
        allowed = {COMPUTE_64F} if double else {COMPUTE_32F, COMPUTE_32F_FAST_TF32} if types == {0} else {COMPUTE_32F}
        assert descriptor["compute"] in allowed, "the type of the sums"
        return descriptor, layouts, (rows, columns, depth)

    def _MatmulAlgoGetHeuristic(self, handle: int, *arguments: int) -> int:
        self._get(handle, "handle")
        *numbers, preference_number, requested, results, count = arguments
        descriptor, layouts, _ = self._described(tuple(numbers))
        preference = self._get(preference_number, "MatmulPreference")
        assert requested == 1
        if self.refuses(descriptor["7"]):
            return NOT_SUPPORTED
        if layouts[0]["type"] in (2, 14):
            assert preference["3"] == 2, "parts of sums of halves may only be added in float"
        number = next(self._numbers)
        self.objects[number] = {
            "kind": "algorithm",
            "of": tuple(numbers),
            "alignments": [preference[str(attribute)] for attribute in (5, 6, 8)],
            "workspace": preference["1"],
            "bias alignment": descriptor["8"] & -descriptor["8"],
        }
        ctypes.memset(results, 0, 96)  # sizeof(cublasLtMatmulHeuristicResult_t)
        c_uint64.from_address(results).value = number  # of the 64 bytes of the algorithm
        c_size_t.from_address(results + 64).value = preference["1"]
        c_int.from_address(count).value = 1
        return 0

    def _Matmul(self, handle: int, *arguments: int) -> int:
        self._get(handle, "handle")
        descriptor_number, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm = arguments[:12]
        workspace, workspace_bytes, stream = arguments[12:]
        numbers = (descriptor_number, a_layout, b_layout, c_layout, d_layout)
        descriptor, layouts, (rows, columns, depth) = self._described(numbers)
        chosen = self._get(c_uint64.from_address(algorithm).value, "algorithm")
        assert chosen["of"] == numbers, "the algorithm was chosen for another product"
        for name, pointer, alignment in zip("ABD", (a, b, d), chosen["alignments"], strict=True):
            assert pointer % alignment == 0, f"{name} is not at a multiple of {alignment}, as was said"
        assert workspace and workspace % 16 == 0 and workspace_bytes >= chosen["workspace"], "the workspace"
        assert stream == self.stream, f"stream {stream}"
        scalar = ctypes.c_double if descriptor["scale"] == 1 else ctypes.c_float
        assert (scalar.from_address(alpha).value, scalar.from_address(beta).value) == (1, 0) and c == d
        bias = None
        if descriptor["7"] & BIAS:
            assert descriptor["8"] and descriptor["8"] % max(chosen["bias alignment"], 16) == 0, "the bias"
            bias = _matrices(descriptor["8"], {**layouts[3], "columns": 1, "pitch": rows}, 1)[0].astype(np.float64)
        count = layouts[0]["5"]
        left, right, out = (
            _matrices(pointer, layout, count) for pointer, layout in ((a, layouts[0]), (b, layouts[1]), (d, layouts[3]))
        )
        tf32 = descriptor["compute"] == COMPUTE_32F_FAST_TF32
        for x, y, result in zip(left, right, out, strict=True):
            x, y = (_tf32(x), _tf32(y)) if tf32 else (x, y)
            x, y = x.T if descriptor["3"] else x, y.T if descriptor["4"] else y
            z = x.astype(np.float64) @ y.astype(np.float64)
            z = z if bias is None else z + bias
            if descriptor["7"] & GELU:
                z = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
            result[...] = z.astype(result.dtype)
        sizes = {"rows": rows, "columns": columns, "depth": depth, "count": count}
        strides = {"a": layouts[0]["6"], "b": layouts[1]["6"]}
        self.products.append({**sizes, **strides, "epilogue": descriptor["7"], "compute": descriptor["compute"]})
        return 0


def _matrices(pointer: int, layout: dict[Any, Any], count: int) -> list[np.ndarray]:
    """The matrices of a batch where they lie, column after column."""
    dtype, rows, columns, pitch = TYPES[layout["type"]], layout["rows"], layout["columns"], layout["pitch"]
    size = ((columns - 1) * pitch + rows) * dtype.itemsize
    found = []
    for number in range(count):
        memory = (ctypes.c_char * size).from_address(pointer + number * layout["6"] * dtype.itemsize)
        vector = np.frombuffer(memory, dtype)
        strides = (dtype.itemsize, pitch * dtype.itemsize)
        found.append(np.lib.stride_tricks.as_strided(vector, (rows, columns), strides))
    return found


def _tf32(x: np.ndarray) -> np.ndarray:
    return ((x.view(np.uint32) + np.uint32(1 << 12)) & ~np.uint32((1 << 13) - 1)).view(np.float32)
