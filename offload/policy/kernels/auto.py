"""The compiled part of `auto`: one token's predictions, and what each expert's slot is worth.

See `offload.policy.auto` for what is computed and why. Numba's cache goes by the file
that a function is in: this uses no other's.

Shapes: L layers, E experts a layer, N = L * E, H hidden size, R rank of the probes, S rank of the start predictor.
Features of one expert's past, F = 13: six decayed frequencies, the roots of three of them, four decayed recencies
(`offload.policy.past`, whose numbers come in as arguments: a change of them could not reach what is compiled).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, float32, int8, int32, int64, njit, types, uint8, uint16

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": True, "error_model": "numpy"}
_f1, _f2 = float32[::1], float32[:, ::1]
_x = types.Array(float32, 1, "C", readonly=True)
_gate = types.Array(uint16, 2, "C", readonly=True)
_norm = types.Array(uint16, 1, "C", readonly=True)
_i8_2, _i8_3, _u8_4 = int8[:, ::1], int8[:, :, ::1], uint8[:, :, :, ::1]
_chosen = types.Array(int32, 2, "A", readonly=True)
_states = types.Array(uint8, 1, "C", readonly=True)
_experts = types.Array(int64, 1, "A", readonly=True)
_rows = types.Array(float32, 2, "C", readonly=True)
_b1 = uint8[::1]
_known = types.Tuple((_f2, _f1, _f1, _f1, _f1, _u8_4, _f2, _f2, _f2, _f2, int64[::1]))

AHEAD = (1, 2, 4, 8)
"""How many layers on those routers are that are applied to a layer's residual. Between them, what was made of an
earlier layer's stays: each layer is looked at from eight, four, two and one before it."""

CLIP = np.float32(2.5)
"""Margins are clipped to this on both sides, as in `offload.policy.probe_fitting`."""
_NONE = np.float32(3e38)
_ABSENT, _RESIDENT = 0, 2  # offload.memory.residency's, as compile-time constants


@njit(inline="always")
def _widen(bits):
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(inline="always")
def _sigmoid(x):
    return np.float32(1.0) / (np.float32(1.0) + np.exp(-x))


@njit(**_OPTIONS)
def _see_one(frequency, recency, decay, fade, chosen, first, experts):
    for i in range(frequency.shape[0]):
        row = frequency[i, first : first + experts]
        for e in range(experts):
            row[e] *= decay[i]
        for k in range(chosen.shape[0]):
            row[chosen[k]] += np.float32(1.0) - decay[i]
    for i in range(recency.shape[0]):
        row = recency[i, first : first + experts]
        for e in range(experts):
            row[e] *= fade[i]
        for k in range(chosen.shape[0]):
            row[chosen[k]] = np.float32(1.0)


@njit(types.void(_f2, _f2, _f1, _f1, _chosen, int64, int64), **_OPTIONS)
def see(frequency, recency, decay, fade, chosen, first, experts):
    """A layer has chosen, for each of T tokens in turn: chosen [T, K]. Brings its experts' past up to date.

    frequency: [6, N], recency: [4, N], with what a token leaves of them: decay [6], fade [4]; `first` is the number
    of the layer's first expert.
    """
    for t in range(chosen.shape[0]):
        _see_one(frequency, recency, decay, fade, chosen[t], first, experts)


@njit(types.void(_f2, _f2, _f1, _f1, int32[:, ::1], int64), **_OPTIONS)
def see_token(frequency, recency, decay, fade, chosen, experts):
    """The same of all layers of one token: chosen [L, K]; a layer whose row begins with -1 has not been told of.

    Leaves -1 in the rows that it has seen.
    """
    for layer in range(chosen.shape[0]):
        if chosen[layer, 0] >= 0:
            _see_one(frequency, recency, decay, fade, chosen[layer], layer * experts, experts)
            chosen[layer, 0] = -1


