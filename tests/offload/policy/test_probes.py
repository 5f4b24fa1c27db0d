"""Fitting predictors from traces whose rule is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from offload.policy import low_rank, probe_fitting
from offload.policy.auto import Auto
from offload.policy.knowledge import Knowledge
from offload.policy.lookahead import softmax
from offload.policy.probe_fitting import TooLittle, fit_probes
from offload.policy.probes import (
    BEGINNING,
    GROUPS,
    PAST_ALONE,
    TERMS,
    TOPIC_KEEPS,
    Probes,
    group_of,
    pack_nibbles,
    topic_layer,
    unit,
    unpack_nibbles,
)
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, Routing
from offload.trace.records import TraceModel, TracePass, TraceRequest
from offload.trace.simulator import Simulation, Timing

LAYERS, EXPERTS, TOP_K, HIDDEN = 4, 12, 3, 16
MODEL = TraceModel("linear", "", LAYERS, EXPERTS, TOP_K, HIDDEN, 4096, None)
Draw = np.random.Generator


def linear_requests(
    count: int, tokens: int, *, seed: int = 0, noise: float = 0.0, residuals: bool = True, carried: float = 0.0
) -> list[TraceRequest]:
    """Every layer's logits are one matrix times the token's residual, the same in all layers, and noise.

    The input embedding is the residual too; `carried` of a token's residual is the last token's.
    """
    rules = np.random.default_rng(99).normal(size=(LAYERS, EXPERTS, HIDDEN)) * 2 / HIDDEN**0.5
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        passes, x = [], random.normal(size=HIDDEN)
        for token in range(tokens):
            x = carried * x + (1 - carried**2) ** 0.5 * random.normal(size=HIDDEN)
            passes.append(one_pass(rules, x, token, random, noise, residuals))
        made.append(TraceRequest(f"linear-{number}", "", passes))
    return made


def one_pass(
    rules: NDArray[np.float64], x: NDArray[np.float64], token: int, random: Draw, noise: float, residuals: bool
) -> TracePass:
    logits = rules @ (x / np.sqrt((x**2).mean())) + noise * random.normal(size=(LAYERS, EXPERTS))
    probabilities = np.stack([softmax(row.astype(np.float32)) for row in logits])[:, None].astype(np.float16)
    order = np.argsort(-probabilities.astype(np.float32), axis=-1, kind="stable")
    half = x.astype(np.float16)
    return TracePass(
        phase=Phase.DECODE,
        position=token,
        token_ids=np.zeros(1, np.int32),
        embedding=half,
        probabilities=probabilities,
        margins=np.zeros((LAYERS, 1), np.float16),
        chosen=order[:, :, :TOP_K].astype(np.int16),
        residual=np.tile(half, (LAYERS, 1, 1)) if residuals else None,
        shared=None,
        seconds=0.0,
        stall_s=np.zeros(LAYERS, np.float32),
        reads=(),
    )


@pytest.fixture(scope="module")
def fitted() -> Probes:
    return fit_probes(MODEL, linear_requests(10, 100))


def recall(fitted: Probes, requests: list[TraceRequest], distance: int) -> float:
    """Share of what is chosen that is among the top K of the margins `distance` layers before."""
    found = total = 0
    for one in (one for request in requests for one in request.passes):
        assert one.residual is not None
        for layer in range(LAYERS - distance):
            margins = fitted.scores(layer, distance, one.residual[layer, 0].astype(np.float32), None)
            guessed = np.argsort(-margins)[:TOP_K]
            found += len(np.intersect1d(guessed, one.chosen[layer + distance, 0]))
            total += TOP_K
    return found / total


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_a_linear_rule_is_found(fitted: Probes, distance: int) -> None:
    assert recall(fitted, linear_requests(20, 40, seed=1), distance) > 0.93


def test_chance_is_not_found() -> None:
    """Where routing has nothing to do with the residual, guesses are as good as chance."""
    random = np.random.default_rng(0)
    requests = [
        replace(
            request,
            passes=[
                replace(one, residual=random.normal(size=(LAYERS, 1, HIDDEN)).astype(np.float16))
                for one in request.passes
            ],
        )
        for request in linear_requests(10, 60)
    ]
    assert recall(fit_probes(MODEL, requests), linear_requests(2, 40, seed=1), 1) < 0.5


def test_shapes_types_and_bytes(fitted: Probes) -> None:
    assert fitted.shape == (LAYERS, EXPERTS, HIDDEN)
    rank, start_rank, topic_rank = fitted.down.shape[1], fitted.start_down.shape[0], fitted.topic_down.shape[0]
    assert rank <= probe_fitting.RANK and start_rank <= probe_fitting.START_RANK
    assert topic_rank <= probe_fitting.TOPIC_RANK
    expected = {
        "down": (np.int8, (LAYERS, rank, HIDDEN)),
        "down_scale": (np.float32, (LAYERS, rank)),
        "centre": (np.float32, (LAYERS, rank)),
        "up": (np.uint8, (LAYERS, LAYERS, EXPERTS, rank // 2)),
        "up_scale": (np.float32, (LAYERS, LAYERS)),
        "spread": (np.float32, (LAYERS, EXPERTS)),
        "offset": (np.float32, (LAYERS, EXPERTS)),
        "start_down": (np.int8, (start_rank, 2 * HIDDEN)),
        "start_down_scale": (np.float32, (start_rank,)),
        "start_up": (np.int8, (LAYERS * EXPERTS, start_rank)),
        "start_up_scale": (np.float32, (LAYERS * EXPERTS,)),
        "start_offset": (np.float32, (LAYERS * EXPERTS,)),
        "topic_down": (np.int8, (topic_rank, HIDDEN)),
        "topic_down_scale": (np.float32, (topic_rank,)),
        "topic_up": (np.int8, (LAYERS * EXPERTS, topic_rank)),
        "topic_up_scale": (np.float32, (LAYERS * EXPERTS,)),
        "topic_offset": (np.float32, (LAYERS * EXPERTS,)),
        "topic_mean": (np.float32, (HIDDEN,)),
        "weights": (np.float32, (GROUPS, TERMS)),
        "soon": (np.float32, (14,)),
        "later": (np.float32, (15,)),
        "tokens": (np.int64, (1,)),
    }
    arrays = fitted.arrays()
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == expected
    assert all(array.flags.c_contiguous and np.isfinite(array).all() for array in arrays.values())
    assert fitted.memory_bytes == sum(
        int(np.prod(shape)) * np.dtype(kind).itemsize for kind, shape in expected.values()
    )
    assert fitted.tokens[0] == 1000


def test_fitting_is_repeatable(fitted: Probes) -> None:
    again = fit_probes(MODEL, linear_requests(10, 100))
    for name, array in fitted.arrays().items():
        assert np.array_equal(array, again.arrays()[name]), name


def test_nibbles_are_the_nearest_to_what_was_packed() -> None:
    values = np.random.default_rng(0).uniform(-10, 10, (3, 5, 10)).astype(np.float32)
    packed = pack_nibbles(values)
    assert packed.dtype == np.uint8 and packed.shape == (3, 5, 5)
    levels = np.arange(16) - 7.5
    nearest = levels[np.abs(values[..., None] - levels).argmin(axis=-1)]
    assert np.array_equal(unpack_nibbles(packed), nearest)


@pytest.mark.parametrize("rank", [5, 8], ids=["odd", "even"])
def test_four_bits_say_nearly_what_was_fitted(rank: int) -> None:
    """Whatever the columns' sizes, a few % of the variance is lost."""
    random = np.random.default_rng(0)
    columns = 10.0 ** random.uniform(-1, 1, rank)
    part = low_rank.LowRank(
        random.normal(size=(rank, 20)),
        random.normal(size=(LAYERS * EXPERTS, rank)) * columns,
        random.normal(size=rank),
        random.normal(size=LAYERS * EXPERTS),
    )
    spread = random.uniform(0.5, 2, LAYERS * EXPERTS).astype(np.float32)
    packed = low_rank.PackedProbe.of(part, spread, LAYERS)
    assert packed.up.shape == (LAYERS, EXPERTS, 3 if rank == 5 else 4)
    x = random.normal(size=(200, 20))
    z = (x @ packed.down.astype(np.float32).T) * packed.down_scale - packed.centre
    up = unpack_nibbles(packed.up) * packed.up_scale[:, None, None]
    said = np.einsum("ter,xr->xte", up, z).reshape(200, -1)
    truth = (part(x) - part.mean) / spread
    assert ((said - truth) ** 2).mean() < 0.06 * (truth**2).mean()


