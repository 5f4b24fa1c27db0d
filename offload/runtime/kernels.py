"""Decode kernels: one token through the layers, at the speed of the memory bus.

A decoded token multiplies one vector with every weight it touches, so its time is the time to read those
weights. Each kernel below reads bfloat16 weights as ``uint16``, widens them to float32 by a shift and sums in
float32, in one plain loop a row: measured at the machine's raw read bandwidth, about 2.3 times torch's
bfloat16 ``linear``. Numba compiles them once and keeps the result in its cache folder.

Sums are made in an order that depends on shapes alone, never on which expert arrived first or where it lies.

Shapes: H hidden size, L layers, E experts a layer, K experts a token, I neurons of an expert, S neurons of the
shared expert, Q query heads, G key-value heads, D head width, C positions of the cache, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, float32, int64, njit, types, uint8, uint16

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
# Rows of the `tally` array.
TALLY_RESIDENT, TALLY_PREFETCHED, TALLY_LATE, TALLY_MISSED = range(4)

# Signatures are given in full, so that importing this module compiles the kernels or takes them from the cache,
# and a call with other types is an error instead of a compilation in the middle of an answer.
_f1, _f2 = float32[::1], float32[:, ::1]
_i1, _i2 = int64[::1], int64[:, ::1]
_u1, _u2, _u5 = uint16[::1], uint16[:, ::1], uint16[:, :, :, :, ::1]
_b1 = uint8[::1]
_chosen = types.int32[:, ::1]
_slots = types.Array(types.int32, 1, "C", readonly=True)
_states = types.Array(uint8, 1, "C", readonly=True)

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": True, "error_model": "numpy"}


@njit(inline="always")
def _widen(bits):
    """The float32 that a bfloat16's bits mean."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(inline="always")
