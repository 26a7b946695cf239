"""adjoint: gradients and neural networks for NumPy and CuPy arrays."""

import sys
from math import e, inf, nan, pi

from ml_dtypes import finfo, iinfo

from . import nn
from .engine import autograd, cuda
from .engine.backend import Device as device
from .engine.backend import default_device as get_default_device
from .engine.backend import set_default_device
from .engine.dtypes import (
    bfloat16,
    double,
    float16,
    float32,
    float64,
    get_default_dtype,
    half,
    int8,
    int16,
    int32,
    int64,
    long,
    promote_types,
    set_default_dtype,
    short,
    uint8,
)
from .engine.dtypes import bool_ as bool
from .engine.dtypes import float32 as float
from .engine.dtypes import int32 as int
from .engine.grad_mode import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from .engine.operations.activation import (
    relu,
    sigmoid,
    tanh,
)
from .engine.operations.arithmetic import (
    add,
    div,
    eq,
    floor_divide,
    ge,
    gt,
    le,
    lt,
    maximum,
    minimum,
    mul,
    ne,
    neg,
    pow,
    remainder,
    sub,
    where,
)
from .engine.operations.conversion import (
    clone,
)
from .engine.operations.creation import (
    arange,
    as_tensor,
    asarray,
    empty,
    empty_like,
    eye,
    from_dlpack,
    from_numpy,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    tensor,
    zeros,
    zeros_like,
)
from .engine.operations.einsum import (
    einsum,
)
from .engine.operations.elementwise import (
    abs,
    acos,
    acosh,
    addcdiv,
    addcmul,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    ceil,
    clamp,
    clip,
    cos,
    cosh,
    exp,
    exp2,
    expm1,
    floor,
    hypot,
    isfinite,
    isinf,
    isnan,
    lerp,
    log,
    log1p,
    log2,
    log10,
    logaddexp,
    logical_not,
    reciprocal,
    round,
    rsqrt,
    sign,
    sin,
    sinh,
    sqrt,
    square,
    tan,
    trunc,
)
from .engine.operations.gathering import (
    argwhere,
    gather,
    index_add,
    index_copy,
    index_fill,
    index_select,
    masked_fill,
    masked_select,
    nonzero,
    scatter,
    scatter_add,
    take_along_dim,
)
from .engine.operations.indexing import (
    index_put,
)
from .engine.operations.joining import (
    cat,
    concat,
    concatenate,
    hstack,
    meshgrid,
    pad,
    repeat_interleave,
    stack,
    tile,
    vstack,
)
from .engine.operations.linalg import (
    addmm,
    baddbmm,
    bmm,
    dot,
    linear,
    matmul,
    mm,
    mv,
    outer,
)
from .engine.operations.logic import (
    allclose,
    bitwise_and,
    bitwise_not,
    bitwise_or,
    bitwise_xor,
    count_nonzero,
    equal,
    isclose,
    logical_and,
    logical_or,
    logical_xor,
)
from .engine.operations.reduction import (
    all,
    amax,
    amin,
    any,
    argmax,
    argmin,
    cumsum,
    logsumexp,
    max,
    mean,
    min,
    norm,
    prod,
    std,
    std_mean,
    sum,
    var,
    var_mean,
)
from .engine.operations.sampling import (
    bernoulli,
    multinomial,
    normal,
    rand,
    rand_like,
    randint,
    randint_like,
    randn,
    randn_like,
    randperm,
)
from .engine.operations.shape import (
    broadcast_tensors,
    broadcast_to,
    flatten,
    flip,
    movedim,
    permute,
    ravel,
    reshape,
    roll,
    squeeze,
    t,
    transpose,
    tril,
    triu,
    unflatten,
    unsqueeze,
)
from .engine.operations.slicing import (
    chunk,
    diag,
    diagonal,
    narrow,
    select,
    split,
    unbind,
)
from .engine.operations.softmax import (
    log_softmax,
    softmax,
)
from .engine.operations.sorting import (
    argsort,
    kthvalue,
    median,
    sort,
    topk,
    unique,
)
from .engine.operations.special import (
    erf,
    erfc,
    erfinv,
)
from .engine.random import Generator, get_rng_state, initial_seed, manual_seed, seed, set_rng_state
from .engine.saving import load, save
from .engine.tensor import Tensor
from .kernels.precision import get_float32_matmul_precision, set_float32_matmul_precision
from .nn import data, optim

__version__ = "0.1.0"

# Importable by these names too: `import adjoint.optim as optim`, `from adjoint.autograd import Function`.
sys.modules |= {
    f"{__name__}.autograd": autograd,
    f"{__name__}.cuda": cuda,
    f"{__name__}.data": data,
    f"{__name__}.optim": optim,
    f"{__name__}.optim.lr_scheduler": optim.lr_scheduler,
}
