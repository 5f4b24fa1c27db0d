"""What a router would choose. Numba's cache goes by the file that a function is in: these use no other's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, njit, types, uint16

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": True, "error_model": "numpy"}
_gate = types.Array(uint16, 2, "C", readonly=True)
_norm = types.Array(uint16, 1, "C", readonly=True)
_x = types.Array(float32, 1, "C", readonly=True)
_f1 = float32[::1]


@njit(inline="always")
def _widen(bits):
    """The float32 that a bfloat16's bits mean."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(types.void(_gate, _norm, float32, _x, _f1, _f1), **_OPTIONS)
def gate_probabilities(gate, norm, eps, x, normed, out):
    """out = softmax(gate @ rms_norm(x)).

    gate: [E, H], norm: [H] bfloat16 bits; x: [H], normed: [H] scratch, out: [E] float32.
    """
    size = x.shape[0]
    total = np.float32(0.0)
    for i in range(size):
        total += x[i] * x[i]
    scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + eps)
    for i in range(size):
        normed[i] = x[i] * scale * _widen(norm[i])
    experts = out.shape[0]
    for e in range(experts):
        row = gate[e]
        total = np.float32(0.0)
        for i in range(size):
            total += _widen(row[i]) * normed[i]
        out[e] = total
    top = out[0]
    for e in range(1, experts):
        top = max(top, out[e])
    total = np.float32(0.0)
    for e in range(experts):
        out[e] = np.exp(out[e] - top)
        total += out[e]
    for e in range(experts):
        out[e] /= total
