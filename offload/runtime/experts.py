"""The experts module: put in the place of transformers' own, it computes with weights that lie in the arena.

It has no parameters, so a model built with it never asks for the experts' weights. The arithmetic and its order
are those of transformers' default experts implementation (`grouped_mm`): the rows of the batch sorted by expert,
one matrix product an expert, routing weights applied, each token's rows summed in router order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from offload.runtime.views import ExpertViews
from offload.transfer.fetch import ExpertFetcher


class ArenaExperts(nn.Module):
    """One layer's routed experts. Built by transformers with the model's configuration, then attached.

    Attributes:
        told: Called with the layer and the router's choice, [T, K] int64, before anything is read.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.act_fn = ACT2FN[config.hidden_act]
        self._layer = -1
        self._first = -1
        self.told: Callable[[int, torch.Tensor], None] = _nobody
        self._fetcher: ExpertFetcher
        self._views: ExpertViews

    def attach(self, layer: int, num_experts: int, fetcher: ExpertFetcher, views: ExpertViews) -> None:
        """Tell the module which layer it is (counting layers with experts) and where its weights come from."""
        self._layer = layer
        self._first = layer * num_experts
        self._fetcher = fetcher
        self._views = views

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The weighted sum of each token's experts.

        Args:
            hidden_states: [T, H] bfloat16.
            top_k_index: [T, K] int64, distinct in each row.
            top_k_weights: [T, K], same type as hidden_states, or float32.

        Returns:
            [T, H], same type and device as hidden_states.

        Raises:
            ExpertReadError: An expert could not be read.
        """
        self.told(self._layer, top_k_index)
        tokens, top_k = top_k_index.shape
        home = hidden_states.device
        device = self._views.device
        expert_of_row, order = torch.sort(top_k_index.reshape(-1))
        rows = hidden_states[order // top_k].to(device)  # [T*K, H], sorted by expert
        experts, counts = torch.unique_consecutive(expert_of_row, return_counts=True)
        begin = 0
        spans = {}
        for expert, count in zip(experts.tolist(), counts.tolist(), strict=True):
            spans[self._first + expert] = slice(begin, begin + count)
            begin += count
        outputs = torch.empty_like(rows)
        for expert in self._fetcher.each(self._layer, list(spans)):
            span = spans[expert]
            gate_up, down = self._views.of(expert)
            gate, up = torch.mm(rows[span], gate_up.t()).chunk(2, dim=-1)
            torch.mm(self.act_fn(gate) * up, down.t(), out=outputs[span])
        del rows
        outputs = outputs[torch.argsort(order)]
        weighted = outputs * top_k_weights.reshape(-1, 1).to(device)  # float32 where the family's router has it
        return weighted.view(tokens, top_k, -1).sum(dim=1).to(device=home, dtype=hidden_states.dtype)


def _nobody(layer: int, chosen: torch.Tensor) -> None:
    """Until somebody wants to be told."""
