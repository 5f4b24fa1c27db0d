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

# Positions on the board of a team, an array of int64: of what does not change while its helpers live, ...
TEAM_HELPERS, TEAM_STOP, TEAM_LEAST, TEAM_CHUNK, TEAM_PRODUCT, TEAM_BEGUN, TEAM_ROOM = range(7)
TEAM_LINE = 16
"""Items from one line to the next: two lines of a cache, as processors fetch them in pairs."""
TEAM_CLOCK = 8
"""... of two items of the caller's own, ..."""
# ... of what is to be multiplied: addresses, counts, and the items from one matrix's vector to the next one's, ...
(
    JOB_WEIGHTS,
    JOB_PLACES,
    JOB_NUMBER,
    JOB_CHUNKS,
    JOB_UNITS,
    JOB_EACH,
    JOB_COLUMNS,
    JOB_X,
    JOB_X_STEP,
    JOB_LEVELS,
    JOB_LEVELS_STEP,
    JOB_SUMS,
    JOB_SUMS_STEP,
    JOB_STEPS,
) = range(TEAM_LINE, TEAM_LINE + 14)
TEAM_HELPER = 2 * TEAM_LINE
"""... of the first helper, ..."""
TEAM_HELPER_ITEMS = 4 * TEAM_LINE
# ... and from there on of its words.
RUN_AT, DONE_AT, ASLEEP_AT, OWN_AT = 0, TEAM_LINE, 2 * TEAM_LINE, 3 * TEAM_LINE
SEMAPHORE_AT = ASLEEP_AT + 4
OWN_RESULTS = 8
"""Where the address of a helper's results is, after OWN_AT and the two items of its clock."""
