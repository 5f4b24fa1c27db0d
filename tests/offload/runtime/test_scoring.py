"""How likely a text is, against plain transformers."""

from __future__ import annotations

import pytest
import torch

from offload import Sampling
from offload.errors import ContextOverflow
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import open_engine
from tests.support.reference import PlainTransformers

CONTEXT = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def text() -> list[int]:
    return torch.randint(3, 60, (CONTEXT,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_it_is_what_transformers_says_at_every_budget(model, text, kernels):
    wanted = PlainTransformers(model).losses(text)
    found = set()
    for fraction in (0.0, 0.5, 1.0):
        with open_engine(model, fraction, kernels, context=CONTEXT) as engine:
            for first in (1, 40, CONTEXT - 1):
                nll = engine.score(text, first)
                assert nll == pytest.approx(float(wanted[first - 1 :].sum()), rel=1e-5)
                found.add((first, nll))
    assert len(found) == 3  # To the last bit.


def test_answers_are_the_same_before_and_after(model, text):
    with open_engine(model, 0.5, "reference", context=CONTEXT) as engine:
        said = [engine.generate_ids(text[:9], Sampling(max_new_tokens=6, temperature=0)) for _ in range(2)]
        engine.score(text)
        again = engine.generate_ids(text[:9], Sampling(max_new_tokens=6, temperature=0))
    assert again.token_ids == said[0].token_ids == said[1].token_ids
    assert (said[1].reused_tokens, again.reused_tokens) == (8, 0)


@pytest.mark.parametrize(("length", "first"), [(1, 1), (CONTEXT + 1, 1), (5, 0), (5, 5), (0, 1)])
def test_what_cannot_be_scored(model, length, first):
    with open_engine(model, 0.5, "reference", context=CONTEXT) as engine, pytest.raises(ContextOverflow):
        engine.score([3] * length, first)