def test_int8_is_off_by_half_a_step_at_most() -> None:
    matrix = np.random.default_rng(0).normal(size=(7, 50)).astype(np.float32)
    matrix[3] = 0
    bits, scale = low_rank.rows_int8(matrix)
    assert bits.dtype == np.int8
    assert (np.abs(bits * scale[:, None] - matrix) <= 0.501 * scale[:, None]).all()
    assert np.allclose(scale[np.arange(7) != 3], np.abs(matrix).max(axis=1)[np.arange(7) != 3] / 127)


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ([], "the trace holds no residuals to fit predictors from"),
        (linear_requests(3, 20), "60 decoded tokens with residuals are too few to fit predictors"),
        (linear_requests(10, 100, residuals=False), "the trace holds no residuals to fit predictors from"),
    ],
    ids=["nothing", "little", "no residuals"],
)
def test_too_little_is_refused_in_one_line(requests: list[TraceRequest], says: str) -> None:
    with pytest.raises(TooLittle) as refused:
        fit_probes(MODEL, requests)
    assert str(refused.value) == says
    assert "finemoe trace record --residuals" in (refused.value.hint or "")


class Watched(Auto):
    """Notes what was expected of each layer from each point before it, and what came."""

    def begin_pass(self, forward: ForwardPass) -> None:
        super().begin_pass(forward)
        self.expected: list[tuple[int, bool, NDArray[np.float32]]] = [(-1, self._has_start, self._chance.copy())]
        self.used = np.zeros(self._chance.shape, bool)

    def routed(self, routing: Routing) -> None:
        super().routed(routing)
        self.expected.append((routing.layer, self._has_start, self._chance.copy()))
        self.used[routing.layer * EXPERTS + routing.chosen[0]] = True

    def end_pass(self) -> None:
        super().end_pass()
        for layer, started, chance in self.expected:
            later = slice((layer + 1) * EXPERTS, None)
            LOG.setdefault(layer, []).append((started, chance[later], self.used[later]))


