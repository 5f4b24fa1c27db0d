"""A quantised model gives the same logits at every budget, to the last bit, and nearly those of its original."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from offload import Engine, EngineConfig
from offload.errors import CorruptCheckpoint, ModelNotFound
from offload.models import read_spec
from offload.precision import QUANTISED, Precision
from offload.runtime import team
from offload.store.packed_format import pack_name
from offload.store.packed_writer import write_pack
from offload.store.safetensors_index import CheckpointIndex
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import assert_same, greedy, open_engine

PROMPTS = ([5], list(range(20, 57)), list(range(3, 300, 2)))


def quantised_checkpoint(folder: Path, *precisions: Precision, **options: object) -> Path:
    """A tiny model with packs in these precisions."""
    tiny_checkpoint(folder, experts=16, top_k=4, shared=64, **options)
    spec, index = read_spec(folder), CheckpointIndex.open(folder)
    for precision in precisions:
        write_pack(spec, index, folder / pack_name(precision), precision)
    return folder


@pytest.fixture(scope="module", params=["qwen2_moe", "qwen3_moe"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / request.param
    return quantised_checkpoint(
        folder, *QUANTISED, family=request.param, shards=2, tie_word_embeddings=request.param == "qwen3_moe"
    )


@pytest.mark.parametrize("kernels", ["reference", "fast"])
@pytest.mark.parametrize("precision", QUANTISED)
def test_the_budget_never_reaches_the_logits(tiny: Path, precision: Precision, kernels: str) -> None:
    with open_engine(tiny, 1.0, kernels, precision=precision) as engine:
        expected = [greedy(engine, prompt, 12) for prompt in PROMPTS]
        assert engine.snapshot().kernels == kernels
    budgets = ((0.0, "demand"), (0.25, "auto"), (0.5, "promoe"))
    for fraction, policy in budgets if kernels == "fast" else budgets[1:2]:
        with open_engine(tiny, fraction, kernels, precision=precision, policy=policy) as engine:
            for prompt, resident in zip(PROMPTS, expected, strict=True):
                assert_same(greedy(engine, prompt, 12), resident)


@pytest.mark.parametrize("precision", QUANTISED)
def test_the_number_of_threads_never_reaches_the_logits(
    tiny: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team, "SHARED_BYTES", 0)  # Tiny matrices are shared too, in many chunks.
    monkeypatch.setattr(team, "CHUNK_BYTES", 256)
    # Of one token: longer prompts go through torch, whose sums may depend on its threads.
    prompts = ([5], [7], [9])
    with open_engine(tiny, 1.0, "fast", precision=precision, threads=1) as engine:
        expected = [greedy(engine, prompt, 24) for prompt in prompts]
    for threads, fraction in ((2, 1.0), (2, 0.0), (3, 0.3)):
        with open_engine(tiny, fraction, "fast", precision=precision, threads=threads) as engine:
            for prompt, alone in zip(prompts, expected, strict=True):
                assert_same(greedy(engine, prompt, 24), alone)


@pytest.mark.parametrize("precision", QUANTISED)
def test_a_budget_change_in_mid_answer_never_reaches_the_logits(tiny: Path, precision: Precision) -> None:
    with open_engine(tiny, 1.0, "fast", precision=precision) as engine:
        resident = greedy(engine, PROMPTS[1], 24)
        engine.forget()
        seen: list[int] = []

        def change(token: int) -> None:
            seen.append(token)
            if len(seen) in (4, 9, 15):
                engine.set_budget(experts_fraction={4: 0.0, 9: 0.6, 15: 0.2}[len(seen)])

        assert_same(greedy(engine, PROMPTS[1], 24, on_token=change), resident)


@pytest.mark.parametrize(("precision", "tolerance"), [("int8", 0.05), ("int4", 0.5)])
def test_logits_are_near_those_of_bfloat16(tiny: Path, precision: Precision, tolerance: float) -> None:
    with open_engine(tiny, 1.0, "reference") as engine:
        plain = greedy(engine, PROMPTS[1], 1).logits
    for kernels in ("reference", "fast"):
        with open_engine(tiny, 0.5, kernels, precision=precision) as engine:
            logits = greedy(engine, PROMPTS[1], 1).logits
            error = float((logits - plain).norm() / plain.norm())
            assert 1e-4 < error < tolerance


@pytest.mark.parametrize("precision", QUANTISED)
def test_fast_kernels_compute_what_modules_do(tiny: Path, precision: Precision) -> None:
    with open_engine(tiny, 0.5, "fast", precision=precision) as engine:
        fast = greedy(engine, PROMPTS[1], 2)
    with open_engine(tiny, 0.5, "reference", precision=precision) as engine:
        modules = greedy(engine, PROMPTS[1], 2)
    assert torch.equal(fast.logits[0], modules.logits[0])  # of the prompt, which takes the same way
    if fast.token_ids == modules.token_ids:
        assert float((fast.logits - modules.logits)[1].norm() / fast.logits[1].norm()) < 0.05


def test_one_expert_or_dense_weight_more_wrong_is_noticed(tmp_path: Path) -> None:
    folder = quantised_checkpoint(tmp_path / "model", "int8")
    with open_engine(folder, 1.0, "fast", precision="int8") as engine:
        right = greedy(engine, PROMPTS[1], 4)
    path = folder / pack_name("int8")
    with path.open("r+b") as file:
        file.seek(-4096, 2)  # the last norm, in the order of names
        file.write(b"\xc0\x3f" * 64)
    with open_engine(folder, 1.0, "fast", precision="int8") as engine:
        assert not torch.equal(greedy(engine, PROMPTS[1], 4).logits, right.logits)


@pytest.mark.parametrize("precision", QUANTISED)
def test_less_memory_is_planned(tiny: Path, precision: Precision) -> None:
    plans = {}
    for kept in ("bf16", precision):
        with open_engine(tiny, 0.5, "fast", precision=kept) as engine:
            memory = engine.snapshot().memory
            plans[kept] = (memory.dense_bytes, memory.slot_bytes)
    share = {"int8": 0.6, "int4": 0.4}[precision]
    for plain, quantised in zip(plans["bf16"], plans[precision], strict=True):
        assert quantised < share * plain


def test_what_is_not_packed_cannot_be_run(tmp_path: Path) -> None:
    folder = quantised_checkpoint(tmp_path / "model", "int8")
    with pytest.raises(ModelNotFound, match="model is not packed as int4") as caught:
        Engine(EngineConfig(model=folder, precision="int4"))
    assert caught.value.hint == "pack it: finemoe pack --bits 4 model"
    (folder / pack_name("int8")).rename(folder / pack_name("int4"))
    with pytest.raises(Exception, match="keeps its weights as int8 and not as int4"):
        Engine(EngineConfig(model=folder, precision="int4"))
    (folder / pack_name("int4")).write_bytes(b"FINEMOE")
    with pytest.raises(CorruptCheckpoint, match="is truncated"):
        Engine(EngineConfig(model=folder, precision="int4"))


def test_layers_without_experts_run_too(tmp_path: Path) -> None:
    folder = quantised_checkpoint(tmp_path / "model", "int8", dense_layers=(1,), family="qwen3_moe")
    logits = []
    for fraction in (1.0, 0.1):
        with open_engine(folder, fraction, "auto", precision="int8") as engine:
            assert engine.snapshot().kernels == "reference"
            logits.append(greedy(engine, PROMPTS[1], 4).logits)
    assert torch.equal(*logits)
