"""The layers of one decoded token, for any precision.

The functions at the end are compiled by the modules named after precisions, each with the types of its weights;
what reads a matrix's weights (`matvec`, `widen_row`) is chosen by these types. Everything else of a layer, its
norms, router, biases and the shared expert's gate, is bfloat16 in every precision.

Sums are made in an order that depends on shapes alone, never on which expert arrived first or where it lies.

Shapes: H hidden size, L layers, E experts a layer, K experts a token, I neurons of an expert, S neurons of the
shared expert, Q query heads, G key-value heads, D head width, C positions of the cache, V vocabulary; N and M are
weights of a layer's row in `dense` and `packed`, which are the same memory.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from offload.runtime.kernels.exponential import exp
from offload.runtime.kernels.matvec import OPTIONS, matvec, narrow, widen, widen_row
from offload.runtime.kernels.places import (
    AT_INPUT_NORM,
    AT_K_NORM,
    AT_OUT,
    AT_POST_NORM,
    AT_Q_NORM,
    AT_QKV,
    AT_QKV_BIAS,
    AT_ROUTER,
    AT_SHARED_DOWN,
    AT_SHARED_GATE,
    AT_SHARED_GATE_UP,
    EXPERT_SIZE,
    EXPERTS,
    HEAD_DIM,
    HIDDEN,
    KV_HEADS,
    NORM_TOPK,
    Q_HEADS,
    RESIDENT,
    SHARED_SIZE,
    TALLY_PREFETCHED,
    TALLY_RESIDENT,
    TEAM_BEGUN,
    TOP_K,
)
from offload.runtime.kernels.rows import bf16_columns, bf16_dot
from offload.runtime.kernels.team import begin, finish, product, products


@njit(**OPTIONS)
def _rms_norm(x, weights, at, eps, out):
    size = x.shape[0]
    total = np.float32(0.0)
    for i in range(size):
        total += x[i] * x[i]
    scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + eps)
    row = weights[at : at + size]
    for i in range(size):
        out[i] = x[i] * scale * widen(row[i])


@njit(**OPTIONS)
def _gated(gate_up, size, out):
    """out[i] = silu(gate_up[i]) * gate_up[size + i]."""
    for i in range(size):
        gate = gate_up[i]
        out[i] = gate / (np.float32(1.0) + exp(-gate)) * gate_up[size + i]


@njit(**OPTIONS)
def _rotate(head, cos, sin):
    """Rotary embedding of one head in place; cos and sin are [D/2]."""
    half = cos.shape[0]
    for i in range(half):
        a = head[i]
        b = head[half + i]
        head[i] = a * cos[i] - b * sin[i]
        head[half + i] = b * cos[i] + a * sin[i]


@njit(**OPTIONS)
def _attend(q, keys, values, length, group, scale, scores, out):
    """Attention of the `group` query heads that share one key-value head.

    q, out: [group, D] float32; keys, values: [C, D] bfloat16 bits; scores: [group, C] float32.
    """
    width = q.shape[1]
    bits, numbers = keys.reshape(-1), values.reshape(-1)
    for t in range(length):
        for g in range(group):
            scores[g, t] = bf16_dot(bits, t * width, width, q[g]) * scale
    for g in range(group):
        row = scores[g, :length]
        top = row[0]
        for t in range(1, length):
            top = max(top, row[t])
        total = np.float32(0.0)
        for t in range(length):
            row[t] = exp(row[t] - top)
            total += row[t]
        inverse = np.float32(1.0) / total
        for t in range(length):
            row[t] *= inverse
        bf16_columns(numbers, 0, length, width, row, out[g])


@njit(**OPTIONS)
def _attention(
    layer, position, dims, at, dense, packed, eps, rope, cache, x, normed, qkv, heads, scores, wide, scratch, team
):  # fmt: skip
    """Norm, projections, rotary embedding, cache, attention, output projection; adds its result to x."""
    width, queries, groups = dims[HEAD_DIM], dims[Q_HEADS], dims[KV_HEADS]
    hidden = dims[HIDDEN]
    weights, matrices = dense[layer], packed[layer]
    _rms_norm(x, weights, at[AT_INPUT_NORM], eps, normed)
    rows = (queries + 2 * groups) * width
    product(matrices, at[AT_QKV], rows, normed, qkv, scratch, team)
    if at[AT_QKV_BIAS] >= 0:
        bias = weights[at[AT_QKV_BIAS] : at[AT_QKV_BIAS] + rows]
        for r in range(rows):
            qkv[r] += widen(bias[r])
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
            cache[layer, 0, g, position, d] = narrow(key[d])
            cache[layer, 1, g, position, d] = narrow(value[d])
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
    product(matrices, at[AT_OUT], hidden, heads[: queries * width], wide, scratch, team)
    for i in range(hidden):
        x[i] += wide[i]


@njit(**OPTIONS)
def _route(layer, dims, at, dense, normed, probabilities, chosen, shares, scratch):
    """Router: softmax over all experts, the top K in falling order (ties to the lower index)."""
    experts, top_k = dims[EXPERTS], dims[TOP_K]
    p = probabilities[layer]
    matvec(dense[layer], at[AT_ROUTER], experts, normed, p, (scratch[0][0], scratch[1][0]))
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


def compute_shared(layer, dims, at, dense, packed, normed, gate_up, gated, scratch, team, shared):
    """shared[layer] = what the layer's shared expert, which every token goes through, adds; zeros without one."""
    size, hidden = dims[SHARED_SIZE], dims[HIDDEN]
    out = shared[layer]
    if size == 0:
        out[:] = 0
        return
    weights, matrices = dense[layer], packed[layer]
    product(matrices, at[AT_SHARED_GATE_UP], 2 * size, normed, gate_up[0], scratch, team)
    _gated(gate_up[0], size, gated[0])
    product(matrices, at[AT_SHARED_DOWN], hidden, gated[0][:size], out, scratch, team)
    gate = np.float32(0.0)
    gate_row = weights[at[AT_SHARED_GATE] : at[AT_SHARED_GATE] + hidden]
    for i in range(hidden):
        gate += widen(gate_row[i]) * normed[i]
    share = np.float32(1.0) / (np.float32(1.0) + np.exp(-gate))
    for i in range(hidden):
        out[i] *= share


