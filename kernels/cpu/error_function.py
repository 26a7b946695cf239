"""The error function, its complement and its inverse on NumPy arrays, which has none of them.

float64 follows W. J. Cody, "Rational Chebyshev approximations for the error function", Math. Comp. 23 (1969), and for
the inverse M. J. Wichura, "Algorithm AS 241: the percentage points of the normal distribution", Applied Statistics
37 (1988); both to about 1e-16 of the value. float32's erf is one formula for all x, fit for loops over arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from . import parallel
from .arithmetic import compute_dtype

_PIECE = 1 << 15
_ONE_OVER_SQRT_PI = 0.56418958354775628695

# The minimax polynomial in z² of artanh(erf(z)) / z: erf(z) is then a hyperbolic tangent, right to 1e-7 of its value.
_ARTANH_OF_ERF = (
    1.4185145337169864e-07,
    -5.668461563903425e-06,
    8.763723720002414e-05,
    -6.197844063419161e-04,
    -1.9183111236336509e-04,
    1.0276905593812319e-01,
    1.12837927428905,
)

# The same for the normal distribution function, (1 + tanh) / 2 of the polynomial in x² times x: right to 3e-8.
_ARTANH_OF_NORMAL = (
    1.756170155024124e-09,
    -1.322633206057609e-07,
    3.964744205339417e-06,
    -5.530619269473663e-05,
    -3.259497764467357e-05,
    3.633308457550817e-02,
    7.97884941460085e-01,
)

# Cody's: (numerator, denominator) from the highest power on, for |x| up to 0.46875, up to 4, and above, in 1 / x².
_SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)  # fmt: skip
_MIDDLE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
     1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
     3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip
_LARGE = (
    (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
     1.60837851487422766e-2, 6.58749161529837803e-4),
    (1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
     2.33520497626869185e-3),
)  # fmt: skip

# Wichura's, likewise: near the middle, and by the distance from the ends.
_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
     1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
     5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)  # fmt: skip
_OUTER = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
     3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
)  # fmt: skip
_END = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip


def erf(x: np.ndarray) -> np.ndarray:
    """2 / sqrt(pi) times the integral of exp(-t²) from 0 to x."""
    return _in_pieces(x, _erf_into)


def erfc(x: np.ndarray) -> np.ndarray:
    """1 - erf(x), exact where erf(x) is nearly 1."""
    return _in_pieces(x, _through_float64(_erfc64))


def erfinv(x: np.ndarray) -> np.ndarray:
    """The inverse of erf: infinite at -1 and 1, NaN beyond."""
    return _in_pieces(x, _through_float64(_erfinv64))


def normal_distribution(x: np.ndarray, out: np.ndarray, squares: np.ndarray) -> None:
    """The normal distribution function of float32 or float64 into `out`; `squares` becomes x²."""
    np.multiply(x, x, out=squares)
    if x.dtype == np.float64:
        out[...] = _erf64(x * np.sqrt(0.5))
    else:
        _tanh_of_polynomial(_ARTANH_OF_NORMAL, x, squares, out)
    out += 1
    out *= 0.5


def _erf_into(x: np.ndarray, out: np.ndarray) -> None:
    if x.dtype == np.float64:
        out[...] = _erf64(x)
    else:
        _tanh_of_polynomial(_ARTANH_OF_ERF, x, x * x, out)


def _tanh_of_polynomial(coefficients: tuple[float, ...], x: np.ndarray, squares: np.ndarray, out: np.ndarray) -> None:
    np.multiply(squares, coefficients[0], out=out)
    for coefficient in coefficients[1:-1]:
        out += coefficient
        out *= squares
    out += coefficients[-1]
    out *= x
    np.tanh(out, out=out)


def _in_pieces(x: np.ndarray, compute: Callable[[np.ndarray, np.ndarray], None]) -> np.ndarray:
    flat = np.ascontiguousarray(x).reshape(-1)
    result = np.empty(x.shape, x.dtype)
    results = result.reshape(-1)
    dtype = compute_dtype(x.dtype)

    def work(pieces: Iterator[slice]) -> None:
        for piece in pieces:
            given = flat[piece].astype(dtype, copy=False)
            out = results[piece] if x.dtype == dtype else np.empty_like(given)
            compute(given, out)
            if x.dtype != dtype:
                np.copyto(results[piece], out, casting="unsafe")

    parallel.share(work, parallel.split(flat.size, _PIECE))
    return result


def _through_float64(compute: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray], None]:
    def into(x: np.ndarray, out: np.ndarray) -> None:
        np.copyto(out, compute(x.astype(np.float64, copy=False)), casting="unsafe")

    return into


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: np.ndarray) -> np.ndarray:
    """The quotient of two polynomials."""
    above, below = (np.full_like(x, polynomial[0]) for polynomial in coefficients)
    for result, polynomial in zip((above, below), coefficients, strict=True):
        for coefficient in polynomial[1:]:
            result *= x
            result += coefficient
    above /= below
    return above


def _erf64(x: np.ndarray) -> np.ndarray:
    size = np.abs(x)
    result = np.empty_like(x)
    small = size <= 0.46875
    near = x[small]
    result[small] = near * _ratio(_SMALL, near * near)
    far = ~small
    result[far] = np.copysign(1 - _tail(size[far]), x[far])
    return result


def _erfc64(x: np.ndarray) -> np.ndarray:
    size = np.abs(x)
    result = np.empty_like(x)
    small = size <= 0.46875
    near = x[small]
    result[small] = 1 - near * _ratio(_SMALL, near * near)
    far = ~small
    tail = _tail(size[far])
    result[far] = np.where(x[far] < 0, 2 - tail, tail)
    return result


def _tail(x: np.ndarray) -> np.ndarray:
    """erfc(x) for x above 0.46875, or NaN."""
    result = np.empty_like(x)
    middle = x <= 4
    result[middle] = _ratio(_MIDDLE, x[middle])
    far = ~middle
    inverse = 1 / x[far]
    squares = inverse * inverse
    result[far] = (_ONE_OVER_SQRT_PI - squares * _ratio(_LARGE, squares)) * inverse
    # exp(-x²) by parts, as the rounding error of x² would be multiplied by x².
    short = np.trunc(np.minimum(x, 32) * 16) / 16
    x = np.minimum(x, 32)
    result *= np.exp(-short * short) * np.exp(-(x - short) * (x + short))
    return result


def _erfinv64(x: np.ndarray) -> np.ndarray:
    half = x / 2
    result = np.empty_like(x)
    central = np.abs(half) <= 0.425
    near = half[central]
    result[central] = near * _ratio(_CENTRE, 0.180625 - near * near)
    outer = ~central
    given = x[outer]
    r = np.sqrt(-np.log((1 - np.abs(given)) / 2))
    value = np.empty_like(r)
    moderate = r <= 5
    value[moderate] = _ratio(_OUTER, r[moderate] - 1.6)
    last = ~moderate
    value[last] = _ratio(_END, r[last] - 5)
    value[np.abs(given) == 1] = np.inf
    result[outer] = np.copysign(value, given)
    result *= np.sqrt(0.5)
    return result
