"""The engine as a library: requests, failures, stopping, reuse of keys and values, counters."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from pathlib import Path

import pytest

from offload import Completion, Engine, EngineConfig, Sampling
from offload.errors import (
    BudgetTooLarge,
    BudgetTooSmall,
    ConfigError,
    ContextOverflow,
    CorruptCheckpoint,
    EngineBroken,
    ExpertReadError,
    ModelError,
    UnsupportedModel,
)
from offload.models import read_spec
from offload.telemetry.snapshot import MemoryUse
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import assert_same, greedy, open_engine

PROMPT = list(range(20, 50))
GREEDY = Sampling(max_new_tokens=8, temperature=0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", experts=16, top_k=4)


def test_every_selection_is_counted_once(tiny: Path) -> None:
    spec = read_spec(tiny)
    with open_engine(tiny, 0.2, "fast", policy="demand") as engine:
        done = engine.generate_ids(PROMPT, GREEDY)
        layers = engine.snapshot().decode_layers
    for counts in (done.experts.prefill, done.experts.decode):
        assert counts.selections == counts.resident + counts.prefetched + counts.late + counts.missed
        # Direct I/O reads whole blocks, so up to one slot an expert.
        assert counts.missed * spec.expert_bytes <= counts.bytes_demand
        assert counts.bytes_demand <= counts.missed * done.memory.slot_bytes
        assert counts.hit_rate == (counts.resident + counts.prefetched) / counts.selections
    steps = done.completion_tokens - 1
    assert done.experts.decode.selections == steps * spec.num_layers * spec.top_k
    assert sum(layers.resident) == done.experts.decode.resident
    assert sum(layers.missed) == done.experts.decode.missed > 0


@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_both_kernels_count_alike(tiny: Path, kernels: str) -> None:
    # One layer: there the two cannot part, whatever the last bits say.
    with open_engine(tiny, 0.2, kernels, policy="demand") as engine:
        done = engine.generate_ids([5], GREEDY)
    assert done.experts.prefill.selections + done.experts.decode.selections == 8 * 3 * 4
    assert done.experts.decode.evictions <= done.experts.decode.missed


def test_a_completion_is_plain_json(tiny: Path) -> None:
    with open_engine(tiny, 0.5, "reference") as engine:
        done = engine.generate_ids(PROMPT, GREEDY)
    values = json.loads(json.dumps(done.to_dict()))
    assert set(values) == {field.name for field in dataclasses.fields(Completion)}
    assert set(values["memory"]) == {field.name for field in dataclasses.fields(MemoryUse)}
    assert values["completion_tokens"] == len(values["token_ids"]) == 8
    assert values["finish_reason"] == "length"
    assert values["tpot_s"] == pytest.approx((values["e2e_s"] - values["ttft_s"]) / 7)


@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_stop_comes_within_one_token(tiny: Path, kernels: str) -> None:
    with open_engine(tiny, 0.5, kernels) as engine:
        seen: list[int] = []

        def stop_at_three(token: int) -> None:
            seen.append(token)
            if len(seen) == 3:
                threading.Thread(target=engine.stop).start()
                while not engine._stop.is_set():
                    pass

        done = engine.generate_ids(PROMPT, Sampling(max_new_tokens=50, temperature=0), on_token=stop_at_three)
        assert done.finish_reason == "stopped"
        assert len(done.token_ids) <= 4
        again = engine.generate_ids([*PROMPT, *done.token_ids], GREEDY)
        assert again.finish_reason != "stopped"
        assert again.reused_tokens >= len(PROMPT)


def test_a_failed_read_fails_the_request_and_nothing_else(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", experts=16, top_k=4)
    file = folder / "model.safetensors"
    with open_engine(folder, 1.0, "fast") as engine:
        expected = greedy(engine, PROMPT, 8)
    with open_engine(folder, 0.0, "fast") as engine:
        size = file.stat().st_size
        tail = file.read_bytes()[size // 3 :]
        os.truncate(file, size // 3)
        with pytest.raises(ExpertReadError, match=r"model\.safetensors"):
            greedy(engine, PROMPT, 8)
        engine._loaded.residency.check()
        assert not engine._loaded.residency.pins.any()
        with file.open("ab") as repaired:
            repaired.write(tail)
        assert_same(greedy(engine, PROMPT, 8), expected)


def test_the_head_is_given_one_token_as_a_tensor_of_its_own(tiny: Path) -> None:
    """With the strides of the whole prompt torch would copy the head's weight, which no plan has room for."""
    seen = []
    with open_engine(tiny, 0.5, "reference") as engine:
        head = engine._loaded.model.lm_head
        head.register_forward_pre_hook(lambda module, inputs: seen.append((inputs[0].shape, inputs[0].stride())))
        engine.generate_ids(PROMPT, Sampling(max_new_tokens=1, temperature=0))
        width = head.in_features
    assert seen == [((1, 1, width), (width, width, 1))]


