"""What is simulated is what runs: counters against live engines, and times worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from finemoe_cli.datasets.sample import load_sample
from offload import Engine, EngineConfig, Sampling
from offload.policy import Blind, Decision, Fetch, Surroundings, make_policy
from offload.telemetry.counters import Phase
from offload.trace.demand_only import DemandOnly
from offload.trace.foresight import Belady, Future
from offload.trace.recorder import Recorder, trace_model
from offload.trace.records import TraceModel, TracePass, TraceRequest
from offload.trace.simulator import Outcome, Simulation, Timing, simulate
from tests.support.checkpoints import tiny_checkpoint
from tests.support.routing import synthetic_model, synthetic_requests

LANES = 2
PROMPTS = ([7], list(range(20, 57)), [3, 5, 9, 11], list(range(90, 96)))
NEW_TOKENS = 12
BLIND = ("demand", "lfu", "layer-lru")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", layers=4, experts=8, top_k=2)


def open_live(folder: Path, fraction: float, policy: str) -> Engine:
    return Engine(
        EngineConfig(
            model=folder,
            experts_fraction=fraction,
            policy=policy,
            kernels="fast",
            device="cpu",
            context=128,
            lanes=LANES,
        )
    )


def ask(engine: Engine) -> Iterator[None]:
    for prompt in PROMPTS:
        engine.generate_ids(prompt, Sampling(max_new_tokens=NEW_TOKENS, temperature=0))
        yield


@pytest.fixture(scope="module")
def recorded(tiny: Path) -> tuple[TraceModel, list[TraceRequest]]:
    """What all engines here are asked, as it was recorded under the smallest of their budgets."""
    with open_live(tiny, 0.4, "demand") as engine:
        model = trace_model(engine)
        recorder = Recorder(model, residuals=True)
        engine.observe(recorder)
        return model, [recorder.take(f"r/{number}") for number, _ in enumerate(ask(engine))]


@pytest.mark.parametrize("policy", BLIND)
# Less than 8 + 2 * 2 slots would make live runs differ from one another: which of a prompt's experts leaves for
# which would depend on the moment that a read ends.
@pytest.mark.parametrize("fraction", [0.4, 0.6])
def test_counts_are_those_of_the_live_engine(
    tiny: Path, recorded: tuple[TraceModel, list[TraceRequest]], policy: str, fraction: float
) -> None:
    model, requests = recorded
    with open_live(tiny, fraction, policy) as engine:
        for _ in ask(engine):
            pass
        live = engine.snapshot()
        counters = engine._loaded.counters
        slots = live.memory.slots
        timing = Timing(layer_s=1e-4, read_s=3e-4, lanes=LANES)
        simulation = Simulation(model, slots, timing, partial(make_policy, policy))
        simulation.run(requests)
        simulated = simulation.counters
        assert np.array_equal(simulated.tally, counters.tally)
        assert np.array_equal(simulated.uses, counters.uses)
        assert np.array_equal(simulated.misses, counters.misses)
        assert simulated.evictions == counters.evictions
    bytes_read = [simulated.bytes_demand[phase] // model.slot_bytes for phase in Phase]
    assert sum(bytes_read) == int(simulated.misses.sum())
    assert simulated.tally[Phase.PREFILL].sum() > 0 and sum(simulated.evictions) > 0
    assert simulation.outcome().tokens == live.tokens - len(PROMPTS)


def test_passes_compute_as_long_as_they_did(recorded: tuple[TraceModel, list[TraceRequest]]) -> None:
    model, requests = recorded
    everything = model.layers * model.experts
    timing = Timing(layer_s=1.0, read_s=1e-9, recorded_passes=True)
    outcome = simulate(model, requests, everything, timing, partial(make_policy, "demand"), prefill=True)
    for request, times in zip(requests, outcome.requests, strict=True):
        prompts = [one for one in request.passes if one.phase == Phase.PREFILL]
        expected = sum(one.seconds - float(one.stall_s.sum()) for one in prompts)
        assert times.ttft_s == pytest.approx(expected, abs=1e-6)
        tokens = [one for one in request.passes if one.phase == Phase.DECODE]
        expected = sum(one.seconds - float(one.stall_s.sum()) for one in tokens) / len(tokens)
        assert times.tpot_s == pytest.approx(expected, abs=1e-6)


# Worked out by hand: 2 layers of 4 experts, one a token.

HAND = TraceModel("hand", "", 2, 4, 1, 2, 1 << 20, None)
SHARED = partial(Timing, layer_s=1.0, router_share=0.3, shared_share=0.3)


def token(*chosen: int) -> TracePass:
    """A decoded token that chose these experts, one a layer."""
    return TracePass(
        phase=Phase.DECODE,
        position=0,
        token_ids=np.zeros(1, np.int32),
        embedding=np.zeros(2, np.float16),
        probabilities=np.full((2, 1, 4), 0.25, np.float16),
        margins=np.zeros((2, 1), np.float16),
        chosen=np.array(chosen, np.int16).reshape(2, 1, 1),
        residual=None,
        shared=None,
        seconds=0.0,
        stall_s=np.zeros(2, np.float32),
        reads=(),
    )


class Foretold(Blind):
    """Reads ahead what it was told, one list for each time it is asked."""

    looks_ahead = True

    def __init__(self, around: Surroundings, plan: list[list[int]]) -> None:
        super().__init__(around)
        self._plan = iter(plan)

    def decide(self, layer: int) -> Decision:
        return Decision([], [Fetch(expert, 0.0) for expert in next(self._plan, [])])

    def victim(self, evictable: np.ndarray, wanted: int, demand: bool) -> int:
        return int(evictable[self.around.last_used[evictable].argmin()])


def by_hand(passes: list[TracePass], timing: Timing, plan: list[list[int]]) -> Outcome:
    return simulate(HAND, [TraceRequest("a/1", "", passes)], 8, timing, partial(Foretold, plan=plan))


def test_a_demand_read_is_waited_for_less_what_computes_meanwhile() -> None:
    timing = SHARED(read_s=2.0)
    outcome = by_hand([token(0, 0), token(0, 0)], timing, [])
    # In each layer the read begins behind the router; 0.3 pass with the shared expert, the rest is waited for.
    assert outcome.stall_s == pytest.approx(2 * (2.0 - 0.3))
    assert outcome.decode_s == pytest.approx(2 * 2.0 + 2 * 1.7)
    assert (outcome.decode.missed, outcome.decode.resident) == (2, 2)
    assert outcome.link_busy == pytest.approx(4.0 / outcome.decode_s)


def test_a_read_ahead_that_is_not_there_yet_is_late() -> None:
    timing = SHARED(read_s=2.0)
    outcome = by_hand([token(0, 0)], timing, [[4]])
    # Layer 1's expert is asked for behind layer 0's, on one lane: 0.3 to 2.3, then 2.3 to 4.3. Layer 0 ends at
    # 2.3 + 0.4; layer 1's router says at 3.0 that it needs it, and its shared expert is done at 3.3.
    assert (outcome.decode.missed, outcome.decode.late) == (1, 1)
    assert outcome.stall_s == pytest.approx(1.7 + 1.0)
    both = by_hand([token(0, 0)], SHARED(read_s=2.0, lanes=2), [[4]])
    # With two lanes it comes at 0.6 + 2.0, while layer 0 computes.
    assert (both.decode.missed, both.decode.prefetched) == (1, 1)
    assert both.stall_s == pytest.approx(1.7)


def test_the_decision_comes_behind_the_shared_expert_and_costs_its_time() -> None:
    quick = by_hand([token(0, 0)], SHARED(read_s=0.1), [[]])
    slow = by_hand([token(0, 0)], SHARED(read_s=0.1, decide_s=0.25), [[]])
    assert slow.decode_s == pytest.approx(quick.decode_s + 2 * 0.25)


def test_recorded_reads_are_replayed_in_turn() -> None:
    outcome = by_hand([token(0, 0), token(1, 1)], SHARED(reads_s=(1.0, 3.0)), [])
    assert outcome.stall_s == pytest.approx(2 * (0.7 + 2.7))


def test_without_prefill_a_prompt_is_shown_and_costs_nothing() -> None:
    model = synthetic_model()
    requests = list(synthetic_requests(model, requests=2))
    make = partial(make_policy, "lfu")
    shown = Simulation(model, 30, Timing(), make)
    shown.run(requests, prefill=False)
    assert not shown.counters.tally[Phase.PREFILL].any()
    assert all(times.ttft_s == 0 for times in shown.outcome().requests)
    # LFU counts what prompts use: it evicts otherwise than without them.
    bare = [
        TraceRequest(one.name, "", [each for each in one.passes if each.phase == Phase.DECODE]) for one in requests
    ]
    unseen = simulate(model, bare, 30, Timing(), make)
    assert unseen.decode != shown.outcome().decode


def test_demand_only_reads_nothing_ahead_and_keeps_the_eviction() -> None:
    model = synthetic_model()
    requests = list(synthetic_requests(model))

    def run(name: str, *, alone: bool) -> Outcome:
        make = partial(make_policy, name)
        return simulate(model, requests, 30, Timing(), (lambda a: DemandOnly(make(a))) if alone else make)

    for name in ("mixtral-offloading", "finemoe", "moe-infinity"):
        alone = run(name, alone=True)
        assert run(name, alone=False).decode.bytes_prefetch > 0
        assert alone.decode.bytes_prefetch == alone.decode.late == alone.decode.prefetched == 0
        assert alone.policy == name
    assert run("demand", alone=True) == run("demand", alone=False)
    future = Future(requests, model.layers, model.experts, prefill=False)
    best = simulate(model, requests, 30, Timing(), lambda around: Belady(around, future))
    assert run("finemoe", alone=True).decode.hit_rate != run("demand", alone=True).decode.hit_rate
    assert best.decode.missed <= min(run(name, alone=True).decode.missed for name in ("finemoe", "demand"))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixtral-offloading", "auto"])
def test_hit_rates_are_those_of_the_live_engine(demo_model: Path, policy: str) -> None:
    """Reading ahead is a race, so counts differ from run to run; replayed times tell who wins on average."""
    conversations = [one for one in load_sample(40) if len(one.turns[0]) < 300][:8]
    config = EngineConfig(
        model=demo_model, experts_fraction=0.25, policy=policy, kernels="fast", device="cpu", context=1024, lanes=2
    )
    requests = []
    with Engine(config) as engine:
        model = trace_model(engine)
        recorder = Recorder(model, residuals=True)
        engine.observe(recorder)
        for conversation in conversations:
            engine.forget()
            messages = [{"role": "user", "content": conversation.turns[0]}]
            engine.chat(messages, Sampling(max_new_tokens=48, temperature=0))
            requests.append(recorder.take(conversation.id))
        live = engine.snapshot()
    decoded = [one for request in requests for one in request.passes if one.phase == Phase.DECODE]
    reads = tuple(read.seconds for one in decoded for read in one.reads)
    timing = Timing(
        layer_s=float(np.median([one.seconds - one.stall_s.sum() for one in decoded])) / model.layers,
        read_s=float(np.mean(reads)),
        lanes=2,
        reads_s=reads,
        recorded_passes=True,
    )
    outcome = simulate(model, requests, live.memory.slots, timing, partial(make_policy, policy), prefill=True)
    there, here = live.experts.decode, outcome.decode
    stalls = [1e3 * one.stall_s / len(decoded) for one in (there, here)]
    print(f"{policy}: live {there.hit_rate:.3f}, simulated {here.hit_rate:.3f}; waiting {stalls} ms a token")
    assert here.selections == there.selections
    assert here.hit_rate == pytest.approx(there.hit_rate, abs=0.02)
    assert here.covered_rate == pytest.approx(there.covered_rate, abs=0.02)


def test_what_is_warm_is_there_from_the_beginning() -> None:
    """As far as there are slots; reading it is no part of any request."""
    model = synthetic_model(layers=3, experts=8, top_k=2)
    (request,) = synthetic_requests(model, requests=1, prompt=1, tokens=1)
    needed = [layer * 8 + int(expert) for layer, row in enumerate(request.passes[1].chosen[:, 0]) for expert in row]

    def hits(warm: list[int]) -> Outcome:
        simulation = Simulation(model, 20, Timing(), partial(make_policy, "demand"))
        simulation.warm(warm)
        simulation.run([request], prefill=False)
        return simulation.outcome()

    cold, warm = hits([]), hits(needed)
    assert cold.decode.hit_rate == 0
    assert (warm.decode.hit_rate, warm.stall_s, warm.decode.bytes_demand) == (1, 0, 0)
    assert warm.decode_s == pytest.approx(3)