LOG: dict[int, list[tuple[bool, NDArray[np.float32], NDArray[np.bool_]]]] = {}


@pytest.mark.parametrize("requests", [10, 2], ids=["many requests", "fewer than are held back"])
def test_the_blend_says_what_happens(requests: int) -> None:
    """Of what it gives a probability of p, a share of p is used: at every layer, and before the first."""
    shape = {"noise": 0.7, "carried": 0.7}
    fitted = fit_probes(MODEL, linear_requests(requests, 1000 // requests, **shape))
    LOG.clear()
    simulation = Simulation(MODEL, LAYERS * EXPERTS, Timing(), Watched, Knowledge(probes=fitted))
    simulation.run(linear_requests(8, 60, seed=1, **shape))
    for layer in range(-1, LAYERS - 1):
        p = np.concatenate([chance for started, chance, _ in LOG[layer] if started])
        used = np.concatenate([used for started, _, used in LOG[layer] if started])
        assert p.mean() == pytest.approx(TOP_K / EXPERTS, abs=0.04), layer
        assert p[used].mean() > p[~used].mean() + 0.2, layer
        for low in np.arange(0, 1, 0.2):
            there = (p >= low) & (p < low + 0.2)
            if there.sum() > 200:
                assert used[there].mean() == pytest.approx(p[there].mean(), abs=0.12), (layer, low)


def test_the_blend_before_the_first_token_is_known() -> None:
    """A request's first token has no start predictor: the past alone speaks, and is not far off."""
    fitted = fit_probes(MODEL, linear_requests(10, 100))
    LOG.clear()
    simulation = Simulation(MODEL, LAYERS * EXPERTS, Timing(), Watched, Knowledge(probes=fitted))
    simulation.run(linear_requests(1, 1))
    (_, chance, _), *_ = LOG[-1]
    assert chance.mean() == pytest.approx(TOP_K / EXPERTS, abs=0.05)


def sticky_requests(count: int, tokens: int, seed: int) -> list[TraceRequest]:
    """Every layer chooses what it chose for the last token, in four cases of five; residuals say nothing."""
    random = np.random.default_rng(seed)
    made = []
    for request in linear_requests(count, tokens, seed=seed):
        passes, chosen = [], np.zeros((LAYERS, TOP_K), np.int64)
        for token, one in enumerate(request.passes):
            for layer in range(LAYERS):
                if token == 0 or random.random() > 0.8:
                    chosen[layer] = random.permutation(EXPERTS)[:TOP_K]
            probabilities = np.full((LAYERS, EXPERTS), 0.01)
            np.put_along_axis(probabilities, chosen, 0.3, axis=1)
            passes.append(
                replace(
                    one,
                    chosen=chosen[:, None].astype(np.int16),
                    probabilities=probabilities[:, None].astype(np.float16),
                    residual=random.normal(size=(LAYERS, 1, HIDDEN)).astype(np.float16),
                )
            )
        made.append(replace(request, passes=passes))
    return made


class Behind(Auto):
    """Notes, behind every layer, what is expected of those that it has just chosen."""

    def routed(self, routing: Routing) -> None:
        super().routed(routing)
        self._appraise()
        AGAIN.append(self._chance[routing.layer * EXPERTS + routing.chosen[0]])


AGAIN: list[NDArray[np.float32]] = []


def test_what_a_layer_has_just_chosen_is_expected_of_it_again() -> None:
    """Of four in five, and of those that are drawn anew by chance."""
    fitted = fit_probes(MODEL, sticky_requests(10, 100, 0))
    AGAIN.clear()
    simulation = Simulation(MODEL, LAYERS * EXPERTS // 2, Timing(), Behind, Knowledge(probes=fitted))
    simulation.run(sticky_requests(4, 60, 1))
    assert np.mean(AGAIN) == pytest.approx(0.8 + 0.2 * TOP_K / EXPERTS, abs=0.1)


def test_groups_without_data_fall_back_to_the_past(fitted: Probes) -> None:
    """Of four layers none is more than three away."""
    assert np.array_equal(fitted.weights[group_of(9, False)], [0, 1, 0, 0, 0, 0])
    assert fitted.weights[BEGINNING, 3:5].tolist() == [0, 0]
    assert fitted.weights[PAST_ALONE, 2:5].tolist() == [0, 0, 0]


def told(fitted: Probes, average: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the topic's predictor says: [L*E]."""
    z = (fitted.topic_down.astype(np.float32) @ average) * fitted.topic_down_scale
    result: NDArray[np.float32] = (fitted.topic_up.astype(np.float32) @ z) * fitted.topic_up_scale
    return result + fitted.topic_offset


def test_a_topic_tells_what_its_coming_tokens_use() -> None:
    """Residuals that hardly change from token to token, and others for every request."""
    fitted = fit_probes(MODEL, linear_requests(40, 50, carried=0.98))
    right, chance = [], []
    for request in linear_requests(12, 40, seed=1, carried=0.98):
        values = np.stack(
            [one.residual[topic_layer(LAYERS), 0] for one in request.passes if one.residual is not None]
        )
        said = told(fitted, unit(values.astype(np.float32))[:12].mean(axis=0))
        used = np.zeros(LAYERS * EXPERTS)
        for one in request.passes[12:]:
            np.add.at(used, (one.chosen[:, 0] + np.arange(LAYERS)[:, None] * EXPERTS).ravel(), 1 / 28)
        named = np.argsort(-said)[: LAYERS * TOP_K]
        right.append(used[named].mean())
        chance.append(used.mean())
    assert np.mean(right) > 1.7 * np.mean(chance)


def test_a_topic_begins_with_every_request_and_follows_its_residuals() -> None:
    fitted = fit_probes(MODEL, linear_requests(10, 100))
    simulation = Simulation(MODEL, LAYERS * EXPERTS, Timing(), Auto, Knowledge(probes=fitted))
    policy = simulation.policy
    assert isinstance(policy, Auto)
    assert np.allclose(policy._topic, told(fitted, fitted.topic_mean), rtol=1e-3, atol=1e-3)
    for request in linear_requests(2, 9, seed=3):
        simulation.run([request])
        average = fitted.topic_mean
        for one in request.passes:
            assert one.residual is not None
            x = unit(one.residual[topic_layer(LAYERS), 0].astype(np.float32))
            average = TOPIC_KEEPS * average + (1 - TOPIC_KEEPS) * x
        assert np.allclose(policy._topic, told(fitted, average), rtol=1e-3, atol=1e-2)


def test_what_is_held_back() -> None:
    many = np.repeat(np.arange(20, 30), 4)
    assert np.unique(many[probe_fitting._held_back(many)]).tolist() == [24, 29]
    one = np.zeros(10, np.int64)
    assert np.flatnonzero(probe_fitting._held_back(one)).tolist() == [8, 9]


def test_a_logistic_regression_finds_its_weights() -> None:
    random = np.random.default_rng(0)
    terms = np.column_stack([np.ones(20_000), random.normal(size=(20_000, 2)), np.zeros(20_000)])
    truth = np.array([-1.0, 2.0, 0.5, 0.0])
    target = random.random(20_000) < 1 / (1 + np.exp(-(terms @ truth)))
    assert np.allclose(probe_fitting.logistic(terms.astype(np.float32), target), truth, atol=0.08)