@njit(**OPTIONS)
def _place_rows(layer, dims, gate_up_at, slot_of, state, slot_size, chosen, scratch, done):
    """Say where the first matrices are of those chosen experts that can be computed; returns their number."""
    places, targets = scratch[3], scratch[4]
    there = 0
    for k in range(dims[TOP_K]):
        expert = layer * dims[EXPERTS] + chosen[layer, k]
        if done[k] == 0 and state[expert] == RESIDENT:
            places[there], targets[there] = slot_of[expert] * slot_size + gate_up_at[expert], there
            there += 1
    return there


def compute_rows(
    layer, dims, arena, gate_up_at, down_at, slot_of, state, slot_size,
    normed, chosen, gate_up, gated, scratch, team, rows, done,
):  # fmt: skip
    """Compute those of one layer's chosen experts that are resident and not computed yet.

    rows: [K, H] float32, one row an expert in router order; done: [K] uint8, rows already there. Returns the number
    of rows still to come.
    """
    size, hidden = dims[EXPERT_SIZE], dims[HIDDEN]
    places, targets = scratch[3], scratch[4]
    x = normed.reshape(1, -1)
    there, missing = dims[TOP_K], 0
    if team[TEAM_BEGUN] != layer + 1:
        there = _place_rows(
            layer, dims, gate_up_at, slot_of, state, slot_size, chosen, scratch, done
        )  # fmt: skip
        for k in range(dims[TOP_K]):
            missing += 1 - done[k]
        missing -= there
        if there == 0:
            return missing
        begin(arena, there, 2 * size, hidden, x, scratch, team)
    team[TEAM_BEGUN] = 0
    finish(arena, there, 2 * size, hidden, x, gate_up, scratch, team)
    there = 0
    for k in range(dims[TOP_K]):
        expert = layer * dims[EXPERTS] + chosen[layer, k]
        if done[k] == 0 and state[expert] == RESIDENT:
            _gated(gate_up[there], size, gated[there])
            places[there], targets[there] = slot_of[expert] * slot_size + down_at[expert], k
            done[k] = 1
            there += 1
    products(arena, there, hidden, size, gated, rows, scratch, team)
    return missing