@njit(**_OPTIONS)
def _recall(first, behind, frequency, recency, roots, soon, later, topic, odds, far):
    rooted = frequency.shape[0]
    recent = rooted + roots.shape[0]
    last = recent + recency.shape[0]
    for e in range(first, behind):
        a = soon[last]
        b = later[last] + later[last + 1] * topic[e]
        for i in range(rooted):
            a += soon[i] * frequency[i, e]
            b += later[i] * frequency[i, e]
        for i in range(roots.shape[0]):
            root = np.sqrt(frequency[roots[i], e])
            a += soon[rooted + i] * root
            b += later[rooted + i] * root
        for i in range(recency.shape[0]):
            a += soon[recent + i] * recency[i, e]
            b += later[recent + i] * recency[i, e]
        a = min(max(a, np.float32(0.003)), np.float32(0.997))
        odds[e] = np.log(a / (np.float32(1.0) - a))
        far[e] = min(max(b, np.float32(0.0)), np.float32(1.0))


@njit(types.void(_f2, _f2, int64[::1], _f1, _f1, _f1, _f1, _f1), **_OPTIONS)
def recall(frequency, recency, roots, soon, later, topic, odds, far):
    """What past and topic say of each expert.

    roots: [3], which frequencies count by their root too. soon: [F + 1] weights, later: [F + 2], the last one for
    topic: [N]. odds: [N], log-odds that the next token uses it; far: [N], its discounted time to the next use after
    that, 0..1.
    """
    _recall(0, odds.shape[0], frequency, recency, roots, soon, later, topic, odds, far)


@njit(
    types.void(_f2, _f2, _f1, _f1, _chosen, int64, int64, int64[::1], _f1, _f1, _f1, _f1, _f1),
    **_OPTIONS,
)
def see_and_recall(
    frequency, recency, decay, fade, chosen, first, experts, roots, soon, later, topic, odds, far
):  # fmt: skip
    """`see`, and `recall` of that layer's experts alone: theirs is the only past that has changed."""
    for t in range(chosen.shape[0]):
        _see_one(frequency, recency, decay, fade, chosen[t], first, experts)
    _recall(first, first + experts, frequency, recency, roots, soon, later, topic, odds, far)


@njit(types.void(_i8_2, _f1, _i8_2, _f1, _f1, _f1, _f1, _f1), **_OPTIONS)
def tell(down, down_scale, up, up_scale, offset, x, z, told):
    """told = up @ (down @ x) + offset. down: [S, X] and up: [N, S] int8 with a scale a row; x: [X], z: [S]."""
    for s in range(down.shape[0]):
        row = down[s]
        total = np.float32(0.0)
        for i in range(x.shape[0]):
            total += np.float32(row[i]) * x[i]
        z[s] = total * down_scale[s]
    for n in range(up.shape[0]):
        row = up[n]
        total = np.float32(0.0)
        for s in range(z.shape[0]):
            total += np.float32(row[s]) * z[s]
        told[n] = total * up_scale[n] + offset[n]


@njit(**_OPTIONS)
def _normalise(x, out):
    size = x.shape[0]
    total = np.float32(0.0)
    for i in range(size):
        total += x[i] * x[i]
    scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + np.float32(1e-6))
    for i in range(size):
        out[i] = x[i] * scale


@njit(types.void(_x, _f1), **_OPTIONS)
def normalise(x, out):
    """out = x / root mean square of x."""
    _normalise(x, out)


