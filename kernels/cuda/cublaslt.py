"""Bindings of cuBLASLt for matrix products on an explicit stream with a workspace of its own, which may be captured.

CuPy's products cannot be: while a stream is captured it refuses every cuBLAS call. Here a repeated product is one call
of the library: its descriptors and algorithm are kept, nothing is allocated, copied or waited for. The names and
numbers are those of cublasLt.h (https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api), the same since CUDA 11.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any, NamedTuple

from ..geometry.matmul import Batch, Lines

_SUCCESS = 0
_NOT_SUPPORTED = 15
_OLDEST_VERSION = 120000

_DATA_TYPES = {"float": 0, "double": 1, "float16": 2, "bfloat16": 14}  # CUDA_R_…
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32, _COMPUTE_64F = 68, 77, 70
_TRANSPOSED = 1

# Attributes of a product's descriptor, a layout and a preference, and the types of their values.
_TRANSA, _TRANSB, _EPILOGUE, _BIAS_POINTER = (3, c_int32), (4, c_int32), (7, c_uint32), (8, c_void_p)
_BATCH_COUNT, _BATCH_STRIDE = (5, c_int32), (6, c_int64)
_WORKSPACE_BYTES, _REDUCTIONS = (1, c_uint64), (3, c_uint32)
_ALIGNMENT_A, _ALIGNMENT_B, _ALIGNMENT_C, _ALIGNMENT_D = ((number, c_uint32) for number in (5, 6, 7, 8))

_EPILOGUE_PLAIN, _EPILOGUE_BIAS, _EPILOGUE_GELU = 1, 4, 32
# Parts of a sum may be added up in the type of the sums, not in that of the result, where that is shorter.
_REDUCTION_IN_COMPUTE_TYPE = 2

_MOST_ALIGNMENT = 256
_PER_THREAD = 2  # cudaStreamPerThread: of each thread another stream
_MOST_PLANS = 1024


class Product(NamedTuple):
    """out = activation(a @ b + bias) for matrices (rows, depth) and (depth, columns); out has dense rows."""

    c_type: str
    tf32: bool  # whether float factors may be rounded to TF32
    rows: int
    columns: int
    depth: int
    a: Lines
    b: Lines
    batch: Batch
    has_bias: bool  # one number for each column
    gelu_tanh: bool


class Pointers(NamedTuple):
    a: int
    b: int
    out: int
    bias: int  # 0 where there is none


# Allocates so many bytes: their address, and what keeps them.
NewWorkspace = Callable[[int], tuple[int, Any]]


class _Algorithm(ctypes.Structure):
    _fields_ = (("data", c_uint64 * 8),)


class _Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace_bytes", c_size_t),
        ("state", c_int),
        ("waves", ctypes.c_float),
        ("reserved", c_int * 4),
    )


_P = c_void_p
_ATTRIBUTE = (_P, c_int, _P, c_size_t)
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cublasLtGetVersion": (c_size_t, ()),
    "cublasLtGetStatusString": (c_char_p, (c_int,)),
    "cublasLtCreate": (c_int, (POINTER(_P),)),
    "cublasLtMatmulDescCreate": (c_int, (POINTER(_P), c_int, c_int)),
    "cublasLtMatmulDescDestroy": (c_int, (_P,)),
    "cublasLtMatmulDescSetAttribute": (c_int, _ATTRIBUTE),
    "cublasLtMatrixLayoutCreate": (c_int, (POINTER(_P), c_int, c_uint64, c_uint64, c_int64)),
    "cublasLtMatrixLayoutDestroy": (c_int, (_P,)),
    "cublasLtMatrixLayoutSetAttribute": (c_int, _ATTRIBUTE),
    "cublasLtMatmulPreferenceCreate": (c_int, (POINTER(_P),)),
    "cublasLtMatmulPreferenceDestroy": (c_int, (_P,)),
    "cublasLtMatmulPreferenceSetAttribute": (c_int, _ATTRIBUTE),
    "cublasLtMatmulAlgoGetHeuristic": (
        c_int,
        (_P, _P, _P, _P, _P, _P, _P, c_int, POINTER(_Heuristic), POINTER(c_int)),
    ),
    "cublasLtMatmul": (
        c_int,
        (_P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, POINTER(_Algorithm), _P, c_size_t, _P),
    ),
}


class CublasLtError(RuntimeError):
    """A call of cuBLASLt that failed."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class CublasLt:
    """The library: products on any device and stream. `functions` has those of `SIGNATURES`, such as a ctypes.CDLL."""

    def __init__(self, functions: Any) -> None:
        self._functions = functions
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(functions, name)
            function.restype, function.argtypes = result, arguments
        self._handles: dict[int, c_void_p] = {}
        self._plans: OrderedDict[tuple[Any, ...], _Plan | None] = OrderedDict()
        self._workspaces: dict[tuple[int, int, int], tuple[int, int, Any]] = {}
        self._lock = threading.Lock()

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; a CublasLtError with its name and the library's words if it fails."""
        status = getattr(self._functions, name)(*arguments)
        if status != _SUCCESS:
            words = self._functions.cublasLtGetStatusString(status)
            raise CublasLtError(f"{name} failed: {words.decode()} (status {status})", status)

    def multiply(
        self,
        product: Product,
        pointers: Pointers,
        device: int,
        stream: int,
        workspace_bytes: int,
        new_workspace: NewWorkspace,
    ) -> bool:
        """Queue a product on a stream of the current device; False where the library has no algorithm for it.

        `new_workspace` is called at a stream's first product.
        """
        with self._lock:
            plan = self._plan(device, product, pointers, workspace_bytes)
            if plan is None:
                return False
            address, nbytes, _ = self._workspace(device, stream, workspace_bytes, new_workspace)
        plan.run(pointers, address, nbytes, stream)
        return True

    def release(self, device: int, stream: int) -> None:
        """Give a stream's workspace back: for the owner of a stream that will launch no more products."""
        with self._lock:
            self._workspaces.pop(_whose(device, stream), None)

    def handle(self, device: int) -> c_void_p:
        """The library's handle for the current device, whose number is `device`."""
        if device not in self._handles:
            handle = c_void_p()
            self.call("cublasLtCreate", byref(handle))
            self._handles[device] = handle
        return self._handles[device]

    def _workspace(self, device: int, stream: int, nbytes: int, new_workspace: NewWorkspace) -> tuple[int, int, Any]:
        key = _whose(device, stream)
        if key not in self._workspaces:
            address, owner = new_workspace(nbytes)
            self._workspaces[key] = (address, nbytes, owner)
        return self._workspaces[key]

    def _plan(self, device: int, product: Product, pointers: Pointers, workspace_bytes: int) -> _Plan | None:
        alignments = tuple(map(_alignment, pointers))
        key = (device, product, alignments)
        try:
            self._plans.move_to_end(key)
            return self._plans[key]
        except KeyError:
            pass
        plan: _Plan | None = _Plan(self, self.handle(device), product, pointers.bias)
        assert plan is not None
        if not plan.choose(alignments, workspace_bytes):
            plan = None
        self._plans[key] = plan
        if len(self._plans) > _MOST_PLANS:
            self._plans.popitem(last=False)
        return plan


