"""Policies in a running engine: changed in mid-answer, told of everything, remembered by the next one."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from offload import Engine, EngineConfig
from offload.config import POLICIES
from offload.errors import BudgetTooSmall, ConfigError
from offload.policy.knowledge import AUTO_TABLES, PAST_FILE, PROBES_FILE, Shape, save_probes
from offload.policy.probe_fitting import fit_probes
from offload.telemetry.process import settled_resident_bytes
from offload.trace.recorder import Recorder, trace_model
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import assert_same, greedy
from tests.support.reference import Continuation

LAYERS, EXPERTS, TOP_K, HIDDEN = 4, 16, 4, 64
TOTAL = LAYERS * EXPERTS
PROMPTS = ([7], list(range(20, 57)), list(range(3, 120, 2)))
TOKENS = 12
MIB = 1 << 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return tiny_checkpoint(folder, layers=LAYERS, experts=EXPERTS, top_k=TOP_K, hidden=HIDDEN)


def opened(tiny: Path, kernels: str = "fast", fraction: float | None = 0.4, **more: object) -> Engine:
    values: dict[str, object] = {"kernels": kernels, "device": "cpu", "context": 256, "lanes": 2}
    return Engine(EngineConfig(model=tiny, experts_fraction=fraction, **(values | more)))


@pytest.fixture(scope="module", params=["fast", "reference"])
def expected(request: pytest.FixtureRequest, tiny: Path) -> tuple[str, list[Continuation]]:
    """The kernels, and what they answer with everything resident."""
    with opened(tiny, request.param, 1.0, policy="demand") as engine:
        return request.param, [greedy(engine, prompt, TOKENS) for prompt in PROMPTS]


def test_changing_all_the_while_changes_no_logit(tiny: Path, expected: tuple[str, list[Continuation]]) -> None:
    """With every token another policy, and with every second one another budget, both taken at once."""
    kernels, answers = expected
    with opened(tiny, kernels, 0.3) as engine:
        step = 0
        seen = set()

        def change(token: int) -> None:
            nonlocal step
            step += 1
            engine.set_policy(POLICIES[step % len(POLICIES)])
            if step % 2:
                engine.set_budget(experts_fraction=(0.0, 0.2, 0.9)[step % 3])
            seen.add(engine.snapshot().policy)

        for _ in range(2):
            for prompt, answer in zip(PROMPTS, answers, strict=True):
                assert_same(greedy(engine, prompt, TOKENS, on_token=change), answer)
        assert seen >= set(POLICIES)


class Log:
    """An observer that keeps what it is told."""

    def __init__(self, wants_residual: bool) -> None:
        self.wants_residual = wants_residual
        self.told: list[str] = []
        self.chosen: list[np.ndarray] = []
        self.kinds: list[np.ndarray | None] = []
        self.residuals = 0

    def begin_pass(self, forward) -> None:
        self.told.append(
            f"begin {forward.phase.name} {forward.request} {forward.position} {len(forward.token_ids)}"
        )
        assert forward.embedding.shape == (HIDDEN,) and forward.embedding.any()

    def routed(self, routing) -> None:
        self.told.append(f"layer {routing.layer}")
        tokens = len(routing.chosen)
        assert routing.probabilities.shape == (tokens, EXPERTS)
        assert np.allclose(routing.probabilities.sum(axis=1), 1, atol=1e-4)
        by_probability = np.take_along_axis(routing.probabilities, routing.chosen.astype(int), axis=1)
        assert (np.diff(by_probability, axis=1) <= 1e-6).all()  # likeliest first
        assert np.allclose(by_probability, -np.sort(-routing.probabilities, axis=1)[:, :TOP_K])
        if routing.residual is not None:
            assert routing.residual.shape == (tokens, HIDDEN)
            self.residuals += 1
        self.chosen.append(routing.chosen.copy())

    def end_pass(self, outcome) -> None:
        self.told.append("end")
        self.kinds.append(outcome.kinds)
        assert outcome.began_ns <= outcome.ended_ns
        assert outcome.stall_ns.shape == (LAYERS,) and (outcome.stall_ns >= 0).all()


@pytest.mark.parametrize("kernels", ["fast", "reference"])
@pytest.mark.parametrize("policy", ["demand", "auto"])
@pytest.mark.parametrize("prompt", [[7], [5, 6, 7, 8, 9]], ids=["one token", "five tokens"])
def test_observers_are_told_everything_in_order(tiny: Path, kernels: str, policy: str, prompt: list[int]) -> None:
    log = Log(wants_residual=True)
    with opened(tiny, kernels, 0.3, policy=policy) as engine:
        engine.observe(log)
        done = greedy(engine, prompt, 4)
        counts = engine.snapshot().experts
        engine.unobserve(log)
        greedy(engine, [9], 2)
    decodes = len(done.token_ids) - 1
    layers = [f"layer {layer}" for layer in range(LAYERS)]
    told = [f"begin PREFILL 1 0 {len(prompt)}", *layers, "end"]
    for number in range(decodes):
        told += [f"begin DECODE 1 {len(prompt) + number} 1", *layers, "end"]
    assert log.told == told
    assert log.residuals == len(log.chosen)
    assert log.kinds[0] is None
    tally = np.zeros(4, int)
    for kinds in log.kinds[1:]:
        assert kinds is not None and kinds.shape == (LAYERS, TOP_K)
        tally += np.bincount(kinds.ravel(), minlength=4)
    decode = counts.decode
    assert tally.tolist() == [decode.resident, decode.prefetched, decode.late, decode.missed]


def test_both_kernels_tell_the_same(tiny: Path) -> None:
    logs = []
    for kernels in ("fast", "reference"):
        with opened(tiny, kernels, 0.5, policy="demand") as engine:
            logs.append(Log(wants_residual=False))
            engine.observe(logs[-1])
            greedy(engine, [5, 6, 7], 2)
    fast, reference = logs
    assert fast.told == reference.told
    assert all(np.array_equal(a, b) for a, b in zip(fast.chosen[:LAYERS], reference.chosen[:LAYERS], strict=True))
    assert reference.residuals == 0  # nobody asked for them


def test_the_next_engine_begins_where_the_last_one_ended(tiny: Path, tmp_path: Path) -> None:
    hits = []
    for _ in range(2):
        with opened(tiny, "fast", 0.5, policy="auto", knowledge=tmp_path) as engine:
            settle(engine)
            greedy(engine, PROMPTS[0], 2)
            prefill = engine.snapshot().experts.prefill
            hits.append(prefill.resident + prefill.prefetched)
            for prompt in PROMPTS[:1] * 4:
                engine.forget()
                greedy(engine, prompt, TOKENS)
        (kept,) = tmp_path.glob(f"*/{PAST_FILE}")
    assert hits[0] == 0
    assert hits[1] >= LAYERS * TOP_K // 2
    assert kept.is_file()


def settle(engine: Engine) -> None:
    """Let what is read ahead arrive."""
    loaded = engine._loaded
    while loaded.around.link.in_flight:
        loaded.fetcher.collect()


def fit(tiny: Path, root: Path) -> Shape:
    """Keep probes in `root` that were fitted from this model's own answers."""
    with opened(tiny, "fast", 1.0, policy="demand") as engine:
        model = trace_model(engine)
        recorder = Recorder(model, residuals=True)
        engine.observe(recorder)
        requests = []
        for number in range(2, 8):
            engine.forget()
            greedy(engine, [number], 60)
            requests.append(recorder.take(f"a/{number}"))
    shape = Shape(model.fingerprint, model.name, LAYERS, EXPERTS, HIDDEN)
    save_probes(root / model.fingerprint[:16] / PROBES_FILE, shape, fit_probes(model, requests))
    return shape