@njit(**_OPTIONS)
def _gate_margins(gate, norm, x, normed, top_k, margins):
    """A later layer's router on x, normalised already: how far each logit is above the threshold of the top K.

    In units of the logits' standard deviation, clipped. The threshold is in the middle between the last one chosen
    and the first one left out. gate: [E, H], norm: [H] bfloat16 bits.
    """
    size, experts = x.shape[0], margins.shape[0]
    for i in range(size):
        normed[i] = x[i] * _widen(norm[i])
    mean = np.float32(0.0)
    for e in range(experts):
        row = gate[e]
        total = np.float32(0.0)
        for i in range(size):
            total += _widen(row[i]) * normed[i]
        margins[e] = total
        mean += total
    mean /= np.float32(experts)
    spread = np.float32(0.0)
    for e in range(experts):
        spread += (margins[e] - mean) ** 2
    spread = np.sqrt(spread / np.float32(experts)) + np.float32(1e-6)
    behind = min(top_k, experts - 1)
    level, chosen, left_out = _NONE, np.float32(0.0), np.float32(0.0)
    seen = 0
    while seen <= behind:  # from level to level, the equal ones together
        best, equal = -_NONE, 0
        for e in range(experts):
            if margins[e] < level:
                if margins[e] > best:
                    best, equal = margins[e], 1
                elif margins[e] == best:
                    equal += 1
        if equal == 0:
            break
        if seen < top_k:
            chosen = best
        left_out = best
        seen += equal
        level = best
    threshold = (chosen + left_out) / np.float32(2.0)
    for e in range(experts):
        margins[e] = min(max((margins[e] - threshold) / spread, -CLIP), CLIP)


@njit(
    types.void(
        int64, _rows, _rows, boolean, types.UniTuple(_gate, len(AHEAD)), types.UniTuple(_norm, len(AHEAD)), int64,
        int64, _i8_3, _f2, _f2, boolean, _f1, _f1, _f1, _f2, int64[::1], _b1,
    ),
    **_OPTIONS,
)  # fmt: skip
def look(
    layer, residual, shared, has_shared, gate, norm, ahead, top_k, down, down_scale, centre, has_probe, x, normed,
    z, gates, seen_from, told,
):  # fmt: skip
    """What all that looks ahead makes of what the router of `layer` saw: residual + shared, both [1, H].

    x: [H], their sum, normalised. z: [R], with `has_probe`: the probes' projection of it, down: [L, R, H] int8 with
    scales [L, R], less centre [L, R]. gates: [L, E], what the routers of the first `ahead` of the layers at
    distances `AHEAD`, whose weights come in, make of it; seen_from: [L], that distance. Clears told: [L].
    """
    row = residual[0]
    for i in range(x.shape[0]):
        x[i] = row[i]
    if has_shared:
        row = shared[0]
        for i in range(x.shape[0]):
            x[i] += row[i]
    _normalise(x, x)
    if has_probe:
        for r in range(z.shape[0]):
            weights = down[layer, r]
            total = np.float32(0.0)
            for i in range(x.shape[0]):
                total += np.float32(weights[i]) * x[i]
            z[r] = total * down_scale[layer, r] - centre[layer, r]
    for i in range(ahead):
        m = layer + AHEAD[i]
        _gate_margins(gate[i], norm[i], x, normed, top_k, gates[m])
        seen_from[m] = AHEAD[i]
    told[:] = 0


@njit(inline="always")
def _group(distance, wraps):
    if wraps:
        return 5
    if distance <= 2:
        return distance - 1
    if distance <= 4:
        return 2
    return 3 if distance <= 8 else 4


