"""Driving the engine in tests, keeping every step's logits."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from transformers.utils import import_utils

from offload import Engine, EngineConfig, Sampling
from offload.precision import Precision
from tests.support.reference import Continuation

# An engine collects garbage when it opens and when it closes; what is imported by now never becomes any.
gc.freeze()


def _names(module: import_utils._LazyModule) -> list[str]:
    listed = list(ModuleType.__dir__(module))
    return listed + sorted(set(module.__all__) - set(listed))


# transformers lists its modules' names whenever a model with replaced classes is built, each module in time
# quadratic in their number: a third of a second a model. These are the same names.
import_utils._LazyModule.__dir__ = _names


def open_engine(
    folder: Path,
    fraction: float,
    kernels: str,
    context: int = 1024,
    policy: str = "auto",
    precision: Precision = "bf16",
    threads: int | None = None,
) -> Engine:
    """An engine on the CPU with a share of the experts resident."""
    return Engine(
        EngineConfig(
            model=folder,
            experts_fraction=fraction,
            kernels=kernels,
            device="cpu",
            context=context,
            lanes=2,
            policy=policy,
            precision=precision,
            threads=threads,
        )
    )


def greedy(
    engine: Engine,
    token_ids: Sequence[int],
    new_tokens: int,
    on_token: Callable[[int], None] | None = None,
) -> Continuation:
    """Continue `token_ids`; what the engine had in its cache stays."""
    logits: list[torch.Tensor] = []
    done = engine.generate_ids(
        token_ids, Sampling(max_new_tokens=new_tokens, temperature=0), on_token=on_token, on_logits=logits.append
    )
    return Continuation(done.token_ids, torch.stack(logits).float())


def assert_same(ours: Continuation, theirs: Continuation) -> None:
    """Equal tokens, and logits equal to the last bit."""
    assert ours.token_ids == theirs.token_ids
    assert torch.equal(ours.logits, theirs.logits)
