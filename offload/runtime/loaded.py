"""A loaded model with everything that was made for it: weights, cache, arena, lanes, counters."""

from __future__ import annotations

import ctypes
import functools
import gc
import threading
from collections.abc import Callable
from typing import Any

import psutil
import torch

from offload.config import EngineConfig
from offload.errors import ConfigError
from offload.memory.arena import HostArena
from offload.memory.budget import FixedCosts, MemoryPlan, plan_budget, plan_slots, workspace_bytes
from offload.memory.residency import Residency
from offload.models import ModelSpec, read_spec
from offload.policy import DemandLRU, Policy
from offload.runtime.compile import compile_kernels
from offload.runtime.experts import ArenaExperts
from offload.runtime.fetch import ExpertFetcher
from offload.runtime.kv import KVCache, attention_windows
from offload.runtime.loading import (
    DenseWeights,
    Progress,
    build_model,
    dense_layout,
    dense_shapes,
    load_dense,
)
from offload.runtime.views import ExpertViews
from offload.store.base import ExpertStore
from offload.store.calibrate import measure_read_rate
from offload.store.open_store import open_store
from offload.store.safetensors_index import CheckpointIndex
from offload.telemetry.counters import Counters
from offload.telemetry.process import peak_resident_bytes, resident_bytes
from offload.telemetry.snapshot import IoFacts, MemoryUse
from offload.transfer.lanes import Lanes
from offload.transfer.stage import HostStage


class LoadedModel:
    """What `load_model` gives: the parts, wired together. All methods but `propose_budget`, `memory_use` and
    `io_facts` belong to the thread that drives the model."""

    def __init__(
        self,
        spec: ModelSpec,
        device: torch.device,
        kernels: str,
        model: Any,
        cache: KVCache,
        store: ExpertStore,
        arena: HostArena,
        residency: Residency,
        lanes: Lanes,
        policy: Policy,
        fetcher: ExpertFetcher,
        counters: Counters,
        plan: MemoryPlan,
        decode: Callable[[int], torch.Tensor] | None,
    ) -> None:
        self.spec = spec
        self.device = device
        self.kernels = kernels
        self.model = model
        self.cache = cache
        self.residency = residency
        self.policy = policy
        self.fetcher = fetcher
        self.counters = counters
        self.plan = plan
        self._store = store
        self._arena = arena
        self._lanes = lanes
        self._decode = decode
        self._proposed: MemoryPlan | None = None
        self._proposing = threading.Lock()

    def route_forward(self, on_logits: Callable[[torch.Tensor], None]) -> None:
        """Put the engine's forward in the place of the model's: `generate` then drives it unknowingly.

        Args:
            on_logits: Called with the logits of every forward pass, [1, T, V].
        """
        from transformers.modeling_outputs import MoeCausalLMOutputWithPast

        reference = self.model.forward

        @functools.wraps(reference)
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.apply_budget()
            self.fetcher.begin_forward()
            input_ids = kwargs.get("input_ids")
            if self._decode is not None and input_ids is not None and input_ids.shape == (1, 1):
                output = MoeCausalLMOutputWithPast(logits=self._decode(int(input_ids)), past_key_values=self.cache)
            else:
                output = reference(*args, **kwargs)
            on_logits(output.logits)
            return output

        self.model.forward = forward

    def propose_budget(self, budget_bytes: int | None, experts_fraction: float | None) -> None:
        """Work out the plan for another budget; it takes effect with the next `apply_budget`.

        Raises:
            BudgetTooSmall, BudgetTooLarge: The budget cannot be kept; nothing changes.
        """
        plan = make_plan(self.spec, self.plan.fixed, self.plan.slot_bytes, budget_bytes, experts_fraction)
        with self._proposing:
            self._proposed = plan

    def apply_budget(self) -> None:
        """Grow or shrink the arena to the proposed plan, if there is one. Between forward passes only."""
        with self._proposing:
            plan, self._proposed = self._proposed, None
        if plan is None:
            return
        if plan.slots < self.residency.capacity:
            self.fetcher.settle()
            self.fetcher.evict_down_to(plan.slots)
        for slot in self.residency.resize(plan.slots):
            self._arena.release(slot)
        self.plan = plan

    def memory_use(self) -> MemoryUse:
        """The plan, and what the process really takes."""
        fixed = self.plan.fixed
        return MemoryUse(
            budget_bytes=self.plan.budget_bytes,
            peak_bytes=peak_resident_bytes(),
            rss_bytes=resident_bytes(),
            base_bytes=fixed.base_bytes,
            dense_bytes=fixed.dense_bytes,
            kv_bytes=fixed.kv_bytes,
            workspace_bytes=fixed.workspace_bytes,
            staging_bytes=fixed.staging_bytes,
            arena_bytes=self.plan.arena_bytes,
            slots=self.plan.slots,
            slot_bytes=self.plan.slot_bytes,
        )

    def io_facts(self) -> IoFacts:
        """How experts are read."""
        return IoFacts(self._store.direct, self._store.direct_refused, self._lanes.count)

    def close(self) -> None:
        """Give everything back."""
        self._lanes.close()
        self._store.close()
        self._decode = None
        self.model = None
        gc.collect()
        self._arena.close()


