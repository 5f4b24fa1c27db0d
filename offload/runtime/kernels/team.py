"""Products shared among threads: the caller, and helpers that take parts of them when they have time.

The matrices are cut into chunks of whole rows. Each helper has a run of chunks, which it takes from the end, and
from whose beginning the caller takes as well, until they meet. Both take several at a time while many are left, as
memory is read faster the longer it goes on in order. Nobody waits for a thread that does not run: a helper that
never comes leaves its run to the caller, and one that the kernel stops in the middle of what it took has that taken
away. So a helper writes into memory of its own, and the caller copies what it has finished. A row is computed by
one thread, and by any in the same way, so who did it does not show.

The board, an array of int64, is all that they share (`places`): a line that does not change, lines that say what is
to be multiplied, and for each helper a line for every word that two threads write:

- *run*, `product << 32 | first << 16 | end`: the chunks of this product that nobody has taken. The caller writes it
  to begin with; then whoever swaps it for a shorter one has taken chunks.
- *done*, `product << 32 | finished`: how many of the chunks that it took are computed. The helper swaps it where
  it has finished some, or the caller when it takes the last ones away.
- *asleep*: 1 where the helper is about to wait for its semaphore. It looks at its run once more after saying so,
  and the caller looks here after it has written a run, so one of them sees the other.

Taking work from both ends is the idea of work-stealing queues (Blumofe and Leiserson, 1999), taking a part of what
is left that of guided self-scheduling (Polychronopoulos and Kuck, 1987).
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit, types
from numba.extending import overload

from offload.runtime.kernels.atomics import (
    address,
    nanoseconds,
    peek,
    pointer_to,
    put,
    sleep,
    swap,
    wake,
)
from offload.runtime.kernels.matvec import INSIDE, level, multiply_units, unit
from offload.runtime.kernels.places import (
    ASLEEP_AT,
    DONE_AT,
    JOB_CHUNKS,
    JOB_COLUMNS,
    JOB_EACH,
    JOB_LEVELS,
    JOB_LEVELS_STEP,
    JOB_NUMBER,
    JOB_PLACES,
    JOB_STEPS,
    JOB_SUMS,
    JOB_SUMS_STEP,
    JOB_UNITS,
    JOB_WEIGHTS,
    JOB_X,
    JOB_X_STEP,
    OWN_AT,
    OWN_RESULTS,
    RUN_AT,
    SEMAPHORE_AT,
    TEAM_CHUNK,
    TEAM_CLOCK,
    TEAM_HELPER,
    TEAM_HELPER_ITEMS,
    TEAM_HELPERS,
    TEAM_LEAST,
    TEAM_PRODUCT,
    TEAM_ROOM,
    TEAM_STOP,
)

_MOST_CHUNKS = 1 << 15  # their number has 16 bits in a run
_MOST_TAKEN = 16
"""Chunks that are taken at a time, if so many are left; twice as many are no faster."""
_LOW = 0xFFFF
_PRODUCTS = 0x7FFFFFFF

_SPIN_NS = 3_000_000
"""How long a helper looks for the next product before it sleeps: longer than what is done between two tokens. It
takes only what nobody else wants, and waking it up costs more than a small product."""
_STEAL_NS = 20_000
"""How long the caller waits for a helper's last chunks before it computes them: some times what one takes. Towards
the end they are taken one by one; only a helper that was stopped, or is much slower, still has more."""


@njit(inline="always")
def _several(left, of_its_matrix):
    """How many of the chunks that are left to take at a time: fewer towards the end, so that both end together."""
    return max(min(left // 4, of_its_matrix, _MOST_TAKEN), 1)


@njit(inline="always")
def _take_first(team, place, chunks):
    """Take the first chunks of the run at team[place]; returns the first and their number, 0 where none is left."""
    while True:
        run = peek(team, place)
        first, end = (run >> 16) & _LOW, run & _LOW
        if first >= end:
            return first, 0
        taken = _several(end - first, chunks - first % chunks)
        if swap(team, place, run, run + (taken << 16)):
            return first, taken


@njit(**INSIDE)
def _compute(weights, chunk, taken, chunks, units, each, columns, x, out, scratch):
    """Compute chunks of one of all products' matrices where they belong."""
    whole, sums, steps, places, targets = scratch
    number = chunk // chunks
    first = chunk % chunks * each
    count = min(taken * each, units - first)
    mine = number if x.shape[0] > 1 else 0
    multiply_units(
        weights,
        places[number],
        first,
        count,
        x[mine][:columns],
        (whole[mine], sums[mine]),
        steps[mine],
        out[targets[number]],
        first * unit(weights, columns)[0],
    )


