"""Top-k and top-p as transformers has them, keeping the very same tokens, in less time.

Of a token that is drawn, this was the dearest part beside drawing itself. For top-k torch makes pairs of all scores
and their places, 2.4 MB for 151,936 tokens, in memory that comes fresh from the system each time; the score that k
tokens reach is enough. For top-p transformers sorts the whole vocabulary, though nearly all of it is ruled out by
then: 0.9 ms for 49,152 tokens and 3 for 151,936. Its other processors stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

_FEW = 1024
"""Tokens up to which float32 sums of their probabilities are right to 1e-4: transformers' are."""
_NEAR = 1e-4
_DEFAULT_TOP_K = 50
"""What transformers takes where neither the model nor the user says anything."""


class LeastOfTopK(TopKLogitsWarper):  # type: ignore[misc]
    """Keeps what transformers' `TopKLogitsWarper` keeps: all that reach the score of the k-th."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [B, V] float32; returned with minus infinity for what is ruled out."""
        if len(scores) != 1 or scores.device.type != "cpu":
            result: torch.Tensor = super().__call__(input_ids, scores)
            return result
        place = scores.shape[1] - min(self.top_k, scores.shape[1])
        least = float(np.partition(scores[0].numpy(), place)[place])
        return scores.masked_fill(scores < least, self.filter_value)


class FewTopP(TopPLogitsWarper):  # type: ignore[misc]
    """Keeps what transformers' `TopPLogitsWarper` keeps, and leaves to it what is not clear without its sums."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [B, V] float32, with minus infinity for tokens that are ruled out; returned with more of them."""
        dropped = self._dropped(scores) if len(scores) == 1 and scores.device.type == "cpu" else None
        if dropped is None:
            result: torch.Tensor = super().__call__(input_ids, scores)
            return result
        processed = scores.clone()
        processed[0, torch.from_numpy(dropped)] = self.filter_value
        return processed

    def _dropped(self, scores: torch.Tensor) -> np.ndarray | None:
        """Numbers of the tokens to rule out; None where rounding or ties decide, or many are left."""
        row = scores[0].numpy()
        if not np.isfinite(row.max()):
            return None
        left = np.flatnonzero(row > -np.inf)
        if len(left) > _FEW:
            return None
        left = left[np.argsort(row[left])]
        rising = row[left].astype(np.float64)
        shares = np.exp(rising - rising[-1]).cumsum()
        sums = shares / shares[-1]
        limit = 1.0 - self.top_p
        if (np.abs(sums[:-1] - limit) < _NEAR).any():
            return None
        count = int(np.count_nonzero(sums[:-1] <= limit))  # The likeliest stays, whatever it is.
        if 0 < count < len(left) and rising[count - 1] == rising[count]:
            return None
        return left[:count]


def take_over(config: GenerationConfig) -> list[Any]:
    """The processors up to top-p that `generate` would make of a configuration, which no longer asks for them.

    None where it has no use for them. Those that come behind top-p stay in the configuration.
    """
    if not config.do_sample or config.top_p is None or config.top_p >= 1.0 or config.top_h is not None:
        return []
    top_k = _DEFAULT_TOP_K if config.top_k is None else config.top_k
    processors: list[Any] = []
    if config.temperature is not None and config.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(config.temperature))
    if top_k != 0:
        processors.append(LeastOfTopK(top_k))
    processors.append(FewTopP(config.top_p))
    # What is None would be taken from the model's own configuration again.
    config.temperature, config.top_k, config.top_p = 1.0, 0, 1.0
    return processors
