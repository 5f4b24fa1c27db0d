"""The short loop chooses the tokens that transformers' own loop chooses, and ends where it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import GenerationMixin

from offload import Engine, Sampling
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import open_engine

PROMPT = list(range(20, 50))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", experts=16, top_k=4)
    with open_engine(folder, 0.5, "fast", policy="demand") as opened:
        yield opened


def both(
    engine: Engine, sampling: Sampling, monkeypatch: pytest.MonkeyPatch, prompt: list[int] = PROMPT
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the short loop, and of transformers' with the same kernels."""

    def not_ours(*args: object, **kwargs: object) -> None:
        raise AssertionError("this is transformers' own loop")

    assert engine._loaded.step is not None
    with monkeypatch.context() as patch:
        patch.setattr(GenerationMixin, "_sample", not_ours)
        engine.forget()
        ours = engine.generate_ids(prompt, sampling).token_ids
    with monkeypatch.context() as patch:
        patch.setattr(engine._loaded, "step", None)
        engine.forget()
        theirs = engine.generate_ids(prompt, sampling).token_ids
    return ours, theirs


SETTINGS = {
    "greedy": {"temperature": 0},
    "greedy, penalised": {"temperature": 0, "repetition_penalty": 1.3},
    "drawn": {"temperature": 1.0, "top_k": 500, "top_p": 1.0},
    "hot": {"temperature": 1.7, "top_k": 50, "top_p": 0.95},
    "as chats do": {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
    "min-p": {"temperature": 1.2, "top_k": 500, "min_p": 0.05},
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_are_the_same(engine: Engine, monkeypatch: pytest.MonkeyPatch, name: str, seed: int) -> None:
    sampling = Sampling(max_new_tokens=40, seed=seed, ignore_eos=True, **SETTINGS[name])
    ours, theirs = both(engine, sampling, monkeypatch)
    assert ours == theirs and len(ours) == 40


@pytest.mark.parametrize("prompt", [[7], PROMPT, list(range(3, 60)) * 20], ids=["one", "short", "pieces"])
def test_after_prompts_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: list[int]) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=2048)
    with open_engine(folder, 0.5, "fast", policy="demand", context=1200) as engine:
        ours, theirs = both(engine, Sampling(max_new_tokens=6, temperature=0, ignore_eos=True), monkeypatch, prompt)
    assert ours == theirs and len(ours) == 6


def test_it_ends_with_the_token_that_ends_an_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(max_new_tokens=40, temperature=1.5, top_k=500, seed=3)
    config = engine._loaded.model.generation_config
    whole = engine.generate_ids(PROMPT, sampling).token_ids
    monkeypatch.setattr(config, "eos_token_id", [whole[7], whole[11]])
    ours, theirs = both(engine, sampling, monkeypatch)
    assert ours == theirs == whole[: whole.index(whole[7]) + 1]


def test_an_end_that_is_to_be_passed_over_is(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(max_new_tokens=40, temperature=1.5, top_k=500, seed=3, ignore_eos=True)
    whole = engine.generate_ids(PROMPT, sampling).token_ids
    monkeypatch.setattr(engine._loaded.model.generation_config, "eos_token_id", whole[7])
    ours, theirs = both(engine, sampling, monkeypatch)
    assert ours == theirs == whole and len(whole) == 40


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("no_repeat_ngram_size", 2),
        ("min_new_tokens", 30),
        ("forced_eos_token_id", 5),
        ("begin_suppress_tokens", [3, 4, 5]),
        ("suppress_tokens", list(range(100, 300))),
    ],
)
def test_what_a_model_asks_of_its_tokens_counts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, field: str, value: object
) -> None:
    config = engine._loaded.model.generation_config
    monkeypatch.setattr(config, field, value)
    monkeypatch.setattr(config, "eos_token_id", [9, 10, 11])
    for seed in range(3):
        ours, theirs = both(engine, Sampling(max_new_tokens=40, temperature=1.5, top_k=500, seed=seed), monkeypatch)
        assert ours == theirs


def test_it_ends_with_whatever_else_a_model_asks_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._loaded.model.generation_config, "max_time", 1e-9)
    ours, theirs = both(engine, Sampling(max_new_tokens=40, temperature=0, ignore_eos=True), monkeypatch)
    assert ours == theirs and len(ours) == 1