def test_fitted_probes_are_used_and_charged(
    tiny: Path, tmp_path: Path, expected: tuple[str, list[Continuation]]
) -> None:
    kernels, answers = expected
    # This process holds what the tests before this one have left in it.
    budget = settled_resident_bytes() + 400 * MIB
    with opened(tiny, kernels, None, budget_bytes=budget, policy="auto", knowledge=tmp_path) as engine:
        before = engine.snapshot().memory
    assert before.policy_bytes == AUTO_TABLES * 4 * TOTAL
    fit(tiny, tmp_path)
    with opened(tiny, kernels, 0.4, policy="auto", knowledge=tmp_path) as engine:
        assert engine.surroundings.knowledge.probes is not None
        assert engine.snapshot().memory.policy_bytes > before.policy_bytes
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            assert_same(greedy(engine, prompt, TOKENS), answer)
        assert engine.snapshot().experts.decode.bytes_prefetch > 0


def test_what_a_policy_takes_is_slots_that_it_does_not_have(tiny: Path) -> None:
    with opened(tiny, "fast", 0.5, policy="demand", context=64) as engine:
        fixed = engine.snapshot().memory
        engine.set_budget(budget_bytes=fixed.budget_bytes)
        room = fixed.arena_bytes + fixed.lendable_bytes
        for policy in ("moe-infinity", "auto", "demand"):
            engine.set_policy(policy)
            memory = engine.snapshot().memory
            assert (memory.policy_bytes > 0) == (policy != "demand")
            assert memory.budget_bytes == fixed.budget_bytes
            assert memory.slots == (room - memory.policy_bytes) // memory.slot_bytes
            assert engine._loaded.residency.capacity == memory.slots