def _narrow(value):
    """The bits of the bfloat16 nearest to a finite float32, ties to even."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit(**_OPTIONS)
def _matvec(weights, at, rows, x, out):
    """out[r] = sum_c weights[at + r * len(x) + c] * x[c]."""
    columns = x.shape[0]
    for r in range(rows):
        start = at + r * columns
        row = weights[start : start + columns]
        total = np.float32(0.0)
        for c in range(columns):
            total += _widen(row[c]) * x[c]
        out[r] = total


@njit(**_OPTIONS)
def _rms_norm(x, weights, at, eps, out):
    size = x.shape[0]
    total = np.float32(0.0)
    for i in range(size):
        total += x[i] * x[i]
    scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + eps)
    row = weights[at : at + size]
    for i in range(size):
        out[i] = x[i] * scale * _widen(row[i])


@njit(**_OPTIONS)
def _gated(gate_up, size, out):
    """out[i] = silu(gate_up[i]) * gate_up[size + i]."""
    for i in range(size):
        gate = gate_up[i]
        out[i] = gate / (np.float32(1.0) + np.exp(-gate)) * gate_up[size + i]


@njit(**_OPTIONS)
def _rotate(head, cos, sin):
    """Rotary embedding of one head in place; cos and sin are [D/2]."""
    half = cos.shape[0]
    for i in range(half):
        a = head[i]
        b = head[half + i]
        head[i] = a * cos[i] - b * sin[i]
        head[half + i] = b * cos[i] + a * sin[i]


@njit(**_OPTIONS)
def _attend(q, keys, values, length, group, scale, scores, out):
    """Attention of the `group` query heads that share one key-value head.

    q, out: [group, D] float32; keys, values: [C, D] bfloat16 bits; scores: [group, C] float32.
    """
    width = q.shape[1]
    for t in range(length):
        key = keys[t]
        for g in range(group):
            total = np.float32(0.0)
            head = q[g]
            for d in range(width):
                total += _widen(key[d]) * head[d]
            scores[g, t] = total * scale
    for g in range(group):
        row = scores[g]
        top = row[0]
        for t in range(1, length):
            top = max(top, row[t])
        total = np.float32(0.0)
        for t in range(length):
            row[t] = np.exp(row[t] - top)
            total += row[t]
        inverse = np.float32(1.0) / total
        for t in range(length):
            row[t] *= inverse
        for d in range(width):
            out[g, d] = np.float32(0.0)
    for t in range(length):
        value = values[t]
        for g in range(group):
            share = scores[g, t]
            target = out[g]
            for d in range(width):
                target[d] += share * _widen(value[d])


@njit(**_OPTIONS)
def _attention(layer, position, dims, at, dense, eps, rope, cache, x, normed, qkv, heads, scores, wide):
    """Norm, projections, rotary embedding, cache, attention, output projection; adds its result to x."""
    width, queries, groups = dims[HEAD_DIM], dims[Q_HEADS], dims[KV_HEADS]
    hidden = dims[HIDDEN]
    weights = dense[layer]
    _rms_norm(x, weights, at[AT_INPUT_NORM], eps, normed)
    rows = (queries + 2 * groups) * width
    _matvec(weights, at[AT_QKV], rows, normed, qkv)
    if at[AT_QKV_BIAS] >= 0:
        bias = weights[at[AT_QKV_BIAS] : at[AT_QKV_BIAS] + rows]
        for r in range(rows):
            qkv[r] += _widen(bias[r])
    cos = rope[position, : width // 2]
    sin = rope[position, width // 2 :]
    for h in range(queries + groups):
        head = qkv[h * width : (h + 1) * width]
        if at[AT_Q_NORM] >= 0:
            _rms_norm(head, weights, at[AT_Q_NORM] if h < queries else at[AT_K_NORM], eps, head)
        _rotate(head, cos, sin)
    for g in range(groups):
        key = qkv[(queries + g) * width : (queries + g + 1) * width]
        value = qkv[(queries + groups + g) * width : (queries + groups + g + 1) * width]
        for d in range(width):
            cache[layer, 0, g, position, d] = _narrow(key[d])
            cache[layer, 1, g, position, d] = _narrow(value[d])
    group = queries // groups
    q = qkv[: queries * width].reshape(queries, width)
    out = heads[: queries * width].reshape(queries, width)
    scale = np.float32(1.0) / np.sqrt(np.float32(width))
    for g in range(groups):
        first = g * group
        _attend(
            q[first : first + group],
            cache[layer, 0, g],
            cache[layer, 1, g],
            position + 1,
            group,
            scale,
            scores,
            out[first : first + group],
        )
    _matvec(weights, at[AT_OUT], hidden, heads[: queries * width], wide)
    for i in range(hidden):
        x[i] += wide[i]


@njit(**_OPTIONS)
def _route(layer, dims, at, dense, normed, probabilities, chosen, shares):
    """Router: softmax over all experts, the top K in falling order (ties to the lower index)."""
    experts, top_k = dims[EXPERTS], dims[TOP_K]
    p = probabilities[layer]
    _matvec(dense[layer], at[AT_ROUTER], experts, normed, p)
    top = p[0]
    for e in range(1, experts):
        top = max(top, p[e])
    total = np.float32(0.0)
    for e in range(experts):
        p[e] = np.exp(p[e] - top)
        total += p[e]
    for e in range(experts):
        p[e] /= total
    taken = np.float32(0.0)
    for k in range(top_k):
        best = -1
        for e in range(experts):
            fresh = True
            for j in range(k):
                if chosen[layer, j] == e:
                    fresh = False
            if fresh and (best < 0 or p[e] > p[best]):
                best = e
        chosen[layer, k] = best
        shares[layer, k] = p[best]
        taken += p[best]
    if dims[NORM_TOPK] != 0:
        for k in range(top_k):
            shares[layer, k] /= taken


@njit(**_OPTIONS)
def _expert(arena, gate_up_at, down_at, dims, normed, gate_up, gated, out):
    size = dims[EXPERT_SIZE]
    _matvec(arena, gate_up_at, 2 * size, normed, gate_up)
    _gated(gate_up, size, gated)
    _matvec(arena, down_at, dims[HIDDEN], gated[:size], out)


@njit(types.void(int64, _i1, _i1, _u2, _f1, _f1, _f1, _f2), **_OPTIONS)
def compute_shared(layer, dims, at, dense, normed, gate_up, gated, shared):
    """shared[layer] = what the layer's shared expert, which every token goes through, adds; zeros without one."""
    size, hidden = dims[SHARED_SIZE], dims[HIDDEN]
    out = shared[layer]
    if size == 0:
        out[:] = 0
        return
    weights = dense[layer]
    _matvec(weights, at[AT_SHARED_GATE_UP], 2 * size, normed, gate_up)
    _gated(gate_up, size, gated)
    _matvec(weights, at[AT_SHARED_DOWN], hidden, gated[:size], out)
    gate = np.float32(0.0)
    gate_row = weights[at[AT_SHARED_GATE] : at[AT_SHARED_GATE] + hidden]
    for i in range(hidden):
        gate += _widen(gate_row[i]) * normed[i]
    share = np.float32(1.0) / (np.float32(1.0) + np.exp(-gate))
    for i in range(hidden):
        out[i] *= share


