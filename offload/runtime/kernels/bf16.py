"""The decode kernels for bfloat16 weights, compiled."""

from __future__ import annotations

from numba import njit, uint16

from offload.runtime.kernels import layers, team
from offload.runtime.kernels.matvec import OPTIONS
from offload.runtime.kernels.signatures import signatures

_types = signatures(uint16)
compute_shared = njit(_types.compute_shared, **OPTIONS)(layers.compute_shared)
compute_rows = njit(_types.compute_rows, **OPTIONS)(layers.compute_rows)
run_layers = njit(_types.run_layers, **OPTIONS)(layers.run_layers)
embed = njit(_types.embed, **OPTIONS)(layers.embed)
head = njit(_types.head, **OPTIONS)(layers.head)
help_out = njit(_types.help_out, **OPTIONS)(team.help_out)
