"""Working memory that only prompts need belongs to the experts between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from offload import Engine
from offload.telemetry.routing import ForwardPass, Observer, PassOutcome, Routing
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import assert_same, greedy, open_engine

CONTEXT, TOKENS = 256, 6
PROMPTS = [[(7 * n + length) % 50 + 3 for n in range(length)] for length in (30, 200, 1, 90, 30)]


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
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", experts=32, top_k=2)


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
            engine.set_budget(budget_bytes=engine.snapshot().memory.budget_bytes)
            memory = engine.snapshot().memory
            slots = Slots(engine)
            engine.observe(slots)
            for prompt, answer in zip(PROMPTS, answers, strict=True):
                engine.forget()
                assert_same(greedy(engine, prompt, TOKENS), answer)
            runs.append((slots.seen, engine.snapshot().experts if policy == "demand" else None))
    seen = dict(slots.seen)
    assert set(slots.seen) == set(seen.items())  # A matter of the length alone.
    assert (
        memory.slots - memory.lent_bytes // memory.slot_bytes - 1 <= 4 < seen[200] < seen[90] < seen[30] < seen[1]
    )
    assert seen[1] == memory.slots < 32 * 3
    if policy == "demand":  # And so is what is counted.
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
        engine.set_budget(budget_bytes=engine.snapshot().memory.budget_bytes)
        slots = Slots(engine)
        engine.observe(slots)
        engine.score(PROMPTS[1])
        greedy(engine, PROMPTS[0], TOKENS)
    assert slots.seen[0][1] < slots.seen[-1][1]