def test_the_context_is_a_limit(tiny: Path) -> None:
    with open_engine(tiny, 0.5, "fast", context=40) as engine:
        done = engine.generate_ids(PROMPT, Sampling(max_new_tokens=100, temperature=0))
        assert done.prompt_tokens + done.completion_tokens == 40
        assert done.finish_reason == "length"
        with pytest.raises(ContextOverflow, match="41 tokens"):
            engine.generate_ids(list(range(20, 61)), GREEDY)
        with pytest.raises(ContextOverflow, match="empty"):
            engine.generate_ids([], GREEDY)


def test_keys_and_values_are_reused_by_the_longest_common_prefix(tiny: Path) -> None:
    with open_engine(tiny, 0.5, "fast") as engine:
        first = engine.generate_ids(PROMPT, GREEDY)
        assert first.reused_tokens == 0
        assert engine.generate_ids(PROMPT, GREEDY).reused_tokens == len(PROMPT) - 1
        other = engine.generate_ids([*PROMPT[:10], 7, 7, 7], GREEDY)
        assert other.reused_tokens == 10
        engine.forget()
        assert engine.generate_ids(PROMPT, GREEDY).reused_tokens == 0


def test_sampling_is_repeatable_by_seed(tiny: Path) -> None:
    hot = {"max_new_tokens": 12, "temperature": 1.5, "top_k": 50}
    with open_engine(tiny, 0.5, "fast") as engine:
        runs = []
        for seed in (1, 1, 2):
            engine.forget()
            runs.append(engine.generate_ids(PROMPT, Sampling(seed=seed, **hot)).token_ids)
    assert runs[0] == runs[1] != runs[2]


def test_a_budget_in_bytes_is_spent_and_not_exceeded(tiny: Path) -> None:
    with open_engine(tiny, 0.0, "reference", context=64) as engine:
        smallest = engine.snapshot().memory
        assert smallest.slots == 8
        engine.set_budget(budget_bytes=smallest.budget_bytes + 3 * smallest.slot_bytes)
        memory = engine.snapshot().memory
        assert memory.slots == 11 + memory.lendable_bytes // memory.slot_bytes
        with pytest.raises(BudgetTooSmall, match="too small") as refused:
            engine.set_budget(budget_bytes=smallest.budget_bytes - 1)
        assert refused.value.smallest_bytes == smallest.budget_bytes
        with pytest.raises(BudgetTooLarge):
            engine.set_budget(budget_bytes=1 << 60)
        assert engine.snapshot().memory.slots == memory.slots


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_a_hopeless_budget_is_refused_before_loading(tiny: Path, budget: int) -> None:
    with pytest.raises(BudgetTooSmall, match="too small for tiny") as refused:
        Engine(EngineConfig(model=tiny, budget_bytes=budget, kernels="reference"))
    assert "MiB" in refused.value.hint


def test_a_closed_engine_says_so(tiny: Path) -> None:
    engine = open_engine(tiny, 0.5, "reference")
    engine.close()
    engine.close()
    with pytest.raises(EngineBroken):
        engine.generate_ids(PROMPT, GREEDY)


def test_text_needs_a_tokenizer(tiny: Path) -> None:
    with open_engine(tiny, 0.5, "reference") as engine, pytest.raises(ModelError, match="no tokenizer"):
        engine.chat([{"role": "user", "content": "Hello"}])


def test_missing_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 999}))
    with pytest.raises(CorruptCheckpoint, match="embed_tokens"):
        open_engine(folder, 0.5, "reference")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(UnsupportedModel, match="llama"):
        open_engine(folder, 0.5, "reference")


def test_a_pickle_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="pickle"):
        open_engine(folder, 0.5, "reference")


def test_layers_without_experts_run_with_reference_kernels_only(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model", layers=4, dense_layers=(1,))
    with open_engine(folder, 0.5, "auto") as engine:
        assert engine.snapshot().kernels == "reference"
        assert len(engine.generate_ids(PROMPT, GREEDY).token_ids) == 8
    with pytest.raises(ConfigError, match="not all alike"):
        open_engine(folder, 0.5, "fast")


def test_the_demo_answers(demo_model: Path) -> None:
    pieces: list[str] = []
    with Engine(EngineConfig(model=demo_model, experts_fraction=0.125, context=512)) as engine:
        done = engine.chat(
            [{"role": "user", "content": "What is the capital of Japan?"}],
            Sampling(max_new_tokens=24, temperature=0),
            on_text=pieces.append,
        )
    assert "Tokyo" in done.text
    assert "".join(pieces) == done.text
    assert done.finish_reason == "stop"
    assert done.memory.peak_bytes > 0