class _Plan:
    """The descriptors of one product, and the algorithm that the library's heuristic chose for it.

    The library's matrices have their columns one after the other, ours their rows: what it computes is the transposed
    product, out.T = b.T @ a.T, so that its A is our b.
    """

    def __init__(self, library: CublasLt, handle: c_void_p, product: Product, bias: int) -> None:
        self._library, self._handle = library, handle
        self._lock = threading.Lock()  # the bias pointer is part of the descriptor
        self._destroy: list[tuple[str, c_void_p]] = []
        double, half = product.c_type == "double", product.c_type not in ("float", "double")
        self._sums_in_compute_type = half
        compute = _COMPUTE_64F if double else _COMPUTE_32F_FAST_TF32 if product.tf32 else _COMPUTE_32F
        data_type = _DATA_TYPES[product.c_type]
        self._descriptor = self._create("MatmulDesc", compute, _DATA_TYPES["double" if double else "float"])
        self._set("MatmulDesc", self._descriptor, _TRANSA, product.b.transposed * _TRANSPOSED)
        self._set("MatmulDesc", self._descriptor, _TRANSB, product.a.transposed * _TRANSPOSED)
        epilogue = product.has_bias * _EPILOGUE_BIAS + product.gelu_tanh * _EPILOGUE_GELU
        self._set("MatmulDesc", self._descriptor, _EPILOGUE, epilogue or _EPILOGUE_PLAIN)
        self._bias = 0
        self._set_bias(bias)

        def layout(rows: int, columns: int, pitch: int, stride: int) -> c_void_p:
            made = self._create("MatrixLayout", data_type, rows, columns, pitch)
            self._set("MatrixLayout", made, _BATCH_COUNT, product.batch.times)
            self._set("MatrixLayout", made, _BATCH_STRIDE, stride)
            return made

        self._a = layout(*_as_stored(product.depth, product.columns, product.b), product.batch.b)
        self._b = layout(*_as_stored(product.rows, product.depth, product.a), product.batch.a)
        self._out = layout(product.columns, product.rows, product.columns, product.batch.out)
        scalar = ctypes.c_double if double else ctypes.c_float
        self._one, self._zero = scalar(1), scalar(0)
        self._heuristic = _Heuristic()

    def choose(self, alignments: Sequence[int], workspace_bytes: int) -> bool:
        """Ask for the algorithm; whether there is one."""
        preference = self._create("MatmulPreference")
        a, b, out, _ = alignments
        self._set("MatmulPreference", preference, _WORKSPACE_BYTES, workspace_bytes)
        for attribute, nbytes in ((_ALIGNMENT_A, b), (_ALIGNMENT_B, a), (_ALIGNMENT_C, out), (_ALIGNMENT_D, out)):
            self._set("MatmulPreference", preference, attribute, nbytes)
        if self._sums_in_compute_type:
            self._set("MatmulPreference", preference, _REDUCTIONS, _REDUCTION_IN_COMPUTE_TYPE)
        found = c_int(0)
        layouts = (self._a, self._b, self._out, self._out)
        given = (self._handle, self._descriptor, *layouts, preference, 1, byref(self._heuristic), byref(found))
        try:
            self._library.call("cublasLtMatmulAlgoGetHeuristic", *given)
        except CublasLtError as error:
            if error.status != _NOT_SUPPORTED:
                raise
            return False
        return found.value > 0 and self._heuristic.state == _SUCCESS

    def run(self, pointers: Pointers, workspace: int, workspace_bytes: int, stream: int) -> None:
        with self._lock:
            if pointers.bias != self._bias:
                self._set_bias(pointers.bias)
            self._library.call(
                "cublasLtMatmul",
                self._handle,
                self._descriptor,
                byref(self._one),
                pointers.b,
                self._a,
                pointers.a,
                self._b,
                byref(self._zero),
                pointers.out,
                self._out,
                pointers.out,
                self._out,
                byref(self._heuristic.algorithm),
                workspace,
                workspace_bytes,
                stream,
            )

    def _set_bias(self, bias: int) -> None:
        self._bias = bias
        if bias:
            self._set("MatmulDesc", self._descriptor, _BIAS_POINTER, bias)

    def _create(self, kind: str, *arguments: int) -> c_void_p:
        made = c_void_p()
        self._library.call(f"cublasLt{kind}Create", byref(made), *arguments)
        self._destroy.append((f"cublasLt{kind}Destroy", made))
        return made

    def _set(self, kind: str, what: c_void_p, attribute: tuple[int, Any], value: int) -> None:
        number, c_type = attribute
        holder = c_type(value)
        self._library.call(f"cublasLt{kind}SetAttribute", what, number, byref(holder), ctypes.sizeof(holder))

    def __del__(self) -> None:
        if sys.is_finalizing():
            return
        for name, what in self._destroy:
            with contextlib.suppress(CublasLtError):
                self._library.call(name, what)


