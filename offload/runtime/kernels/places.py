"""Where the decode kernels find things: positions in the arrays of numbers that they are given."""

from __future__ import annotations

RESIDENT = 2  # offload.memory.residency.RESIDENT, as a compile-time constant

# Positions in the `dims` array.
HIDDEN, EXPERTS, TOP_K, EXPERT_SIZE, SHARED_SIZE, Q_HEADS, KV_HEADS, HEAD_DIM, NORM_TOPK = range(9)
# Positions in the `at` array: where each matrix begins in a layer's row of dense weights; -1 where there is none.
(
    AT_INPUT_NORM,
    AT_QKV,
    AT_QKV_BIAS,
    AT_Q_NORM,
    AT_K_NORM,
    AT_OUT,
    AT_POST_NORM,
    AT_ROUTER,
    AT_SHARED_GATE_UP,
    AT_SHARED_DOWN,
    AT_SHARED_GATE,
) = range(11)
IN_PACKED = (AT_QKV, AT_OUT, AT_SHARED_GATE_UP, AT_SHARED_DOWN)
"""Those of them that count the items of `packed`; the others count those of `dense`."""

# Rows of the `tally` array.
TALLY_RESIDENT, TALLY_PREFETCHED, TALLY_LATE, TALLY_MISSED = range(4)
