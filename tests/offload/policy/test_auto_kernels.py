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


def look_at(
    x: NDArray[np.float32],
    gates: list[NDArray[np.uint16]],
    norms: list[NDArray[np.uint16]],
    top_k: int,
    shared: NDArray[np.float32] | None = None,
    down: NDArray[np.int8] | None = None,
    down_scale: NDArray[np.float32] | None = None,
    centre: NDArray[np.float32] | None = None,
    layer: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """x normalised, its projection, and what each of the routers makes of it."""
    hidden, experts = len(x), gates[0].shape[0] if gates else 1
    missing = len(kernels.AHEAD) - len(gates)
    rank = 1 if down is None else down.shape[1]
    out, z = np.zeros(hidden, np.float32), np.zeros(rank, np.float32)
    layers = layer + kernels.AHEAD[-1] + 1
    margins, told = np.full((layers, experts), np.nan, np.float32), np.ones(3, np.uint8)
    seen_from = np.zeros(layers, np.int64)
    kernels.look(
        layer, x[None], (x if shared is None else shared)[None], shared is not None,
        (*gates, *[np.zeros((0, 0), np.uint16)] * missing), (*norms, *[np.zeros(0, np.uint16)] * missing),
        len(gates), top_k, np.zeros((0, 0, 0), np.int8) if down is None else down,
        np.zeros((0, 0), np.float32) if down_scale is None else down_scale,
        np.zeros((0, 0), np.float32) if centre is None else centre, down is not None,
        out, np.zeros(hidden, np.float32), z, margins, seen_from, told,
    )  # fmt: skip
    assert not told.any()
    ahead = list(kernels.AHEAD[: len(gates)])
    assert seen_from[seen_from > 0].tolist() == ahead
    seen = layer + np.array(ahead, np.int64)
    assert (seen_from[seen] == ahead).all()
    assert np.isnan(np.delete(margins, seen, axis=0)).all()
    return out, z, margins[seen]


@few
@given(seed=SEEDS, layers=st.integers(1, 4), hidden=st.integers(1, 40), shares=st.booleans())
def test_look_sees_what_the_router_sees(seed: int, layers: int, hidden: int, shares: bool) -> None:
    random, rank = np.random.default_rng(seed), 5
    layer = int(random.integers(layers))
    down, down_scale = int8(random, layers, rank, hidden), abs(floats(random, layers, rank))
    residual, shared, centre = floats(random, hidden), floats(random, hidden), floats(random, layers, rank)
    x, z, _ = look_at(residual, [], [], 1, shared if shares else None, down, down_scale, centre, layer)
    expected = probes.unit(residual + shared if shares else residual)
    assert np.allclose(x, expected, rtol=1e-5)
    projected = (down[layer].astype(np.float64) @ expected) * down_scale[layer] - centre[layer]
    assert np.allclose(z, projected, rtol=1e-3, atol=1e-3 * np.abs(projected).max())


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
    other = narrow(random.normal(size=(experts, hidden)))
    given = floats(random, hidden)
    x, _, both = look_at(given, [other, gate], [norm, norm], top_k)
    assert np.array_equal(both[0], look_at(given, [other], [norm], top_k)[2][0])
    assert np.array_equal(both[1], look_at(given, [gate], [norm], top_k)[2][0])
    margins = both[1]
    logits = widen(gate).astype(np.float64) @ (x * widen(norm))
    ranked = np.sort(logits)[::-1]
    threshold = (ranked[top_k - 1] + ranked[min(top_k, experts - 1)]) / 2
    expected = np.clip((logits - threshold) / (logits.std() + 1e-6), -probe_fitting.CLIP, probe_fitting.CLIP)
    assert np.allclose(margins, expected, atol=2e-3)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_gates_of_equal_logits_are_neither_above_nor_below(top_k: int) -> None:
    one, hidden = narrow(np.ones(4)), 4
    gate = np.tile(one, (3, 1))
    for x in (np.zeros(hidden, np.float32), np.ones(hidden, np.float32)):
        assert np.array_equal(look_at(x, [gate], [one], top_k)[2][0], np.zeros(3))


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
                gate, norm = model.routers.gate[m], model.routers.norm[m]
                out = look_at(inputs[token, m - ahead], [gate], [norm], 3)[2][0]
                assert np.allclose(out, learnt[ahead - 1, token, m], atol=1e-3)
    assert not learnt[0, :, 0].any() and not learnt[1, :, :2].any()
    assert np.float32(probe_fitting.CLIP) == kernels.CLIP


class World:
    """Everything that chances are made of, at random."""

    def __init__(self, seed: int, layers: int, experts: int) -> None:
        random, total, rank = np.random.default_rng(seed), layers * experts, 4
        self.layers, self.experts, self.total = layers, experts, total
        self.weights, self.odds, self.start = floats(random, 8, 6), floats(random, total), floats(random, total)
        self.topic, self.z, self.gates = (
            floats(random, total),
            floats(random, rank),
            floats(random, layers, experts),
        )
        self.seen_from = np.array(random.choice((0, *kernels.AHEAD), layers), np.int64)
        self.up = probes.pack_nibbles(8 * floats(random, layers, layers, experts, rank))
        self.up_scale, self.offset = floats(random, layers, layers) / 7, floats(random, layers, experts)
        self.spread = abs(floats(random, layers, experts))
        self.far = random.random(total).astype(np.float32)
        self.gamma = np.float32(random.uniform(0.5, 1))
        self.state = random.integers(0, 3, total).astype(np.uint8)
        self.told = np.zeros(layers, np.uint8)
        self.chance, self.worth = np.zeros(total, np.float32), np.zeros(total, np.float32)

    @property
    def known(self) -> tuple[NDArray[np.generic], ...]:
        return (
            self.weights, self.odds, self.start, self.topic, self.z, self.up, self.up_scale,
            self.spread, self.offset, self.gates, self.seen_from,
        )  # fmt: skip

    def appraise(self, layer: int, has_start: bool, has_probe: bool) -> None:
        kernels.appraise(
            layer, self.experts, self.known, has_start, has_probe, self.far, self.gamma, self.told, self.chance,
            self.worth,
        )  # fmt: skip

    def expected(self, layer: int, m: int, has_start: bool, has_probe: bool) -> NDArray[np.float64]:
        """The chances of layer m."""
        wraps, distance = m <= layer, self.distance(layer, m)
        seen_from = 0 if wraps else int(self.seen_from[m])
        started = has_start and not wraps
        group = BEGINNING if started else PAST_ALONE
        if has_probe or seen_from:
            group = group_of(distance if has_probe else seen_from, wraps)
        own = slice(m * self.experts, (m + 1) * self.experts)
        terms = np.zeros((self.experts, 6))
        terms[:, 0], terms[:, 1] = 1, self.odds[own]
        terms[:, 2] = self.start[own] if started else 0
        if has_probe:
            said = probes.unpack_nibbles(self.up[layer, m]) @ self.z
            terms[:, 3] = said * self.up_scale[layer, m] * self.spread[m] + self.offset[m]
        terms[:, 4] = self.gates[m] if seen_from else 0
        terms[:, 5] = self.topic[own]
        result: NDArray[np.float64] = 1 / (1 + np.exp(-(terms @ self.weights[group].astype(np.float64))))
        return result

    def distance(self, layer: int, m: int) -> int:
        return (m - layer - 1) % self.layers + 1 if layer >= 0 else m + 1


@few
@given(
    seed=SEEDS,
    layers=st.integers(1, 14),
    experts=st.integers(1, 5),
    has_start=st.booleans(),
    has_probe=st.booleans(),
    data=st.data(),
)
def test_appraise(
    seed: int, layers: int, experts: int, has_start: bool, has_probe: bool, data: st.DataObject
) -> None:
    world = World(seed, layers, experts)
    layer = data.draw(st.integers(-1, layers - 1))
    has_probe = has_probe and layer >= 0
    world.appraise(layer, has_start, has_probe)
    assert world.told.all()
    for m in range(layers):
        own = slice(m * experts, (m + 1) * experts)
        p = world.expected(layer, m, has_start, has_probe)
        assert np.allclose(world.chance[own], p, atol=1e-4)
        # In `distance` layers with p; otherwise a token later at the earliest, discounted by what the past says.
        near = world.gamma ** world.distance(layer, m)
        assert np.allclose(world.worth[own], near * (p + (1 - p) * world.gamma**layers * world.far[own]), atol=1e-4)


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
    has_probe=st.booleans(),
    threshold=st.floats(0, 1, width=32),
    data=st.data(),
)
def test_candidates(
    seed: int, layers: int, experts: int, room: int, has_probe: bool, threshold: float, data: st.DataObject
) -> None:
    world, after = World(seed, layers, experts), World(seed, layers, experts)
    layer, horizon = data.draw(st.integers(-1, layers - 1)), data.draw(st.integers(0, layers))
    has_probe = has_probe and layer >= 0
    given = world.state
    given[: experts * data.draw(st.integers(0, layers))] = 2  # some layers have all that they may need
    world.told[:] = after.told[:] = data.draw(st.lists(st.integers(0, 1), min_size=layers, max_size=layers))
    world.chance[:] = after.chance[:] = np.float32(0.5)  # of those that are told
    found, score = np.full(room, -1), np.zeros(room, np.float32)
    told = world.told.copy()
    count = kernels.candidates(
        layer, experts, world.known, True, has_probe, horizon, given, np.float32(threshold), world.told,
        world.chance, found, score,
    )  # fmt: skip
    after.appraise(layer, True, has_probe)
    expected = {}
    for distance in range(1, horizon + 1):
        m = (layer + distance) % layers
        own = slice(m * experts, (m + 1) * experts)
        if (given[own] != 2).any():
            told[m] = 1
            assert np.array_equal(world.chance[own], after.chance[own])  # to the last bit
        for n in range(own.start, own.stop):
            if given[n] == 0 and after.chance[n] >= np.float32(threshold):
                expected[n] = after.chance[n] / np.float32(distance)
    assert np.array_equal(world.told, told)
    assert count == min(room, len(expected))
    assert len(set(found[:count].tolist())) == count
    assert (found[count:] == -1).all()
    assert np.allclose(score[:count], [expected[n] for n in found[:count].tolist()], rtol=1e-6)
    assert np.allclose(score[:count], sorted(expected.values(), reverse=True)[:count], rtol=1e-6)
    # What is worked out later is what had been worked out at once.
    world.appraise(layer, True, has_probe)
    assert np.array_equal(world.chance, after.chance) and np.array_equal(world.worth, after.worth)


