"""The decode kernels for int8 weights, compiled."""

from __future__ import annotations

from numba import int8 as _int8
from numba import int64, njit, types, uint16

from offload.runtime.kernels import layers, quantised, team
from offload.runtime.kernels.matvec import OPTIONS
from offload.runtime.kernels.signatures import signatures

_types = signatures(_int8)
compute_shared = njit(_types.compute_shared, **OPTIONS)(layers.compute_shared)
compute_rows = njit(_types.compute_rows, **OPTIONS)(layers.compute_rows)
run_layers = njit(_types.run_layers, **OPTIONS)(layers.run_layers)
embed = njit(_types.embed, **OPTIONS)(layers.embed)
head = njit(_types.head, **OPTIONS)(layers.head)
help_out = njit(_types.help_out, **OPTIONS)(team.help_out)
unpack = njit(types.void(_int8[::1], int64, int64, uint16[::1]), **OPTIONS)(quantised.unpack_int8_matrix)
