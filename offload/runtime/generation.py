"""One answer: transformers' `generate` driven over the engine's model, cache and stop flag."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer

from offload.config import Sampling
from offload.memory.budget import PREFILL_CHUNK
from offload.runtime.kv import KVCache
from offload.runtime.token_loop import token_loop
from offload.runtime.warpers import take_over

_FROM_TOKEN_TO_TOKEN = (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)


@dataclass(slots=True)
class TokenTimes:
    """When things happened, in seconds of the monotonic clock."""

    started: float = field(default_factory=time.perf_counter)
    tokens: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return self.tokens[0] - self.started if self.tokens else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token: (end to end - TTFT) / (N - 1); None for fewer than two tokens."""
        if len(self.tokens) < 2:
            return None
        return (self.tokens[-1] - self.tokens[0]) / (len(self.tokens) - 1)

    @property
    def e2e_s(self) -> float:
        """Time from the request to the last token."""
        return (self.tokens[-1] if self.tokens else time.perf_counter()) - self.started


class TokenSink(BaseStreamer):  # type: ignore[misc]
    """Takes each token as `generate` chooses it."""

    def __init__(self, on_token: Callable[[int], None]) -> None:
        self.times = TokenTimes()
        self.token_ids: list[int] = []
        self._on_token = on_token
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate`: first with the prompt, then with each new token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.take(int(value.reshape(-1)[-1]))

    def take(self, token: int) -> None:
        """A token was chosen."""
        self.times.tokens.append(time.perf_counter())
        self.token_ids.append(token)
        self._on_token(token)

    def end(self) -> None:
        """Called by `generate` when it is done."""


class _StopFlag(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, is_set: Callable[[], bool]) -> None:
        self._is_set = is_set

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._is_set(), dtype=torch.bool, device=input_ids.device)


def generation_config(model: Any, sampling: Sampling, new_tokens: int, prompt_tokens: int) -> GenerationConfig:
    """The model's own generation configuration with the user's choices over it."""
    config = GenerationConfig.from_dict(model.generation_config.to_dict())
    config.max_new_tokens = new_tokens
    config.max_length = None
    config.cache_implementation = None
    config.num_beams = 1
    config.num_return_sequences = 1
    if sampling.temperature is not None:
        config.do_sample = sampling.temperature > 0
        config.temperature = float(sampling.temperature) if sampling.temperature > 0 else None
    for name in ("top_k", "top_p", "min_p"):
        value = getattr(sampling, name)
        if value is not None:
            setattr(config, name, value)
            # Who asks for top-p wants sampling, whatever the model's default is; temperature 0 stays greedy.
            config.do_sample = sampling.temperature != 0
    if not config.do_sample:
        config.temperature = config.top_k = config.top_p = config.min_p = None
    if sampling.repetition_penalty is not None:
        config.repetition_penalty = sampling.repetition_penalty
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    if sampling.ignore_eos:
        config.eos_token_id = []  # What is None would be taken from the model's own configuration again.
    if prompt_tokens > PREFILL_CHUNK:
        config.prefill_chunk_size = PREFILL_CHUNK
    return config


def generate(
    model: Any,
    cache: KVCache,
    token_ids: list[int],
    config: GenerationConfig,
    sampling: Sampling,
    sink: TokenSink,
    stopped: Callable[[], bool],
    step: Callable[[int], torch.Tensor] | None = None,
) -> None:
    """Generate after `token_ids`, of which the first `cache.length` are in the cache already.

    Args:
        config: Of this answer alone; it is changed.
        step: Gives the logits behind one token, [1, V] float32, where it is not the model's modules that do.
    """
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    ids = torch.tensor([token_ids], device=model.device)
    processors = take_over(config)
    loop: dict[str, Any] = {"streamer": sink, "stopping_criteria": StoppingCriteriaList([_StopFlag(stopped)])}
    if step is not None and config.get_generation_mode() in _FROM_TOKEN_TO_TOKEN:
        loop = {"custom_generate": token_loop(step, sink.take, stopped)}
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            past_key_values=cache,
            logits_processor=processors,
            **loop,
        )
