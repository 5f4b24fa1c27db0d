"""What plain transformers computes, to compare with: the whole model in memory, its own experts, its own cache."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache


@dataclass(frozen=True)
class Continuation:
    """Tokens and the logits they were chosen from, [N, V] float32."""

    token_ids: tuple[int, ...]
    logits: torch.Tensor


class PlainTransformers:
    """transformers' own model, loaded its own way."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        experts = [name for name, _ in self.model.named_parameters() if "experts.gate_up_proj" in name]
        assert experts, "this is not the plain model"

    def greedy(self, token_ids: Sequence[int], new_tokens: int) -> Continuation:
        """`generate`, greedy."""
        ids = torch.tensor([list(token_ids)])
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                output_logits=True,
                return_dict_in_generate=True,
            )
        return Continuation(tuple(out.sequences[0, ids.shape[1] :].tolist()), torch.cat(out.logits).float())

    def sampled(self, token_ids: Sequence[int], new_tokens: int, seed: int, **settings: float) -> tuple[int, ...]:
        """`generate`, drawing with a seed; what the settings do not say is the model's and transformers' own."""
        ids = torch.tensor([list(token_ids)])
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=True, **settings
            )
        return tuple(out[0, ids.shape[1] :].tolist())

    def replay(self, pieces: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Logits after each piece, [V] float32, all pieces in one cache, one forward pass a piece."""
        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            return [
                self.model(torch.tensor([list(piece)]), past_key_values=cache).logits[0, -1].float()
                for piece in pieces
            ]

    def losses(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Negative log likelihood in nats of each token but the first, given those before it: [N - 1] float64."""
        ids = torch.tensor(list(token_ids))
        with torch.inference_mode():
            logits = self.model(ids[None]).logits[0].double()
        return -logits.log_softmax(1)[:-1].gather(1, ids[1:, None])[:, 0]


def plain_losses(folder: Path, windows: Sequence[Sequence[int]]) -> list[list[float]]:
    """`PlainTransformers.losses` of each window, in a process in which nothing else has ever used torch.

    For comparing with an engine that has a process of its own: what tests in this one did before does not matter.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_losses, folder, windows).result()


def _losses(folder: Path, windows: Sequence[Sequence[int]]) -> list[list[float]]:
    plain = PlainTransformers(folder)
    return [plain.losses(window).tolist() for window in windows]