@few
@given(seed=SEEDS, layers=st.integers(1, 4), experts=st.integers(2, 9), data=st.data())
def test_a_token_is_seen_as_its_layers_one_by_one(
    seed: int, layers: int, experts: int, data: st.DataObject
) -> None:
    random, total = np.random.default_rng(seed), layers * experts
    frequency, recency = np.abs(floats(random, 6, total)), np.abs(floats(random, 4, total))
    decay, fade = random.random(6).astype(np.float32), random.random(4).astype(np.float32)
    chosen = np.stack([random.permutation(experts)[:2] for _ in range(layers)]).astype(np.int32)
    told = data.draw(st.sets(st.integers(0, layers - 1)))
    given, one_by_one = (frequency.copy(), recency.copy()), (frequency.copy(), recency.copy())
    for layer in range(layers):
        if layer in told:
            kernels.see(*one_by_one, decay, fade, chosen[layer : layer + 1], layer * experts, experts)
        else:
            chosen[layer, 0] = -1
    seen = chosen.copy()
    for _ in range(2):  # the second time there is nothing left to see
        kernels.see_token(*given, decay, fade, chosen, experts)
        assert all(np.array_equal(a, b) for a, b in zip(given, one_by_one, strict=True))
    # Layer by layer with what it says of the next token: as seen together, and of no other layer.
    roots = np.array([2, 3, 4], np.int64)
    rest = roots, floats(random, 14), floats(random, 15), floats(random, total)
    after = np.zeros(total, np.float32), np.zeros(total, np.float32)
    kernels.recall(*one_by_one, *rest, *after)
    now = frequency.copy(), recency.copy()
    odds, far = np.full(total, 7, np.float32), np.full(total, 7, np.float32)
    for layer in told:
        kernels.see_and_recall(
            *now, decay, fade, seen[layer : layer + 1], layer * experts, experts, *rest, odds, far
        )
    assert all(np.array_equal(a, b) for a, b in zip(now, one_by_one, strict=True))
    own = np.isin(np.arange(total) // experts, list(told))
    for found, expected in zip((odds, far), after, strict=True):
        assert np.array_equal(found[own], expected[own])
        assert (found[~own] == 7).all()
