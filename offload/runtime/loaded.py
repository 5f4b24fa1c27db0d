"""A loaded model with everything that was made for it: weights, cache, slots, lanes, counters."""

from __future__ import annotations

import functools
import gc
import importlib
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from offload.errors import FinemoeError
from offload.memory.budget import MemoryPlan, lendable_bytes, make_plan
from offload.memory.residency import Residency
from offload.models import ModelSpec
from offload.policy import Policy, Surroundings, check_policy, make_policy
from offload.policy.knowledge import Shape, load_knowledge, policy_bytes_of, save_learnt
from offload.precision import Precision
from offload.runtime.compile import compile_kernels
from offload.runtime.device import device_memory_bytes, peak_bytes
from offload.runtime.kv import KVCache
from offload.runtime.tier import Tier
from offload.runtime.views import ExpertViews
from offload.runtime.watch import Watch
from offload.store.base import ExpertStore
from offload.telemetry.counters import Counters
from offload.telemetry.log import logger
from offload.telemetry.process import resident_bytes
from offload.telemetry.snapshot import IoFacts, MemoryUse
from offload.transfer.fetch import ExpertFetcher
from offload.transfer.lanes import Lanes

if TYPE_CHECKING:
    from offload.runtime.decode import FastDecoder


class LoadedModel:
    """What `load_model` gives: the parts, wired together. All methods but `propose_...`, `memory_use` and
    `io_facts` belong to the thread that drives the model."""

    def __init__(
        self,
        spec: ModelSpec,
        device: torch.device,
        kernels: str,
        model: Any,
        cache: KVCache,
        store: ExpertStore,
        tier: Tier,
        residency: Residency,
        lanes: Lanes,
        around: Surroundings,
        fetcher: ExpertFetcher,
        counters: Counters,
        watch: Watch,
        plan: MemoryPlan,
        fraction: float | None,
        decoder: FastDecoder | None,
        shape: Shape,
        knowledge: Path | None,
        views: ExpertViews,
    ) -> None:
        self.spec = spec
        self.device = device
        self.kernels = kernels
        self.model = model
        self.cache = cache
        self.residency = residency
        self.around = around
        self.fetcher = fetcher
        self.counters = counters
        self.watch = watch
        self.plan = plan
        self._fraction = fraction  # the share of experts that was asked for, where the plan follows from one
        self._store = store
        self._tier = tier
        self._lanes = lanes
        self._decoder = decoder
        self._shape = shape
        self._knowledge = knowledge
        self._views = views
        self.step: Callable[[int], torch.Tensor] | None = None
        self._proposed: MemoryPlan | None = None
        self._proposed_policy: tuple[Policy, Surroundings] | None = None
        self._proposing = threading.Lock()
        self._slots_in_use = residency.capacity
        tier.use(self._slots_in_use)

    def route_forward(self, on_logits: Callable[[torch.Tensor], None]) -> None:
        """Put the engine's forward in the place of the model's, and make `step`, which takes one token past it.

        Args:
            on_logits: Called with the logits of every forward pass, [1, T, V].
        """
        from transformers.modeling_outputs import MoeCausalLMOutputWithPast

        reference = self.model.forward

        def step(token: int) -> torch.Tensor:
            assert self._decoder is not None
            self.apply_changes(1)
            self.fetcher.begin_forward()
            logits = self._decoder.step(token)
            on_logits(logits)
            return logits[0]

        @functools.wraps(reference)
        def forward(*args: Any, **kwargs: Any) -> Any:
            input_ids = kwargs["input_ids"]
            if self._decoder is not None and input_ids.shape == (1, 1):
                return MoeCausalLMOutputWithPast(logits=step(int(input_ids))[None], past_key_values=self.cache)
            self.apply_changes(input_ids.shape[1])
            self.fetcher.begin_forward()
            self.watch.begin_torch(self.model, input_ids, self.cache.length)
            output = reference(*args, **kwargs)
            self.watch.end()
            on_logits(output.logits)
            return output

        self.model.forward = forward
        self.step = None if self._decoder is None else step

    def propose_budget(self, budget_bytes: int | None, experts_fraction: float | None) -> None:
        """Work out the plan for another budget; it takes effect with the next `apply_changes`.

        Raises:
            BudgetTooSmall, BudgetTooLarge: The budget cannot be kept; nothing changes.
        """
        memory = device_memory_bytes(self.device)
        with self._proposing:
            now = self._proposed or self.plan
            self._proposed = make_plan(self.spec, now.fixed, now.slot_bytes, budget_bytes, experts_fraction, memory)
            self._fraction = experts_fraction

    def propose_policy(self, name: str) -> None:
        """Another policy decides from the next `apply_changes` on.

        A budget in bytes stays, and what the policy takes costs slots; a share of the experts stays a share. The
        policy is made here, where no token waits for it.

        Raises:
            ConfigError: There is no such policy, or it does not take the options that the engine was opened with.
            BudgetTooSmall, BudgetTooLarge: What it has learnt does not fit into the budget, or into the machine.
        """
        check_policy(name)
        knowledge = load_knowledge(self._knowledge, self._shape, name)
        if knowledge.note:
            logger.warning("%s", knowledge.note)
        taken = policy_bytes_of(self._shape, name, knowledge, self.around.options)
        grown = _load_kernels() if name == "auto" else 0
        if self.device.type != "cpu":
            taken = grown = 0
        around = replace(self.around, knowledge=knowledge)
        policy = make_policy(name, around)
        memory = device_memory_bytes(self.device)
        with self._proposing:
            now = self._proposed or self.plan
            fixed = replace(now.fixed, policy_bytes=taken, base_bytes=now.fixed.base_bytes + grown)
            budget = now.budget_bytes if self._fraction is None else None
            self._proposed = make_plan(self.spec, fixed, now.slot_bytes, budget, self._fraction, memory)
            self._proposed_policy = policy, around

    def apply_changes(self, tokens: int = 1) -> None:
        """Go over to the proposed policy and plan, if there are any, and have the slots that the next pass allows.

        Between forward passes only.

        Args:
            tokens: Of the next pass. A piece of a prompt needs working memory that slots have between prompts.
        """
        with self._proposing:
            plan, self._proposed = self._proposed, None
            policy, self._proposed_policy = self._proposed_policy, None
            if plan is not None:
                self.plan = plan  # at once: the next proposal builds on it
        if policy is not None:
            self.keep_learnt()
            decider, self.around = policy
            self.watch.set_policy(decider)
        slots = self.plan.slots if tokens == 1 else self._slots_beside(tokens)
        if slots != self._slots_in_use:
            self._resize(slots)

    def _slots_beside(self, tokens: int) -> int:
        """Slots that a pass of so many tokens leaves: by its length alone, so counts are the same every time."""
        if not self.plan.fixed.lendable_bytes:
            return self.plan.slots
        free = lendable_bytes(
            self.spec, tokens, self.cache.context, self.precision, kernels=self._decoder is not None
        )
        return self.plan.slots_with(free)

    def _resize(self, slots: int) -> None:
        """Grow or shrink the arena."""
        if slots < self.residency.capacity:
            self.fetcher.make_way(slots)
        else:
            self._views.give_back()
        self.residency.resize(slots, self._tier.move)
        self._tier.use(slots)
        self._slots_in_use = slots

    @property
    def precision(self) -> Precision:
        """How weights are kept."""
        return self._store.precision

    def memory_use(self) -> MemoryUse:
        """The plan, and what is really taken: of the process's memory, or on CUDA of the device's."""
        fixed = self.plan.fixed
        return MemoryUse(
            budget_bytes=self.plan.budget_bytes,
            peak_bytes=peak_bytes(self.device, fixed.base_bytes),
            rss_bytes=resident_bytes(),
            base_bytes=fixed.base_bytes,
            dense_bytes=fixed.dense_bytes,
            kv_bytes=fixed.kv_bytes,
            workspace_bytes=fixed.workspace_bytes,
            staging_bytes=fixed.staging_bytes,
            arena_bytes=self.plan.arena_bytes,
            slots=self.plan.slots,
            slot_bytes=self.plan.slot_bytes,
            policy_bytes=fixed.policy_bytes,
            lendable_bytes=fixed.lendable_bytes,
            lent_bytes=self.plan.lent_bytes,
        )

    def io_facts(self) -> IoFacts:
        """How experts are read."""
        store = self._store
        return IoFacts(store.kind, store.note, store.direct, store.direct_refused, self._lanes.count)

    def keep_learnt(self) -> None:
        """Keep what the policy has learnt for the next process. Failing to is not worth an error."""
        if self._knowledge is None or not self.counters.uses.any():
            return
        try:
            save_learnt(self._knowledge, self._shape, self.watch.policy)
        except FinemoeError as error:
            logger.warning("what was learnt is not kept: %s", error)

    def close(self) -> None:
        """Give everything back."""
        self.keep_learnt()
        self._lanes.close()
        self._store.close()
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        self.step = None
        self.model = None
        gc.collect()
        self._tier.close()


def _load_kernels() -> int:
    """Make sure that the compiled part of `auto` is in memory; the bytes that the process has grown by."""
    if "offload.policy.kernels.auto" in sys.modules:
        return 0
    compile_kernels(precision=None)
    before = resident_bytes()
    importlib.import_module("offload.policy.kernels.auto")
    return max(0, resident_bytes() - before)
