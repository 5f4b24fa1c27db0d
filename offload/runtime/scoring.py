"""How likely a text is to a model: one forward pass over it, as over a prompt, and every position's logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from offload.errors import ContextOverflow
from offload.memory.budget import PREFILL_CHUNK
from offload.runtime.loaded import LoadedModel
from offload.telemetry.counters import Phase

HEAD_ROWS = 32
"""Positions whose logits are in memory at once: no more than the pass before them had for its experts."""


def score(loaded: LoadedModel, token_ids: Sequence[int], first: int) -> float:
    """Negative log likelihood, in nats, of ``token_ids[first:]`` together, each given all that come before it.

    It goes through transformers' modules in one piece, into an empty cache, which is empty again afterwards.

    Args:
        token_ids: At most `PREFILL_CHUNK`, and no more than the cache has room for.
        first: 1 at least.

    Raises:
        ContextOverflow: There are more, or fewer than two.
        ExpertReadError: An expert could not be read.
    """
    most = min(PREFILL_CHUNK, loaded.cache.context)
    if not 1 <= first < len(token_ids) <= most:
        raise ContextOverflow(
            f"{len(token_ids)} tokens cannot be scored from number {first} on", f"2 to {most} can"
        )
    model, cache, watch = loaded.model, loaded.cache, loaded.watch
    loaded.fetcher.phase = Phase.PREFILL
    loaded.apply_changes(most)  # However short the text is, its logits take as much.
    cache.truncate(0)
    loaded.fetcher.begin_forward()
    watch.request += 1
    ids = torch.tensor([list(token_ids)], device=model.device)
    head, total = model.get_output_embeddings(), 0.0
    try:
        with torch.inference_mode():
            watch.begin_torch(model, ids, 0)
            hidden = model.get_decoder()(
                input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True
            ).last_hidden_state[0]
            watch.end()
            for begin in range(first - 1, len(token_ids) - 1, HEAD_ROWS):
                end = min(begin + HEAD_ROWS, len(token_ids) - 1)
                logits = head(hidden[begin:end]).float()  # [R, V]
                wanted = logits.gather(1, ids[0, begin + 1 : end + 1, None])[:, 0]
                total += float((logits.logsumexp(dim=1).double() - wanted.double()).sum())
    finally:
        loaded.fetcher.settle()
        cache.truncate(0)
    return total