@njit(
    int64(int64, _i1, _u1, _i1, _i1, _slots, _states, int64, _f1, _chosen, _f1, _f1, _f2, _b1),
    **_OPTIONS,
)
def compute_rows(
    layer, dims, arena, gate_up_at, down_at, slot_of, state, slot_size,
    normed, chosen, gate_up, gated, rows, done,
):  # fmt: skip
    """Compute those of one layer's chosen experts that are resident and not computed yet.

    rows: [K, H] float32, one row an expert in router order; done: [K] uint8, rows already there. Returns the number
    of rows still to come.
    """
    missing = 0
    for k in range(dims[TOP_K]):
        if done[k] == 0:
            expert = layer * dims[EXPERTS] + chosen[layer, k]
            if state[expert] == RESIDENT:
                slot = slot_of[expert] * slot_size
                _expert(
                    arena, slot + gate_up_at[expert], slot + down_at[expert], dims, normed, gate_up, gated, rows[k]
                )
                done[k] = 1
            else:
                missing += 1
    return missing


@njit(
    int64(
        int64, int64, boolean, boolean, int64, _i1, _i1, float32, _u2, _f2, _u5, _u1, _i1, _i1, _slots,
        _states, int64, _f1, _f1, _f1, _f1, _f2, _f1, _f2, _f2, _f2, _chosen, _f2, _f1, _f1, _f2, _b1,
        _b1, _b1, _i2, _i1, _i1, int64,
    ),
    **_OPTIONS,
)  # fmt: skip
def run_layers(
    first, last, resume, pause, position, dims, at, eps, dense, rope, cache, arena, gate_up_at, down_at,
    slot_of, state, slot_size, x, normed, qkv, heads, scores, wide, residuals, shared, probabilities, chosen,
    shares, gate_up, gated, rows, done, fresh, kind_of, tally, uses, last_used, clock,
):  # fmt: skip
    """Run layers first..last-1 on the residual x, and stop before the experts of a layer that misses one.

    With `resume`, layer `first` is past its router, its chosen experts are all resident by now, somebody has
    counted them, and its shared expert is computed. With `pause` it stops behind every layer's router, so that a
    policy can look. Otherwise it counts what needed no waiting: tally[kind, layer],
    uses[expert], kind_of[expert], last_used[expert] = clock + layer.

    Leaves behind residuals[layer], x as the router's norm got it, and shared[layer]. Returns the layer that it
    stopped at, or `last` when all are done.
    """
    experts, top_k, hidden = dims[EXPERTS], dims[TOP_K], dims[HIDDEN]
    for layer in range(first, last):
        if not (resume and layer == first):
            _attention(layer, position, dims, at, dense, eps, rope, cache, x, normed, qkv, heads, scores, wide)
            residuals[layer] = x
            _rms_norm(x, dense[layer], at[AT_POST_NORM], eps, normed)
            _route(layer, dims, at, dense, normed, probabilities, chosen, shares)
            done[:] = 0
            if pause:
                return layer
            for k in range(top_k):
                if state[layer * experts + chosen[layer, k]] != RESIDENT:
                    return layer
            for k in range(top_k):
                expert = layer * experts + chosen[layer, k]
                kind = TALLY_PREFETCHED if fresh[expert] != 0 else TALLY_RESIDENT
                fresh[expert] = 0
                kind_of[expert] = kind
                tally[kind, layer] += 1
                uses[expert] += 1
                last_used[expert] = clock + layer
            compute_shared(layer, dims, at, dense, normed, gate_up, gated, shared)
        compute_rows(
            layer, dims, arena, gate_up_at, down_at, slot_of, state, slot_size,
            normed, chosen, gate_up, gated, rows, done,
        )  # fmt: skip
        extra = shared[layer]
        for i in range(hidden):
            total = np.float32(0.0)
            for k in range(top_k):
                total += shares[layer, k] * rows[k, i]
            x[i] += total + extra[i]
    return last


@njit(types.void(_u2, int64, _f1), **_OPTIONS)
def embed(table, token, x):
    """x = row `token` of the embedding table, widened. table: [V, H] bfloat16 bits."""
    row = table[token]
    for i in range(x.shape[0]):
        x[i] = _widen(row[i])


@njit(types.void(_f1, _u1, float32, _u2, _f1, _f1), **_OPTIONS)
def head(x, norm, eps, table, normed, logits):
    """logits = table @ norm(x). norm: [H] and table: [V, H] bfloat16 bits; logits: [V] float32."""
    _rms_norm(x, norm, 0, eps, normed)
    _matvec(table.reshape(-1), 0, table.shape[0], normed, logits)
