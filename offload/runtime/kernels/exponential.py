"""The exponential function as a loop of it can be made vector code: Numba's own is a call for every number."""

from __future__ import annotations

import numpy as np
from numba import njit

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # few bits: its product with a small whole number is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)
_EXPONENT_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)
# Of exp(r) - 1 - r over r ** 2 for |r| <= ln(2) / 2, highest first; found by Remez' algorithm, as in Cephes' expf.
_C0, _C1, _C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C3, _C4, _C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)


@njit(error_model="numpy")  # no fastmath: the two parts of ln 2 must not be added up
def exp(x):
    """e ** x, float32, to three units in the last place; x beyond -87 and 88 is taken for these."""
    x = min(max(x, _LEAST), _MOST)
    n = np.rint(x * _LOG2_E)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_C0 * r + _C1) * r + _C2) * r + _C3) * r + _C4) * r + _C5
    power = np.int32((np.int32(n) + _EXPONENT_BIAS) << _MANTISSA_BITS).view(np.float32)
    return (p * r * r + r + np.float32(1.0)) * power
