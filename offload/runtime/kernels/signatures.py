"""Signatures of the decode kernels for one type of weights.

They are given in full, so that importing a precision's module compiles its kernels or takes them from the cache,
and a call with other types is an error instead of a compilation in the middle of an answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import boolean, float32, int16, int32, int64, types, uint8, uint16

_f1, _f2 = float32[::1], float32[:, ::1]
_i1, _i2 = int64[::1], int64[:, ::1]
_u1, _u2, _u5 = uint16[::1], uint16[:, ::1], uint16[:, :, :, :, ::1]
_b1 = uint8[::1]
_chosen = int32[:, ::1]
_slots = types.Array(int32, 1, "C", readonly=True)
_states = types.Array(uint8, 1, "C", readonly=True)
_scratch = types.Tuple((int16[:, ::1], int32[:, ::1], _f1, _i1, _i1))


class Signatures(NamedTuple):
    """One for each function of `layers`, and what a helper of a team does."""

    compute_shared: Any
    compute_rows: Any
    run_layers: Any
    embed: Any
    head: Any
    help_out: Any


def signatures(weight: Any) -> Signatures:
    """For matrices whose weights are items of the Numba type `weight`."""
    w1, w2 = weight[::1], weight[:, ::1]
    return Signatures(
        compute_shared=types.void(int64, _i1, _i1, _u2, w2, _f1, _f2, _f2, _scratch, _i1, _f2),
        compute_rows=int64(
            int64, _i1, w1, _i1, _i1, _slots, _states, int64, _f1, _chosen, _f2, _f2, _scratch, _i1, _f2, _b1
        ),
        run_layers=int64(
            int64, int64, boolean, boolean, int64, _i1, _i1, float32, _u2, w2, _f2, _u5, w1, _i1, _i1, _slots,
            _states, int64, _f1, _f1, _f1, _f1, _f2, _f1, _f2, _f2, _f2, _chosen, _f2, _f2, _f2, _scratch, _i1, _f2,
            _b1, _b1, _b1, _i2, _i1, _i1, int64,
        ),
        embed=types.void(w1, int64, int64, _f1),
        head=types.void(_f1, _u1, float32, w1, int64, _f1, _scratch, _i1, _f1),
        help_out=types.void(w1, _i1, int64),
    )  # fmt: skip