def test_a_share_of_the_experts_stays_a_share(tiny: Path) -> None:
    """At the smallest share there is nothing to take a policy's bytes from."""
    with opened(tiny, "fast", 0.0, policy="demand") as engine:
        before = engine.snapshot().memory
        engine.set_policy("moe-infinity")
        after = engine.snapshot().memory
        assert after.slots == before.slots == 2 * TOP_K
        assert after.budget_bytes == before.budget_bytes + after.policy_bytes
        engine.set_budget(budget_bytes=after.budget_bytes - 1 + MIB // 4)
        engine.set_policy("demand")
        engine.set_budget(budget_bytes=before.budget_bytes)
        with pytest.raises(BudgetTooSmall):
            engine.set_policy("moe-infinity")
        assert engine.snapshot().policy == "demand"
        greedy(engine, [7], 2)


def test_a_policy_that_cannot_be_made_is_refused_where_it_is_asked_for(tiny: Path) -> None:
    with opened(tiny, "fast", policy="demand", policy_options={"decay": 7.0}) as engine:
        with pytest.raises(ConfigError):
            engine.set_policy("lfu")
        with pytest.raises(ConfigError):
            engine.set_policy("fastest")
        greedy(engine, [7], 2)
        assert engine.snapshot().policy == "demand"


def test_a_budget_and_a_policy_asked_for_at_once_both_come(tiny: Path) -> None:
    with opened(tiny, "fast", 0.5, policy="demand") as engine:
        loaded = engine._loaded
        for order in (0, 1):
            engine.set_policy("demand")
            engine.set_budget(experts_fraction=0.5)
            changes = [lambda: loaded.propose_policy("auto"), lambda: loaded.propose_budget(None, 0.8)]
            for change in changes if order else reversed(changes):
                change()
            loaded.apply_changes()
            memory = engine.snapshot().memory
            assert memory.policy_bytes == AUTO_TABLES * 4 * TOTAL
            assert memory.slots == round(0.8 * TOTAL)


def test_warming_fills_free_slots_and_no_others(tiny: Path) -> None:
    with opened(tiny, "fast", 0.5, policy="demand") as engine:
        slots = engine.snapshot().memory.slots
        engine.warm(range(5))
        settle(engine)
        state = engine.view().state
        assert np.flatnonzero(state).tolist() == [0, 1, 2, 3, 4]
        engine.warm(range(TOTAL))
        settle(engine)
        # So many slots stay free for a layer's choice and for its reads.
        assert np.flatnonzero(state).tolist() == list(range(slots - 2 * TOP_K))
        greedy(engine, [7], 4)
        there = state.copy()
        engine.warm(np.flatnonzero(state == 0).tolist())
        settle(engine)
        assert (state[there == 2] == 2).all()
        assert engine.snapshot().experts.decode.evictions + engine.snapshot().experts.prefill.evictions > 0


@pytest.mark.parametrize("experts", [[-1], [TOTAL], [3, 1000]], ids=str)
def test_warming_experts_that_do_not_exist_is_refused(tiny: Path, experts: list[int]) -> None:
    with opened(tiny, "fast", 0.5, policy="demand") as engine:
        with pytest.raises(ConfigError):
            engine.warm(experts)
        settle(engine)
        assert not engine.view().state.any()


@pytest.mark.parametrize("trouble", ["another model's", "damaged", "not writable"])
def test_bad_knowledge_is_said_and_answered_without(
    tiny: Path, tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tiny, "fast", 0.4, policy="auto", knowledge=tmp_path / "a") as engine:
        answer = greedy(engine, PROMPTS[1], 4)
    (path,) = tmp_path.glob(f"a/*/{PAST_FILE}")
    root = path.parents[1]
    if trouble == "another model's":
        other = tiny_checkpoint(tmp_path / "other", layers=LAYERS, experts=EXPERTS, top_k=TOP_K, seed=5)
        with opened(other, "fast", 0.4, policy="auto", knowledge=tmp_path / "b") as engine:
            greedy(engine, PROMPTS[1], 4)
        (foreign,) = tmp_path.glob(f"b/*/{PAST_FILE}")
        path.write_bytes(foreign.read_bytes())
    elif trouble == "damaged":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        root = tmp_path / "file"
        root.write_bytes(b"")
    caplog.clear()
    with (
        caplog.at_level(logging.WARNING),
        opened(tiny, "fast", 0.4, policy="auto", knowledge=root) as engine,
    ):
        assert_same(greedy(engine, PROMPTS[1], 4), answer)
    says = {"another model's": "another model", "damaged": "is damaged", "not writable": "is not kept"}[trouble]
    assert sum(says in record.getMessage() for record in caplog.records) == 1