def make_plan(
    spec: ModelSpec,
    fixed: FixedCosts,
    slot_bytes: int,
    budget_bytes: int | None,
    experts_fraction: float | None,
) -> MemoryPlan:
    """The plan for a budget in bytes or as a share of the experts.

    Raises:
        BudgetTooSmall, BudgetTooLarge: The budget cannot be kept.
        ConfigError: Neither or both are given.
    """
    memory = psutil.virtual_memory().total
    if (budget_bytes is None) == (experts_fraction is None):
        raise ConfigError("a budget is either bytes or a share of the experts", "give one of the two")
    if experts_fraction is not None:
        budget_bytes = plan_slots(spec, fixed, slot_bytes, experts_fraction).budget_bytes
    assert budget_bytes is not None
    return plan_budget(spec, fixed, slot_bytes, budget_bytes, memory)


def load_model(config: EngineConfig, progress: Progress | None = None) -> LoadedModel:
    """Open a model folder within a memory budget.

    Raises:
        ModelNotFound, UnsupportedModel, CorruptCheckpoint: The folder holds no model that can be run.
        BudgetTooSmall, BudgetTooLarge: The budget cannot be kept.
        ConfigError: A choice that this model or machine does not allow.
    """
    spec = read_spec(config.model)
    index = CheckpointIndex.open(spec.folder)
    device = _device(config.device)
    torch.set_num_threads(config.threads or psutil.cpu_count(logical=False) or 1)
    context = min(config.context, spec.max_context)

    model = build_model(spec)
    layout = dense_layout(dense_shapes(model), spec.decoder_layers)
    kernels = _kernels(config, spec, model, layout.kernels_fit, device)
    if kernels == "fast":
        compile_kernels(progress)
        import offload.runtime.kernels  # noqa: F401  # its size belongs to the base, measured below

    store = open_store(spec, index, packs_folder=config.packs_folder)
    try:
        lanes_count = config.lanes or measure_read_rate(store, seconds_each=0.1).lanes
        fixed = FixedCosts(
            base_bytes=_settled_resident_bytes(),
            dense_bytes=2 * layout.size,
            kv_bytes=context * spec.kv_bytes_per_token,
            workspace_bytes=workspace_bytes(spec, context),
            staging_bytes=lanes_count * store.staging_bytes,
        )
        fraction = config.experts_fraction
        if fraction is None and config.budget_bytes is None:
            fraction = 0.25
        plan = make_plan(spec, fixed, store.slot_bytes, config.budget_bytes, fraction)
        dense = load_dense(model, spec.architecture, index, layout, device, progress)
    except BaseException:
        store.close()
        raise

    _restore_rotary(model, device)
    cache = KVCache(spec, context, device, attention_windows(model.config))
    arena = HostArena(store.slot_bytes, spec.total_experts)
    residency = Residency(spec.total_experts, spec.total_experts, plan.slots)
    counters = Counters(spec.num_layers, spec.num_experts)
    lanes = Lanes(store, HostStage(arena), lanes_count)
    fetcher = ExpertFetcher(residency, lanes, counters, spec.num_layers)
    policy = DemandLRU(fetcher.last_used)
    fetcher.policy = policy
    views = ExpertViews(spec, store, arena, residency)
    layers = [module for module in model.modules() if isinstance(module, ArenaExperts)]
    for number, module in enumerate(layers):
        module.attach(number, spec.num_experts, fetcher, views)
    decode = None
    if kernels == "fast":
        assert dense is not None
        decode = _fast_decode(spec, model, dense, cache, store, arena, residency, fetcher, counters)
    return LoadedModel(
        spec, device, kernels, model, cache, store, arena, residency, lanes, policy, fetcher, counters, plan, decode
    )


def _fast_decode(
    spec: ModelSpec,
    model: Any,
    dense: DenseWeights,
    cache: KVCache,
    store: ExpertStore,
    arena: HostArena,
    residency: Residency,
    fetcher: ExpertFetcher,
    counters: Counters,
) -> Callable[[int], torch.Tensor]:
    from offload.runtime.decode import FastDecoder, dense_view

    view = dense_view(spec, model, dense, cache.context)
    return FastDecoder(spec, view, cache, store, arena, residency, fetcher, counters).step


def _device(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"there is no device '{name}' here", "use --device cpu")
    return torch.device("cuda" if name == "auto" else name)


def _kernels(config: EngineConfig, spec: ModelSpec, model: Any, layout_fits: bool, device: torch.device) -> str:
    if config.kernels == "reference":
        return "reference"
    why = _fast_unfit(spec, model.config, layout_fits, device)
    if not why:
        return "fast"
    if config.kernels == "fast":
        raise ConfigError(f"the fast kernels cannot run {spec.name}: {why}", "use --kernels reference")
    return "reference"


def _fast_unfit(spec: ModelSpec, config: Any, layout_fits: bool, device: torch.device) -> str:
    """Why the fast kernels cannot run this model here, in a few words; empty if they can."""
    if device.type != "cpu":
        return "they run on the CPU only"
    if not spec.architecture.fast_kernels:
        return f"they do not compute layers of type {spec.architecture.model_type}"
    if not layout_fits or spec.num_layers != spec.decoder_layers:
        return "its layers are not all alike"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "it has sliding-window attention"
    if getattr(config, "use_sliding_window", False):
        return "it has sliding-window attention"
    if config.rope_parameters.get("rope_type", "default") in ("dynamic", "longrope"):
        return "its rotary embedding changes with the length"
    return ""


def _restore_rotary(model: Any, device: torch.device) -> None:
    """Make the rotary embedding anew: its tables are in no checkpoint."""
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=model.config).to(device)


def _settled_resident_bytes() -> int:
    """Resident memory after garbage, Python's and the allocator's, has been given back."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass  # not glibc
    return resident_bytes()
