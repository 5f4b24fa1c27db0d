"""Each kernel of `auto` against numpy, saying in a few lines what its docstring says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from offload.policy import probe_fitting, probes
from offload.policy.kernels import auto as kernels
from offload.policy.lookahead import widen
from offload.policy.probes import BEGINNING, PAST_ALONE, group_of
from tests.support.routing import narrow

SEEDS = st.integers(0, 1 << 20)
few = settings(deadline=None, max_examples=40)


def floats(random: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return random.normal(size=shape).astype(np.float32)


def int8(random: np.random.Generator, *shape: int) -> NDArray[np.int8]:
    return random.integers(-127, 128, shape, np.int8)


@few
@given(seed=SEEDS, size=st.integers(1, 70))
def test_normalise(seed: int, size: int) -> None:
    x, out = floats(np.random.default_rng(seed), size), np.zeros(size, np.float32)
    kernels.normalise(x, out)
    assert np.allclose(out, probes.unit(x), rtol=1e-5)


@few
@given(seed=SEEDS, layers=st.integers(1, 4), experts=st.integers(1, 9), hidden=st.integers(1, 40))
def test_probe_margins(seed: int, layers: int, experts: int, hidden: int) -> None:
    random, rank = np.random.default_rng(seed), 5
    layer = int(random.integers(layers))
    down, down_scale = int8(random, layers, rank, hidden), abs(floats(random, layers, rank))
    up, up_scale = int8(random, layers, layers, experts, rank), abs(floats(random, layers, layers))
    offset, x = floats(random, layers, layers, experts), floats(random, hidden)
    margins = np.zeros((layers, experts), np.float32)
    kernels.probe_margins(layer, down, down_scale, up, up_scale, offset, x, np.zeros(rank, np.float32), margins)
    z = (down[layer].astype(np.float64) @ x) * down_scale[layer]
    expected = (up[layer].astype(np.float64) @ z) * up_scale[layer][:, None] + offset[layer]
    assert np.allclose(margins, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@few
@given(seed=SEEDS, count=st.integers(1, 30), size=st.integers(1, 40))
def test_tell(seed: int, count: int, size: int) -> None:
    random, rank = np.random.default_rng(seed), 6
    down, down_scale = int8(random, rank, size), abs(floats(random, rank))
    up, up_scale, offset = int8(random, count, rank), abs(floats(random, count)), floats(random, count)
    x, told = floats(random, size), np.zeros(count, np.float32)
    kernels.tell(down, down_scale, up, up_scale, offset, x, np.zeros(rank, np.float32), told)
    expected = (up.astype(np.float64) @ ((down.astype(np.float64) @ x) * down_scale)) * up_scale + offset
    assert np.allclose(told, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@few
@given(seed=SEEDS, experts=st.integers(1, 20), top_k=st.integers(1, 8), hidden=st.integers(2, 40))
def test_gate_margins(seed: int, experts: int, top_k: int, hidden: int) -> None:
    random, top_k = np.random.default_rng(seed), min(top_k, experts)
    gate, norm = narrow(random.normal(size=(experts, hidden))), narrow(random.normal(1, 0.1, hidden))
    x, margins = floats(random, hidden), np.zeros(experts, np.float32)
    kernels.gate_margins(gate, norm, x, np.zeros(hidden, np.float32), top_k, margins)
    logits = widen(gate).astype(np.float64) @ (x * widen(norm))
    ranked = np.sort(logits)[::-1]
    threshold = (ranked[top_k - 1] + ranked[min(top_k, experts - 1)]) / 2
    expected = np.clip((logits - threshold) / (logits.std() + 1e-6), -probe_fitting.CLIP, probe_fitting.CLIP)
    assert np.allclose(margins, expected, atol=2e-3)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_gates_of_equal_logits_are_neither_above_nor_below(top_k: int) -> None:
    one, hidden = narrow(np.ones(4)), 4
    gate = np.tile(one, (3, 1))
    margins = np.zeros(3, np.float32)
    for x in (np.zeros(hidden, np.float32), np.ones(hidden, np.float32)):
        kernels.gate_margins(gate, one, x, np.zeros(hidden, np.float32), top_k, margins)
        assert np.array_equal(margins, np.zeros(3))


def test_what_is_learnt_of_a_gate_is_what_runs() -> None:
    """`fit_probes` computes gates for all tokens at once with numpy."""
    from tests.support.routing import synthetic_model

    model = synthetic_model(layers=4, experts=10, top_k=3, hidden=24)
    assert model.routers is not None
    inputs = probes.unit(floats(np.random.default_rng(0), 5, 4, 24))
    learnt = probe_fitting._gates(model, inputs)
    for ahead in (1, 2):
        for m in range(ahead, 4):
            for token in range(5):
                out = np.zeros(10, np.float32)
                x, scratch = inputs[token, m - ahead], np.zeros(24, np.float32)
                kernels.gate_margins(model.routers.gate[m], model.routers.norm[m], x, scratch, 3, out)
                assert np.allclose(out, learnt[ahead - 1, token, m], atol=1e-3)
    assert not learnt[0, :, 0].any() and not learnt[1, :, :2].any()
    assert np.float32(probe_fitting.CLIP) == kernels.CLIP


@few
@given(
    seed=SEEDS,
    layers=st.integers(1, 14),
    experts=st.integers(1, 5),
    has_start=st.booleans(),
    has_probe=st.booleans(),
    ahead=st.integers(0, 2),
    data=st.data(),
)
def test_appraise(
    seed: int, layers: int, experts: int, has_start: bool, has_probe: bool, ahead: int, data: st.DataObject
) -> None:
    random, total = np.random.default_rng(seed), layers * experts
    layer = data.draw(st.integers(-1, layers - 1))
    ahead = 0 if layer < 0 else min(ahead, layers - 1 - layer)
    weights, odds, start = floats(random, 8, 6), floats(random, total), floats(random, total)
    topic = floats(random, total)
    probe, gates = floats(random, layers, experts), floats(random, 2, experts)
    far, gamma = random.random(total).astype(np.float32), np.float32(random.uniform(0.5, 1))
    chance, worth = np.zeros(total, np.float32), np.zeros(total, np.float32)
    kernels.appraise(
        layer, weights, odds, start, has_start, probe, has_probe, gates, ahead,
        topic, far, experts, gamma, chance, worth,
    )  # fmt: skip
    for m in range(layers):
        wraps = m <= layer
        distance = (m - layer - 1) % layers + 1 if layer >= 0 else m + 1
        probed, gated, started = has_probe and layer >= 0, not wraps and distance <= ahead, has_start and not wraps
        group = group_of(distance, wraps) if probed or gated else BEGINNING if started else PAST_ALONE
        own = slice(m * experts, (m + 1) * experts)
        terms = np.zeros((experts, 6))
        terms[:, 0], terms[:, 1] = 1, odds[own]
        terms[:, 2] = start[own] if started else 0
        terms[:, 3] = probe[m] if probed else 0
        terms[:, 4] = gates[distance - 1] if gated else 0
        terms[:, 5] = topic[own]
        p = 1 / (1 + np.exp(-(terms @ weights[group].astype(np.float64))))
        assert np.allclose(chance[own], p, atol=1e-4)
        # In `distance` layers with p; otherwise a token later at the earliest, discounted by what the past says.
        expected = gamma**distance * (p + (1 - p) * gamma**layers * far[own])
        assert np.allclose(worth[own], expected, atol=1e-4)


@pytest.mark.parametrize("wraps", [False, True])
def test_distances_share_weights_as_they_are_fitted(wraps: bool) -> None:
    for distance in range(1, 40):
        assert kernels._group(distance, wraps) == group_of(distance, wraps)


@few
@given(worth=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20), data=st.data())
def test_least(worth: list[float], data: st.DataObject) -> None:
    some = data.draw(st.sets(st.integers(0, len(worth) - 1), min_size=1))
    evictable = np.array(sorted(some))
    values = np.array(worth, np.float32)
    assert kernels.least(evictable, values) == evictable[np.argmin(values[evictable])]


@few
@given(
    seed=SEEDS,
    layers=st.integers(1, 6),
    experts=st.integers(1, 6),
    room=st.integers(1, 8),
    threshold=st.floats(0, 1, width=32),
    data=st.data(),
)
def test_candidates(seed: int, layers: int, experts: int, room: int, threshold: float, data: st.DataObject) -> None:
    random, total = np.random.default_rng(seed), layers * experts
    layer, horizon = data.draw(st.integers(-1, layers - 1)), data.draw(st.integers(0, layers))
    state = random.integers(0, 3, total).astype(np.uint8)
    chance = random.random(total).astype(np.float32)
    found, score = np.full(room, -1), np.zeros(room, np.float32)
    count = kernels.candidates(layer, horizon, experts, state, chance, np.float32(threshold), found, score)
    expected = {}
    for distance in range(1, horizon + 1):
        m = (layer + distance) % layers
        for n in range(m * experts, (m + 1) * experts):
            if state[n] == 0 and chance[n] >= np.float32(threshold):
                expected[n] = chance[n] / np.float32(distance)
    assert count == min(room, len(expected))
    assert len(set(found[:count].tolist())) == count
    assert (found[count:] == -1).all()
    assert np.allclose(score[:count], [expected[n] for n in found[:count].tolist()], rtol=1e-6)
    assert np.allclose(score[:count], sorted(expected.values(), reverse=True)[:count], rtol=1e-6)
