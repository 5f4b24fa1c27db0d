"""Who is told of forward passes: the policy, and whoever else observes.

The decode kernels tell the watch themselves. For passes through transformers' modules, hooks on each router keep
what it saw, and the experts module passes it on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offload.policy import Policy, Rates
from offload.runtime.experts import ArenaExperts
from offload.telemetry.counters import Counters, Phase
from offload.telemetry.routing import ForwardPass, Observer, PassOutcome, Routing
from offload.transfer.fetch import ExpertFetcher

RATES_OVER = 16
"""Tokens that the average time of a layer goes over."""


class Watch:
    """Tells the policy and all observers of every forward pass, and keeps `Rates.layer_s`.

    Attributes:
        request: Number of the running request; the engine sets it.
        looks_ahead: Whether the policy wants to decide behind every router of the running pass.
    """

    def __init__(self, policy: Policy, fetcher: ExpertFetcher, counters: Counters, rates: Rates) -> None:
        self.request = 0
        self.looks_ahead = False
        self._policy = policy
        self._observers: list[Observer] = []
        self._fetcher = fetcher
        self._counters = counters
        self._rates = rates
        self._layers = counters.tally.shape[2]
        self._per_layer = len(counters.uses) // self._layers
        self._first = np.arange(self._layers)[:, None] * self._per_layer
        self._began_ns = 0
        self._stall_before: NDArray[np.int64] = np.zeros(self._layers, np.int64)
        self._residual: torch.Tensor | None = None
        self._logits: torch.Tensor
        self._chosen: list[NDArray[np.int32]] = []

    @property
    def policy(self) -> Policy:
        """Who decides."""
        return self._policy

    def set_policy(self, policy: Policy) -> None:
        """Between forward passes: another policy decides from now on."""
        self._policy = policy
        self._fetcher.policy = policy

    def add(self, observer: Observer) -> None:
        """Between forward passes: tell `observer` too."""
        self._observers.append(observer)

    def remove(self, observer: Observer) -> None:
        """Between forward passes: tell `observer` no more."""
        self._observers.remove(observer)

    @property
    def _wants_residual(self) -> bool:
        return self._policy.wants_residual or any(observer.wants_residual for observer in self._observers)

    def begin(self, token_ids: Sequence[int], position: int, embedding: NDArray[np.float32]) -> None:
        """A forward pass begins. embedding: [H] float32, the mean of the tokens' input embeddings."""
        fetcher = self._fetcher
        self._began_ns = time.perf_counter_ns()
        self._stall_before = self._counters.stall_ns[fetcher.phase].copy()
        forward = ForwardPass(fetcher.phase, self.request, token_ids, position, embedding)
        self._policy.begin_pass(forward)
        for observer in self._observers:
            observer.begin_pass(forward)
        self.looks_ahead = self._policy.looks_ahead

    def routed(self, routing: Routing) -> None:
        """A layer's router has chosen."""
        self._policy.routed(routing)
        for observer in self._observers:
            observer.routed(routing)

    def end(self, chosen: NDArray[np.int32] | None = None) -> None:
        """The forward pass is over. chosen: [L, K] int32 for a decoded token; None if routers were hooked."""
        self._residual = None  # As large as a prompt.
        self._policy.end_pass()
        fetcher, ended = self._fetcher, time.perf_counter_ns()
        stall = self._counters.stall_ns[fetcher.phase] - self._stall_before
        if fetcher.phase == Phase.DECODE:
            layer_s = (ended - self._began_ns - int(stall.sum())) / 1e9 / self._layers
            # The first token may be an outlier; from it the average would take long to come down.
            self._rates.layer_s += (min(layer_s, 4 * self._rates.layer_s) - self._rates.layer_s) / RATES_OVER
        if self._observers:
            kinds = None
            if fetcher.phase == Phase.DECODE:
                picked = np.stack(self._chosen) if chosen is None else chosen
                kinds = fetcher.kind_of[picked + self._first]
            outcome = PassOutcome(self._began_ns, ended, stall, kinds, tuple(fetcher.reads))
            for observer in self._observers:
                observer.end_pass(outcome)

    def begin_torch(self, model: Any, input_ids: torch.Tensor, position: int) -> None:
        """A forward pass through transformers' modules begins. input_ids: [1, T]."""
        self._chosen.clear()
        embedded = model.get_input_embeddings()(input_ids[0])
        self.begin(input_ids[0].tolist(), position, embedded.float().mean(dim=0).cpu().numpy())

    def attach(self, model: Any) -> None:
        """Put hooks on the routers of a model whose experts modules are `ArenaExperts`."""
        for layer, router in routers(model):
            layer.post_attention_layernorm.register_forward_pre_hook(self._keep_residual)
            router.register_forward_hook(self._keep_router)
        for module in model.modules():
            if isinstance(module, ArenaExperts):
                module.told = self._tell_torch

    def _keep_residual(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self._residual = inputs[0] if self._wants_residual else None

    def _keep_router(self, module: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        self._logits = output[0]

    def _tell_torch(self, layer: int, chosen: torch.Tensor) -> None:
        """The experts module of `layer` was called, with chosen: [T, K]."""
        logits = self._logits.reshape(chosen.shape[0], -1).float()
        probabilities = torch.softmax(logits, dim=-1).cpu().numpy()
        picked = chosen.to(torch.int32).cpu().numpy()
        # Not every family's router gives them in the order of their likelihood.
        order = np.argsort(-np.take_along_axis(probabilities, picked, axis=1), axis=1, kind="stable")
        picked = np.take_along_axis(picked, order, axis=1)
        self._chosen.append(picked[0])
        residual = self._residual
        self.routed(
            Routing(
                layer=layer,
                probabilities=probabilities,
                chosen=picked,
                residual=None if residual is None else residual[0].float().cpu().numpy(),
                shared=None,
            )
        )


def routers(model: Any) -> Iterator[tuple[Any, Any]]:
    """Each decoder layer that has routed experts, with its router."""
    for layer in model.model.layers:
        for block in layer.modules():
            if any(isinstance(child, ArenaExperts) for child in block.children()):
                yield layer, block.gate if hasattr(block, "gate") else block.router
