"""Top-k and top-p that take less time: those that transformers keeps, among ties and near limits too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import GenerationConfig
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from offload.runtime.warpers import FewTopP, LeastOfTopK, take_over

IDS = torch.zeros(1, 1, dtype=torch.long)


def both(scores: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    before = scores.clone()
    results = FewTopP(top_p)(IDS, scores), TopPLogitsWarper(top_p)(IDS, scores)
    assert torch.equal(scores.nan_to_num(7), before.nan_to_num(7))
    return results


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    vocabulary=st.integers(1, 3000),
    top_k=st.integers(1, 3000),
    spread=st.sampled_from((0.0, 0.01, 1.0, 10.0, 1000.0)),
    top_p=st.floats(0.0, 0.9999),
)
def test_it_keeps_what_transformers_keeps(
    seed: int, vocabulary: int, top_k: int, spread: float, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(1, vocabulary, generator=generator)
    ours, theirs = both(TopKLogitsWarper(top_k)(IDS, scores), top_p)
    assert torch.equal(ours, theirs)


@settings(max_examples=300, deadline=None)
@given(
    scores=arrays(np.float32, st.tuples(st.just(1), st.integers(1, 40)), elements=st.integers(-3, 3).map(float)),
    ruled_out=st.sets(st.integers(0, 39)),
    top_p=st.sampled_from((0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)),
)
def test_among_ties(scores: np.ndarray, ruled_out: set[int], top_p: float) -> None:
    scores[0, [token for token in ruled_out if token < scores.shape[1] - 1]] = -np.inf
    ours, theirs = both(torch.from_numpy(scores), top_p)
    assert torch.equal(ours, theirs)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    vocabulary=st.integers(1, 3000),
    top_k=st.integers(1, 3000),
    spread=st.sampled_from((0.0, 0.01, 1.0, 1000.0)),
    whole=st.booleans(),
    odd=st.sampled_from(((), (float("inf"),), (-float("inf"), -float("inf")), (float("nan"),))),
)
def test_top_k_keeps_what_transformers_keeps(
    seed: int, vocabulary: int, top_k: int, spread: float, whole: bool, odd: tuple[float, ...]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(1, vocabulary, generator=generator)
    scores = scores.round() if whole else scores  # so that many are alike
    for place, number in enumerate(odd[:vocabulary]):
        scores[0, place] = number
    before = scores.clone()
    ours, theirs = LeastOfTopK(top_k)(IDS, scores), TopKLogitsWarper(top_k)(IDS, scores)
    assert torch.equal(scores.nan_to_num(7), before.nan_to_num(7))
    assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
def test_numbers_that_are_none_are_left_to_transformers(bad: float) -> None:
    scores = torch.full((1, 8), bad)
    ours, theirs = both(scores, 0.5)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def test_most_tokens_need_no_sorting_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_by_transformers = []
    original = TopPLogitsWarper.__call__

    def noticed(self: TopPLogitsWarper, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        sorted_by_transformers.append(scores)
        return original(self, ids, scores)

    monkeypatch.setattr(TopPLogitsWarper, "__call__", noticed)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        scores = TopKLogitsWarper(50)(IDS, 2 * torch.randn(1, 5000, generator=generator))
        FewTopP(0.9)(IDS, scores)
    assert len(sorted_by_transformers) < 20


def test_a_configuration_is_taken_over_as_generate_reads_it() -> None:
    config = GenerationConfig(do_sample=True, temperature=0.7, top_k=20, top_p=0.8, min_p=0.05)
    kinds = [type(processor) for processor in take_over(config)]
    assert kinds == [TemperatureLogitsWarper, LeastOfTopK, FewTopP]
    assert (config.temperature, config.top_k, config.top_p, config.min_p) == (1.0, 0, 1.0, 0.05)

    plain = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=0.8)
    assert [type(processor) for processor in take_over(plain)] == [FewTopP]
    for other in (
        GenerationConfig(do_sample=False, top_p=0.8),
        GenerationConfig(do_sample=True, top_k=20),
        GenerationConfig(do_sample=True, top_p=1.0),
    ):
        before = other.to_dict()
        assert take_over(other) == []
        assert other.to_dict() == before