def _whose(device: int, stream: int) -> tuple[int, int, int]:
    """What tells a stream from all others."""
    return device, stream, threading.get_ident() if stream == _PER_THREAD else 0


def _as_stored(rows: int, columns: int, lines: Lines) -> tuple[int, int, int]:
    """A matrix of ours as one whose columns follow each other: its lines are the library's columns."""
    return (rows, columns, lines.pitch) if lines.transposed else (columns, rows, lines.pitch)


def workspace_bytes(capability: int) -> int:
    """What NVIDIA recommends: 32 MiB from Hopper on, else 4 MiB."""
    return (32 if capability >= 90 else 4) << 20


def release(device: int, stream: int) -> None:
    """Give the workspace of a stream back: for the owner of a stream that will queue no more products there."""
    if library.cache_info().currsize and (found := library()) is not None:
        found.release(device, stream)


def _alignment(pointer: int) -> int:
    return min(pointer & -pointer, _MOST_ALIGNMENT) if pointer else _MOST_ALIGNMENT


@cache
def library() -> CublasLt | None:
    """cuBLASLt where it is found; None also under ADJOINT_CUBLASLT=0, which leaves products to our own kernels."""
    if os.environ.get("ADJOINT_CUBLASLT") == "0":
        return None
    for load in (_by_name, _by_pathfinder):
        try:
            found = CublasLt(load())
        except (ImportError, OSError, RuntimeError, AttributeError):
            continue
        version = found._functions.cublasLtGetVersion()
        if version >= _OLDEST_VERSION:
            return found
        warnings.warn(f"cuBLASLt {version} is too old: our own kernels multiply matrices", RuntimeWarning, stacklevel=2)
    return None


def _by_name() -> ctypes.CDLL:
    """That of CuPy's own CUDA, where the system knows it or CuPy has loaded it."""
    import cupy

    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    return ctypes.CDLL(f"cublasLt64_{major}.dll" if sys.platform == "win32" else f"libcublasLt.so.{major}")


def _by_pathfinder() -> ctypes.CDLL:
    """That of a package or a toolkit, of any version."""
    from cuda import pathfinder  # comes with CuPy

    path = pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path
    assert path is not None
    return ctypes.CDLL(path)
