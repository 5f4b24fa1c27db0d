"""Offloading changes time, never text: logits bit for bit, at every budget, with either kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from offload import Sampling
from offload.models import read_spec
from offload.runtime import team
from tests.support.checkpoints import swap_experts, tiny_checkpoint
from tests.support.engines import assert_same, greedy, open_engine
from tests.support.prompts import PROMPTS
from tests.support.reference import Continuation, PlainTransformers

TINY_PROMPTS = ([5], [7, 9], list(range(20, 57)), list(range(3, 300, 2)))


@pytest.fixture(scope="module", params=["qwen2_moe", "qwen3_moe"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / request.param
    return tiny_checkpoint(folder, family=request.param, experts=16, top_k=4, shards=2)


@pytest.mark.parametrize("layout", ["per-expert", "fused", "scattered"])
@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_reference_is_transformers_bit_for_bit(tmp_path: Path, family: str, layout: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model", family=family, layout=layout, shards=3, experts=20)
    plain = PlainTransformers(folder)
    expected = [plain.greedy(prompt, 6) for prompt in TINY_PROMPTS]
    for fraction in (0.1, 0.5, 1.0):
        with open_engine(folder, fraction, "reference") as engine:
            for prompt, theirs in zip(TINY_PROMPTS, expected, strict=True):
                engine.forget()
                assert_same(greedy(engine, prompt, 6), theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"top_p": 0.9},
        {"temperature": 1.5, "top_p": 0.8, "top_k": 20},
        {"temperature": 0.3, "top_p": 0.95, "top_k": 300},
        {"top_p": 0.6, "min_p": 0.02},
        {"top_p": 0.7, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_tokens_are_drawn_as_transformers_draws_them(tiny: Path, settings: dict[str, float]) -> None:
    plain = PlainTransformers(tiny)
    with open_engine(tiny, 0.5, "reference") as engine:
        for seed, prompt in enumerate(TINY_PROMPTS):
            engine.forget()
            done = engine.generate_ids(prompt, Sampling(max_new_tokens=24, seed=seed, **settings))
            assert done.token_ids == plain.sampled(prompt, 24, seed, **settings)


@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_the_budget_never_reaches_the_logits(tiny: Path, kernels: str) -> None:
    with open_engine(tiny, 1.0, kernels) as engine:
        expected = [greedy(engine, prompt, 12) for prompt in TINY_PROMPTS]
    for fraction in (0.0, 0.25, 0.5):
        with open_engine(tiny, fraction, kernels) as engine:
            for prompt, resident in zip(TINY_PROMPTS, expected, strict=True):
                assert_same(greedy(engine, prompt, 12), resident)


def test_the_number_of_threads_never_reaches_the_logits(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "SHARED_BYTES", 0)  # Tiny matrices are shared too, in many chunks.
    monkeypatch.setattr(team, "CHUNK_BYTES", 256)
    # Of one token: longer prompts go through torch, whose sums may depend on its threads.
    prompts = ([5], [7], [9])
    with open_engine(tiny, 1.0, "fast", threads=1) as engine:
        expected = [greedy(engine, prompt, 24) for prompt in prompts]
    for threads, fraction in ((2, 1.0), (2, 0.0), (3, 0.3)):
        with open_engine(tiny, fraction, "fast", threads=threads) as engine:
            for prompt, alone in zip(prompts, expected, strict=True):
                assert_same(greedy(engine, prompt, 24), alone)


@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_a_budget_change_in_mid_answer_never_reaches_the_logits(tiny: Path, kernels: str) -> None:
    with open_engine(tiny, 1.0, kernels) as engine:
        resident = greedy(engine, TINY_PROMPTS[2], 24)
        engine.forget()
        seen: list[int] = []

        def change(token: int) -> None:
            seen.append(token)
            if len(seen) in (4, 9, 15):
                engine.set_budget(experts_fraction={4: 0.0, 9: 0.6, 15: 0.2}[len(seen)])

        assert_same(greedy(engine, TINY_PROMPTS[2], 24, on_token=change), resident)
        assert engine.snapshot().memory.slots == round(0.2 * read_spec(tiny).total_experts)


@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_turns_with_the_same_split_give_the_same(tiny: Path, kernels: str) -> None:
    conversations = []
    for fraction in (1.0, 0.1):
        with open_engine(tiny, fraction, kernels) as engine:
            history = list(range(40, 60))
            turns = []
            for question in ([11, 12, 13], [200, 201], [99]):
                turns.append(greedy(engine, history, 5))
                history = history + list(turns[-1].token_ids) + question
            conversations.append(turns)
    for ours, theirs in zip(*conversations, strict=True):
        assert_same(ours, theirs)


def test_reused_keys_and_values_are_those_of_transformers(tiny: Path) -> None:
    first, question = list(range(40, 60)), [11, 12, 13]
    with open_engine(tiny, 0.25, "reference") as engine:
        one = greedy(engine, first, 5)
        two = greedy(engine, [*first, *one.token_ids, *question], 3)
    # The last token of an answer has not been through the model when the answer ends.
    pieces = [first, *([t] for t in one.token_ids[:-1]), [one.token_ids[-1], *question]]
    pieces += [[t] for t in two.token_ids[:-1]]
    expected = PlainTransformers(tiny).replay(pieces)
    assert torch.equal(torch.cat((one.logits, two.logits)), torch.stack(expected))


def test_fast_is_nearer_to_float32_than_transformers_in_bfloat16(tiny: Path) -> None:
    with open_engine(tiny, 1.0, "fast") as engine:
        ours = greedy(engine, TINY_PROMPTS[2], 16)
    pieces = [TINY_PROMPTS[2], *([t] for t in ours.token_ids[:-1])]
    truth = torch.stack(PlainTransformers(tiny, torch.float32).replay(pieces))
    theirs = torch.stack(PlainTransformers(tiny).replay(pieces))
    decoded = slice(1, None)  # the first logits are the prompt's, which transformers' modules compute
    assert _rms(ours.logits[decoded] - truth[decoded]) <= _rms(theirs[decoded] - truth[decoded])


@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_a_swapped_expert_is_noticed(tmp_path: Path, kernels: str) -> None:
    # A wrong expert hardly shows in a text; the comparisons above must see it.
    folder = tiny_checkpoint(tmp_path / "model")
    with open_engine(folder, 1.0, kernels) as engine:
        right = greedy(engine, TINY_PROMPTS[2], 4)
    swap_experts(folder, layer=1, one=0, other=5)
    with open_engine(folder, 1.0, kernels) as engine:
        wrong = greedy(engine, TINY_PROMPTS[2], 4)
    assert not torch.equal(right.logits, wrong.logits)


@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_the_demo_at_a_twentieth(demo_model: Path, demo_prompts: list[list[int]], kernels: str) -> None:
    # One token, code, no Latin letters, the longest: the rest is for the test of every budget.
    prompts = [demo_prompts[number] for number in (0, 3, 6, 19)]
    assert len(prompts[-1]) > 500
    _compare_budgets(demo_model, prompts, kernels, fractions=(0.05,), new_tokens=4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_the_demo_at_every_budget(demo_model: Path, demo_prompts: list[list[int]], kernels: str) -> None:
    _compare_budgets(demo_model, demo_prompts, kernels, fractions=(0.05, 0.125, 0.25, 0.5), new_tokens=24)


def test_the_demo_is_transformers_bit_for_bit(demo_model: Path, demo_prompts: list[list[int]]) -> None:
    prompts = [demo_prompts[0], demo_prompts[4], demo_prompts[18]]
    with open_engine(demo_model, 0.125, "reference") as engine:
        ours = []
        for prompt in prompts:
            engine.forget()
            ours.append(greedy(engine, prompt, 4))
    plain = PlainTransformers(demo_model)
    for prompt, mine in zip(prompts, ours, strict=True):
        assert_same(mine, plain.greedy(prompt, 4))


@pytest.fixture(scope="module")
def demo_prompts(demo_model: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    lengths = [len(prompt) for prompt in prompts]
    assert min(lengths) == 1
    assert max(lengths) > 550
    return prompts


def _compare_budgets(
    folder: Path, prompts: list[list[int]], kernels: str, fractions: tuple[float, ...], new_tokens: int
) -> None:
    expected: list[Continuation] = []
    for fraction in (1.0, *fractions):
        with open_engine(folder, fraction, kernels) as engine:
            for number, prompt in enumerate(prompts):
                engine.forget()
                ours = greedy(engine, prompt, new_tokens)
                if fraction == 1.0:
                    expected.append(ours)
                else:
                    assert_same(ours, expected[number])


def _rms(difference: torch.Tensor) -> float:
    return float(difference.pow(2).mean().sqrt())