@njit(**INSIDE)
def products(weights, number, rows, columns, x, out, scratch, team):
    """out[targets[k], r] = sum_c w_k[r, c] * x[k, c] of `number` matrices; w_k begins at weights[places[k]].

    Args:
        weights: 1-D, uint16, int8 or uint8.
        x: [number, columns] float32 or wider, or [1, columns]: the same vector for all.
        out: [.., rows] float32, or wider.
        scratch: ([number, columns] int16, [number, columns / 32] int32, [number] float32, places [number] int64,
            targets [number] int64), or larger; the first three are overwritten.
        team: The board; products of more rows than helpers have room for are not shared.
    """
    begin(weights, number, rows, columns, x, scratch, team)
    finish(weights, number, rows, columns, x, out, scratch, team)


@njit(**INSIDE)
def _units_of_chunks(weights, number, rows, columns, team):
    """Units of a chunk; 0 where the products are not shared."""
    unit_rows, unit_items = unit(weights, columns)
    units = rows // unit_rows
    unit_bytes = unit_items * weights.itemsize
    if team[TEAM_HELPERS] == 0 or number * units * unit_bytes < team[TEAM_LEAST]:
        return 0
    if number * rows > team[TEAM_ROOM]:
        return 0
    return min(max(team[TEAM_CHUNK] // unit_bytes, 1, -(-units * number // _MOST_CHUNKS)), units)


@njit(**INSIDE)
def begin(weights, number, rows, columns, x, scratch, team):
    """Have helpers begin with products that the caller ends with `finish`; arguments stay as they are so long."""
    whole, sums, steps, places = scratch[:4]
    for k in range(number if x.shape[0] > 1 else 1):
        steps[k] = level(weights, x[k][:columns], (whole[k], sums[k]))
    each = _units_of_chunks(weights, number, rows, columns, team)
    if each == 0:
        return
    units = rows // unit(weights, columns)[0]
    chunks = -(-units // each)
    product = (team[TEAM_PRODUCT] + 1) & _PRODUCTS
    team[TEAM_PRODUCT] = product
    team[JOB_WEIGHTS] = address(weights, 0)
    team[JOB_PLACES] = address(places, 0)
    team[JOB_NUMBER], team[JOB_CHUNKS] = number, chunks
    team[JOB_UNITS], team[JOB_EACH], team[JOB_COLUMNS] = units, each, columns
    same = x.shape[0] == 1
    team[JOB_X], team[JOB_X_STEP] = x.ctypes.data, 0 if same else x.shape[1]
    team[JOB_LEVELS], team[JOB_LEVELS_STEP] = whole.ctypes.data, 0 if same else whole.shape[1]
    team[JOB_SUMS], team[JOB_SUMS_STEP] = sums.ctypes.data, 0 if same else sums.shape[1]
    team[JOB_STEPS] = address(steps, 0)
    helpers, last = team[TEAM_HELPERS], number * chunks
    for helper in range(helpers):
        line = TEAM_HELPER + helper * TEAM_HELPER_ITEMS
        put(team, line + DONE_AT, product << 32)
        put(team, line + RUN_AT, product << 32 | last * helper // helpers << 16 | last * (helper + 1) // helpers)
        if peek(team, line + ASLEEP_AT) == 1 and swap(team, line + ASLEEP_AT, 1, 0):
            wake(team, line + SEMAPHORE_AT)


@njit(**INSIDE)
def finish(weights, number, rows, columns, x, out, scratch, team):
    """Bring to an end what `begin` was told of with the same arguments; see `products`."""
    units = rows // unit(weights, columns)[0]
    each = _units_of_chunks(weights, number, rows, columns, team)
    if each == 0:
        for k in range(number):
            _compute(weights, k, 1, 1, units, units, columns, x, out, scratch)
        return
    chunks, helpers = team[JOB_CHUNKS], team[TEAM_HELPERS]
    left = True
    while left:
        left = False
        for helper in range(helpers):
            chunk, taken = _take_first(team, TEAM_HELPER + helper * TEAM_HELPER_ITEMS + RUN_AT, chunks)
            if taken > 0:
                left = True
                _compute(weights, chunk, taken, chunks, units, each, columns, x, out, scratch)
    for helper in range(helpers):
        _collect(weights, helper, chunks, units, each, columns, x, out, scratch, team)


@njit(**INSIDE)
def _collect(weights, helper, chunks, units, each, columns, x, out, scratch, team):
    """Copy what a helper has computed, and compute what it does not come to an end with."""
    line = TEAM_HELPER + helper * TEAM_HELPER_ITEMS
    all_chunks, helpers = chunks * team[JOB_NUMBER], team[TEAM_HELPERS]
    begin, end = all_chunks * helper // helpers, all_chunks * (helper + 1) // helpers
    took = end - (peek(team, line + RUN_AT) & _LOW)
    if took == 0:
        return
    wanted = team[TEAM_PRODUCT] << 32 | took
    finished = took
    since = np.int64(0)
    while True:
        done = peek(team, line + DONE_AT)
        if done == wanted:
            break
        now = nanoseconds(team, TEAM_CLOCK)
        if since == 0:
            since = now
        elif now - since > _STEAL_NS and swap(team, line + DONE_AT, done, wanted):
            finished = done & _LOW
            for chunk in range(end - took, end - finished):
                _compute(weights, chunk, 1, chunks, units, each, columns, x, out, scratch)
            break
    unit_rows = unit(weights, columns)[0]
    own = carray(_floats_at(team[line + OWN_AT + OWN_RESULTS]), ((end - begin) * each * unit_rows,))
    for chunk in range(end - finished, end):
        first = chunk % chunks * each
        rows = min(each, units - first) * unit_rows
        into = out[scratch[4][chunk // chunks]][first * unit_rows :]
        results = own[(chunk - begin) * each * unit_rows :]
        for row in range(rows):
            into[row] = results[row]


@njit(**INSIDE)
def product(weights, at, rows, x, out, scratch, team):
    """out[r] = sum_c w[r, c] * x[c] of the matrix that begins at weights[at]; see `products`."""
    scratch[3][0], scratch[4][0] = at, 0
    products(weights, 1, rows, x.shape[0], x.reshape(1, -1), out.reshape(1, -1), scratch, team)


def _weights_at(like, where):
    """The weights at an address, of the type of `like`."""
    raise NotImplementedError


@overload(_weights_at, jit_options=INSIDE)
def _typed_weights_at(like, where):
    pointer = pointer_to(like.dtype)
    return lambda like, where: carray(pointer(where), (1,))  # of any length: nobody asks


_floats_at = pointer_to(types.float32)
_int16_at = pointer_to(types.int16)
_int32_at = pointer_to(types.int32)
_int64_at = pointer_to(types.int64)


@njit(**INSIDE)
def _compute_last(like, team, line, me, run):
    """Take the last chunks of a helper's run and compute them."""
    chunks, units, each, columns = team[JOB_CHUNKS], team[JOB_UNITS], team[JOB_EACH], team[JOB_COLUMNS]
    all_chunks, helpers = chunks * team[JOB_NUMBER], team[TEAM_HELPERS]
    left, last = (run & _LOW) - ((run >> 16) & _LOW), (run & _LOW) - 1
    taken = _several(left, last % max(chunks, 1) + 1)
    chunk = last + 1 - taken
    number = chunk // max(chunks, 1)
    vector = number if team[JOB_X_STEP] > 0 else 0
    x = team[JOB_X] + 4 * vector * team[JOB_X_STEP]
    whole = team[JOB_LEVELS] + 2 * vector * team[JOB_LEVELS_STEP]
    sums = team[JOB_SUMS] + 4 * vector * team[JOB_SUMS_STEP]
    weights, places, steps = team[JOB_WEIGHTS], team[JOB_PLACES], team[JOB_STEPS]
    finished = all_chunks * (me + 1) // helpers - 1 - last
    if peek(team, line + RUN_AT) != run:  # What was read may be another product's.
        return
    place = carray(_int64_at(places), (number + 1,))[number]
    step = carray(_floats_at(steps), (vector + 1,))[vector]
    if not swap(team, line + RUN_AT, run, run - taken):
        return
    first = chunk % chunks * each
    count = min(taken * each, units - first)
    levels = carray(_int16_at(whole), (columns,)), carray(_int32_at(sums), (columns,))
    begin = (chunk - all_chunks * me // helpers) * each * unit(like, columns)[0]
    own = carray(_floats_at(team[line + OWN_AT + OWN_RESULTS]), (begin + 1,))
    x_of_it = carray(_floats_at(x), (columns,))
    multiply_units(_weights_at(like, weights), place, first, count, x_of_it, levels, step, own, begin)
    done = run >> 32 << 32 | finished
    swap(team, line + DONE_AT, done, done + taken)


def help_out(like, team, me):
    """Be helper number `me` of a team until the board says stop.

    like: an array with weights of the type that will be multiplied.
    """
    line = TEAM_HELPER + me * TEAM_HELPER_ITEMS
    since = nanoseconds(team, line + OWN_AT)
    while peek(team, TEAM_STOP) == 0:
        run = peek(team, line + RUN_AT)
        if (run >> 16) & _LOW < run & _LOW:
            _compute_last(like, team, line, me, run)
            since = nanoseconds(team, line + OWN_AT)
        elif nanoseconds(team, line + OWN_AT) - since > _SPIN_NS:
            put(team, line + ASLEEP_AT, 1)
            if peek(team, line + RUN_AT) == run and peek(team, TEAM_STOP) == 0:
                sleep(team, line + SEMAPHORE_AT)
            swap(team, line + ASLEEP_AT, 1, 0)
            since = nanoseconds(team, line + OWN_AT)
