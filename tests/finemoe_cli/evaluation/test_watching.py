"""What an engine's process sees of a request, against the engine's own account of it."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from finemoe_cli.evaluation.watching import RequestWatch, digest
from offload import Sampling
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import open_engine

TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.mark.parametrize("kernels", ["reference", "fast"])
def test_passes_and_layers_add_up_to_the_request(model, kernels):
    meter = count(100, 5)
    with open_engine(model, 0.5, kernels, policy="demand") as engine:
        watch = RequestWatch(engine, lambda: float(next(meter)))
        for request in range(2):
            watch.begin(digests=request == 0)
            done = engine.generate_ids(
                [1 + request, 2, 3], Sampling(max_new_tokens=TOKENS, temperature=0), on_logits=watch.passed
            )
            seen = watch.finish()
            assert len(seen["passes"]["missed"]) == done.completion_tokens - 1
            for name in ("resident", "prefetched", "late", "missed"):
                assert sum(seen["passes"][name]) == getattr(done.experts.decode, name)
                assert sum(seen["layers"]["decode"][name]) == getattr(done.experts.decode, name)
                assert sum(seen["layers"]["prefill"][name]) == getattr(done.experts.prefill, name)
            assert sum(seen["passes"]["stall_s"]) == pytest.approx(done.experts.decode.stall_s, abs=1e-4)
            assert seen["energy_j"] == 5
            assert len(seen.get("logits", [])) == (done.completion_tokens if request == 0 else 0)


def test_a_digest_is_of_every_bit():
    logits = torch.linspace(-1, 1, 1000)
    other = logits.clone()
    other[500] = torch.nextafter(other[500], torch.tensor(9.0))
    assert digest(logits) == digest(logits.clone()) != digest(other)
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))
    assert len(digest(logits.bfloat16())) == 16