_compute_shared = njit(**OPTIONS)(compute_shared)
_compute_rows = njit(**OPTIONS)(compute_rows)


def run_layers(
    first, last, resume, pause, position, dims, at, eps, dense, packed, rope, cache, arena, gate_up_at, down_at,
    slot_of, state, slot_size, x, normed, qkv, heads, scores, wide, residuals, shared, probabilities, chosen,
    shares, gate_up, gated, scratch, team, rows, done, fresh, kind_of, tally, uses, last_used, clock,
):  # fmt: skip
    """Run layers first..last-1 on the residual x, and stop before the experts of a layer that misses one.

    With `resume`, layer `first` is past its router, its chosen experts are all resident by now, they have been
    counted, and its shared expert is computed. What needs no waiting it counts itself: tally[kind, layer],
    uses[expert], kind_of[expert], last_used[expert] = clock + layer. With `pause` it then stops all the same, with
    the shared expert computed, so that a policy can look; meanwhile helpers begin with the chosen experts, which
    must stay where they are.

    Leaves behind residuals[layer], x as the router's norm got it, and shared[layer]. Returns the layer that it
    stopped at because it misses an expert, -1 - layer where it stopped for the look alone, or `last` when all are
    done.
    """
    experts, top_k, hidden = dims[EXPERTS], dims[TOP_K], dims[HIDDEN]
    if not resume:
        team[TEAM_BEGUN] = 0
    for layer in range(first, last):
        if not (resume and layer == first):
            _attention(
                layer, position, dims, at, dense, packed, eps, rope, cache, x, normed, qkv, heads, scores, wide,
                scratch, team,
            )  # fmt: skip
            residuals[layer] = x
            _rms_norm(x, dense[layer], at[AT_POST_NORM], eps, normed)
            _route(layer, dims, at, dense, normed, probabilities, chosen, shares, scratch)
            done[:] = 0
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
            _compute_shared(layer, dims, at, dense, packed, normed, gate_up, gated, scratch, team, shared)
            if pause:
                _place_rows(layer, dims, gate_up_at, slot_of, state, slot_size, chosen, scratch, done)
                begin(arena, top_k, 2 * dims[EXPERT_SIZE], hidden, normed.reshape(1, -1), scratch, team)
                team[TEAM_BEGUN] = layer + 1
                return -1 - layer
        _compute_rows(
            layer, dims, arena, gate_up_at, down_at, slot_of, state, slot_size,
            normed, chosen, gate_up, gated, scratch, team, rows, done,
        )  # fmt: skip
        extra = shared[layer]
        for i in range(hidden):
            total = np.float32(0.0)
            for k in range(top_k):
                total += shares[layer, k] * rows[k, i]
            x[i] += total + extra[i]
    return last


def embed(packed, at, token, x):
    """x = row `token`, widened, of the embedding table that begins at packed[at]."""
    widen_row(packed, at, token, x)


def head(x, norm, eps, packed, at, normed, scratch, team, logits):
    """logits = table @ norm(x). norm: [H] bfloat16 bits; the table begins at packed[at]; logits: [V] float32."""
    _rms_norm(x, norm, 0, eps, normed)
    product(packed, at, logits.shape[0], normed, logits, scratch, team)
