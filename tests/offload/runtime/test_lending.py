"""Working memory that only prompts need belongs to the experts between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from offload import Engine, EngineConfig, Sampling
from offload.models import read_spec
from offload.store.open_store import pack_in
from offload.store.packed_writer import write_pack
from offload.store.safetensors_index import CheckpointIndex
from offload.telemetry.routing import ForwardPass, Observer, PassOutcome, Routing
from offload.telemetry.snapshot import MemoryUse
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import assert_same, greedy, open_engine

CONTEXT, TOKENS = 128, 6
EXPERTS, TOP_K, LAYERS = 32, 2, 3
PROMPTS = [[(7 * n + length) % 50 + 3 for n in range(length)] for length in (30, 120, 1, 70, 30)]
SPARE = 36
"""Slots beyond the smallest arena: with a layer's experts and two for each of a token's, live runs count alike."""


class Slots(Observer):
    """Notes how many tokens each pass has, and how many slots there are meanwhile."""

    wants_residual = False

    def __init__(self, engine: Engine) -> None:
        self._residency = engine._loaded.residency
        self.seen: list[tuple[int, int]] = []

    def begin_pass(self, forward: ForwardPass) -> None:
        self._residency.check()
        self.seen.append((len(forward.token_ids), self._residency.capacity))

    def routed(self, routing: Routing) -> None:
        """Of no interest."""

    def end_pass(self, outcome: PassOutcome) -> None:
        assert self._residency.resident_count <= self._residency.capacity


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", experts=EXPERTS, top_k=TOP_K, shared=64)


def lend(engine: Engine) -> MemoryUse:
    """Give an engine with the smallest arena a budget in bytes; its memory then."""
    smallest = engine.snapshot().memory
    engine.set_budget(budget_bytes=smallest.budget_bytes + SPARE * smallest.slot_bytes)
    return engine.snapshot().memory


@pytest.mark.parametrize("policy", ["demand", "auto"])
@pytest.mark.parametrize("kernels", ["fast", "reference"])
def test_a_long_prompt_takes_slots_and_gives_them_back(tiny: Path, kernels: str, policy: str) -> None:
    with open_engine(tiny, 1.0, kernels, context=CONTEXT) as engine:
        answers = []
        for prompt in PROMPTS:
            engine.forget()
            answers.append(greedy(engine, prompt, TOKENS))
    runs = []
    for _ in range(2):
        with open_engine(tiny, 0.0, kernels, context=CONTEXT, policy=policy) as engine:
            memory = lend(engine)
            slots = Slots(engine)
            engine.observe(slots)
            for prompt, answer in zip(PROMPTS, answers, strict=True):
                engine.forget()
                assert_same(greedy(engine, prompt, TOKENS), answer)
            runs.append((slots.seen, engine.snapshot().experts if policy == "demand" else None))
    seen = dict(slots.seen)
    assert set(slots.seen) == set(seen.items())  # A matter of the length alone.
    assert 2 * TOP_K + SPARE == seen[120] < seen[70] < seen[30] < seen[1] == memory.slots < EXPERTS * LAYERS
    if policy == "demand":  # And with the slots all that is counted.
        counts = [(run[1].decode.missed, run[1].prefill.missed, run[1].decode.evictions) for run in runs]
        assert counts[0] == counts[1]


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_share_of_the_experts_has_its_slots_at_all_times(tiny: Path, fraction: float) -> None:
    with open_engine(tiny, fraction, "fast", context=CONTEXT) as engine:
        slots = Slots(engine)
        engine.observe(slots)
        greedy(engine, PROMPTS[1], TOKENS)
        memory = engine.snapshot().memory
    assert {capacity for _, capacity in slots.seen} == {memory.slots}
    assert memory.lent_bytes == 0 < memory.lendable_bytes


def test_scoring_makes_room_for_its_text(tiny: Path) -> None:
    with open_engine(tiny, 0.0, "fast", context=CONTEXT) as engine:
        memory = lend(engine)
        slots = Slots(engine)
        engine.observe(slots)
        for text in (PROMPTS[1], PROMPTS[0]):
            engine.score(text)
            assert engine._loaded.residency.capacity == memory.slots
    # A short one's logits take as much as those of a long one.
    assert {capacity for _, capacity in slots.seen} == {2 * TOP_K + SPARE}


def test_what_was_unpacked_is_let_go_of_before_its_room_is_lent(tiny: Path, tmp_path: Path) -> None:
    spec, index = read_spec(tiny), CheckpointIndex.open(tiny)
    write_pack(spec, index, pack_in(tmp_path, spec, index, "int8"), "int8")
    config = EngineConfig(
        model=tiny, experts_fraction=0.0, device="cpu", context=CONTEXT, precision="int8", packs_folder=tmp_path
    )
    with Engine(config) as engine:
        memory = lend(engine)
        assert memory.lent_bytes > 0
        views = engine._loaded._views
        for prompt in PROMPTS:
            engine.generate_ids(prompt, Sampling(max_new_tokens=2, temperature=0))
            assert views._unpacked is None and views._unpacker is not None
            assert views._unpacker._scratch.numel() == 0


def test_a_copy_that_fails_is_made_up_for(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt between two copies: nothing is lost, and no expert is taken for another."""
    with open_engine(tiny, 1.0, "fast", context=CONTEXT) as engine:
        expected = greedy(engine, PROMPTS[1], TOKENS)
    with open_engine(tiny, 0.0, "fast", context=CONTEXT) as engine:
        memory = lend(engine)
        greedy(engine, PROMPTS[0], 2 * TOKENS)
        tier, copied = engine._loaded._tier, 0
        move = tier.move

        def interrupted(source: int, target: int) -> None:
            nonlocal copied
            copied += 1
            if copied == 2:
                raise KeyboardInterrupt
            move(source, target)

        engine.forget()
        with monkeypatch.context() as patch:
            patch.setattr(tier, "move", interrupted)
            with pytest.raises(KeyboardInterrupt):
                greedy(engine, PROMPTS[1], TOKENS)
        assert copied == 2
        engine._loaded.residency.check()
        engine.forget()
        assert_same(greedy(engine, PROMPTS[1], TOKENS), expected)
        assert engine._loaded.residency.capacity == memory.slots
