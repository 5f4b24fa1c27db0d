"""From token to token where kernels compute them: transformers' sampling loop with less between two tokens.

`generate` prepares everything (configuration, processors, criteria) and hands over to this instead of its own loop,
which it has a parameter for. That one keeps positions and a mask for the model's modules, and asks every processor
for its parameters, for each token. It is little work, but code that no cache holds any more, as the weights have
gone through all of them since the last token. Tokens are the same, those that are drawn too. Only who stops it
while a token is handed over stops it a token earlier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria


def token_loop(
    step: Callable[[int], torch.Tensor], take: Callable[[int], None], stopped: Callable[[], bool]
) -> Any:
    """What `generate` takes as `custom_generate`, for one answer.

    Args:
        step: Gives the logits behind a token, [1, V] float32.
        take: Is given each token as it is chosen.
        stopped: Whether the answer is to end.
    """

    def loop(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        ends, others = _read(stopping_criteria)
        length, longest = input_ids.shape[1], stopping_criteria.max_length
        ids = torch.cat([input_ids, input_ids.new_zeros((1, longest - length))], dim=1)
        prompt = model._prefill(input_ids, generation_config, model_kwargs)
        logits = prompt.logits[:, -1].to(copy=True, dtype=torch.float32)
        del prompt
        while True:
            scores = logits
            for processor in logits_processor:
                scores = processor(ids[:, :length], scores)
            token = _draw(scores) if generation_config.do_sample else int(scores[0].numpy().argmax())
            ids[0, length] = token
            length += 1
            take(token)
            so_far = ids[:, :length]
            if token in ends or length >= longest or stopped() or any(bool(one(so_far, None)) for one in others):
                return so_far
            logits = step(token)

    return loop


def _draw(scores: torch.Tensor) -> int:
    """scores: [1, V] float32. Drawn as transformers draws, from torch's generator."""
    return int(torch.multinomial(torch.nn.functional.softmax(scores, dim=-1), num_samples=1))


def _read(criteria: StoppingCriteriaList) -> tuple[set[int], list[Any]]:
    """The tokens that end an answer, and the criteria that are neither that nor its length."""
    ends: set[int] = set()
    for one in criteria:
        if isinstance(one, EosTokenCriteria):
            ends.update(one.eos_token_id.reshape(-1).tolist())
    return ends, [one for one in criteria if not isinstance(one, EosTokenCriteria | MaxLengthCriteria)]