@njit(**_OPTIONS)
def _foretell(layer, m, experts, known, has_start, has_probe, chance):
    """The chances of layer m's experts."""
    weights, odds, start, topic, z, up, up_scale, spread, offset, gates, seen_from = known
    wraps = m <= layer
    distance = m - layer + (odds.shape[0] // experts if wraps else 0)
    gated = not wraps and seen_from[m] > 0
    started = has_start and not wraps
    # Weights hold for the parts that they were fitted with: what is not there is not zero.
    if has_probe:
        w = weights[_group(distance, wraps)]
    elif gated:
        w = weights[_group(seen_from[m], False)]
    else:
        w = weights[6 if started else 7]
    w0, w1, w2, w3, w4, w5 = w[0], w[1], w[2], w[3], w[4], w[5]
    first, behind = m * experts, (m + 1) * experts
    out = chance[first:behind]
    past, subject = odds[first:behind], topic[first:behind]
    for e in range(experts):
        out[e] = w0 + w1 * past[e] + w5 * subject[e]
    if started:
        token = start[first:behind]
        for e in range(experts):
            out[e] += w2 * token[e]
    if has_probe:
        rows, size, level = up[layer, m], spread[m], offset[m]
        scale, half = up_scale[layer, m], up.shape[3]
        low, high = z[:half], z[half:]
        middle = np.float32(0.0)
        for r in range(z.shape[0]):
            middle += np.float32(7.5) * z[r]
        for e in range(experts):
            row = rows[e]
            total = np.float32(0.0)
            for r in range(half):
                # A byte is its low half and 16 times its high half.
                upper = np.float32(np.uint8(row[r] >> np.uint8(4)))
                total += np.float32(row[r]) * low[r] + upper * (high[r] - np.float32(16.0) * low[r])
            out[e] += w3 * ((total - middle) * scale * size[e] + level[e])
    if gated:
        gate = gates[m]
        for e in range(experts):
            out[e] += w4 * gate[e]
    for e in range(experts):
        out[e] = _sigmoid(out[e])


@njit(types.void(int64, int64, _known, boolean, boolean, _f1, float32, _b1, _f1, _f1), **_OPTIONS)
def appraise(layer, experts, known, has_start, has_probe, far, gamma, told, chance, worth):
    """What each expert's slot is worth behind the router of `layer`; -1 before the first layer.

    known: weights [8, 6], as `offload.policy.probes.Probes.weights`; odds, start, topic: [N]; z: [R] from the
    probes of `layer`, which say with up: [L, L, E, R / 2], two numbers of four bits each, scales [L, L], spread and
    offset [L, E] what each layer chooses next; gates: [L, E], of those layers on whose seen_from: [L] is not 0.
    `has_start`, `has_probe`: whether there are those parts. far: [N].

    Gives chance: [N], that the expert is used when its layer comes next, but of layers that are told: [L] already;
    worth: [N], what gamma ** (layers until its next use) is expected to be.
    """
    layers = told.shape[0]
    whole = gamma ** np.float32(layers)
    for m in range(layers):
        if told[m] == 0:
            _foretell(layer, m, experts, known, has_start, has_probe, chance)
            told[m] = 1
        near = gamma ** np.float32(m - layer + (layers if m <= layer else 0))
        for n in range(m * experts, (m + 1) * experts):
            p = chance[n]
            worth[n] = near * (p + (np.float32(1.0) - p) * whole * far[n])


@njit(int64(_experts, _f1), **_OPTIONS)
def least(evictable, worth):
    """The expert of `evictable` that is worth least."""
    best = evictable[0]
    for i in range(1, evictable.shape[0]):
        if worth[evictable[i]] < worth[best]:
            best = evictable[i]
    return best


@njit(
    int64(
        int64, int64, _known, boolean, boolean, int64, _states, float32, _b1, _f1, int64[::1], _f1,
    ),
    **_OPTIONS,
)  # fmt: skip
def candidates(
    layer, experts, known, has_start, has_probe, horizon, state, threshold, told, chance, found, score
):  # fmt: skip
    """Absent experts of the next `horizon` layers with at least `threshold`, best score first: chance / distance.

    Works their chances out, as `appraise` does, of layers that miss an expert and are not told yet.
    found, score: [n]; at most n are given, and their number is returned.
    """
    layers = told.shape[0]
    count = 0
    for distance in range(1, horizon + 1):
        m = (layer + distance) % layers
        here = state[m * experts : (m + 1) * experts]
        least_there = np.uint8(_RESIDENT)
        for e in range(experts):
            least_there = min(least_there, here[e])
        if least_there == _RESIDENT:
            continue
        if told[m] == 0:
            _foretell(layer, m, experts, known, has_start, has_probe, chance)
            told[m] = 1
        for n in range(m * experts, (m + 1) * experts):
            if state[n] != _ABSENT or chance[n] < threshold:
                continue
            s = chance[n] / np.float32(distance)
            if count < found.shape[0]:
                at = count
                count += 1
            elif s > score[count - 1]:
                at = count - 1
            else:
                continue
            while at > 0 and score[at - 1] < s:
                found[at] = found[at - 1]
                score[at] = score[at - 1]
                at -= 1
            found[at] = n
            score[at] = s
    return count
