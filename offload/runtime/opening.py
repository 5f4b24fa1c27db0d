"""Opening a model within a memory budget: from the folder to a model that can answer.

The order matters. What the folder says is read first, then everything is imported that will be, so that the
interpreter's size is known; then the plan is made, and only then are weights read.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import torch

from offload.config import DEFAULT_EXPERTS_FRACTION, EngineConfig
from offload.errors import ConfigError
from offload.memory.budget import (
    FixedCosts,
    check_host_budget,
    lendable_bytes,
    make_plan,
    plan_slots,
    workspace_bytes,
)
from offload.memory.residency import Residency
from offload.models import ModelSpec, read_spec
from offload.policy import Rates, RouterWeights, Surroundings, make_policy
from offload.policy.knowledge import Shape, likeliest_experts, load_knowledge, policy_bytes_of
from offload.precision import BF16
from offload.runtime.compile import compile_kernels
from offload.runtime.cores import computing_threads
from offload.runtime.device import base_bytes, choose_device, device_memory_bytes
from offload.runtime.experts import ArenaExperts
from offload.runtime.kv import KVCache, attention_windows
from offload.runtime.loaded import LoadedModel
from offload.runtime.loading import (
    Progress,
    build_model,
    dense_layout,
    dense_shapes,
    load_dense,
    place_on_devices,
)
from offload.runtime.quantised_modules import use_quantised_modules
from offload.runtime.tier import CudaTier, HostTier, Tier
from offload.runtime.unpack import Unpacker
from offload.runtime.views import ExpertViews
from offload.runtime.watch import Watch, routers
from offload.store.base import ExpertStore
from offload.store.calibrate import LANES, measure_read_rate
from offload.store.fingerprint import fingerprint
from offload.store.open_store import open_store
from offload.store.packed_store import PackedStore
from offload.store.safetensors_index import CheckpointIndex
from offload.telemetry.counters import Counters
from offload.telemetry.log import logger
from offload.telemetry.process import settled_resident_bytes
from offload.transfer.fetch import ExpertFetcher
from offload.transfer.lanes import Lanes
from offload.units import MIB

STARTING_SPARE = 8 * MIB
"""Between what starting took in the end and at its peak: 3 MiB where it was measured."""

FIRST_LAYER_S = 1e-3
"""Time to compute a layer, before the first one was measured."""


def load_model(config: EngineConfig, progress: Progress | None = None) -> LoadedModel:
    """Open a model folder within a memory budget.

    Raises:
        ModelNotFound, UnsupportedModel, CorruptCheckpoint: The folder holds no model that can be run.
        BudgetTooSmall, BudgetTooLarge: The budget cannot be kept.
        ConfigError: A choice that this model or machine does not allow.
    """
    spec = read_spec(config.model)
    index = CheckpointIndex.open(spec.folder)
    device = choose_device(config.device)
    torch.set_num_threads(computing_threads(config.threads))
    store = open_store(spec, index, config.precision, packs_folder=config.packs_folder)
    try:
        return _load(config, spec, index, store, device, progress)
    except BaseException:
        store.close()
        raise


def _load(
    config: EngineConfig,
    spec: ModelSpec,
    index: CheckpointIndex,
    store: ExpertStore,
    device: torch.device,
    progress: Progress | None,
) -> LoadedModel:
    context, precision = min(config.context, spec.max_context), config.precision
    model = build_model(spec)
    shapes = dense_shapes(model)
    layout = dense_layout(shapes, spec.decoder_layers, precision)
    kernels = _kernels(config, spec, model, layout.kernels_fit, device)
    if kernels == "fast":
        compile_kernels(progress, precision)
        importlib.import_module(
            f"offload.runtime.kernels.{precision}"
        )  # its size belongs to the base, measured below
    if config.policy == "auto":
        compile_kernels(progress, None)
        import offload.policy.kernels.auto  # noqa: F401

    shape = Shape(fingerprint(spec, index), spec.name, spec.num_layers, spec.num_experts, spec.hidden_size)
    knowledge = load_knowledge(config.knowledge, shape, config.policy)
    if knowledge.note:
        logger.warning("%s", knowledge.note)
    candidates = (config.lanes,) if config.lanes else LANES
    measured = measure_read_rate(store, candidates, seconds_each=0.1)
    lanes_count = measured.lanes
    on_host = device.type == "cpu"
    # On CUDA every lane has a pinned slab on the host; on the CPU it reads into the slots themselves.
    staging = lanes_count * (store.staging_bytes + (0 if on_host else store.slot_bytes))
    if not on_host and config.host_budget_bytes is not None:
        check_host_budget(spec, config.host_budget_bytes, settled_resident_bytes(), staging)
    starting = settled_resident_bytes() + STARTING_SPARE if on_host else 0
    fixed = FixedCosts(
        base_bytes=base_bytes(device),
        dense_bytes=2 * layout.size,
        kv_bytes=context * spec.kv_bytes_per_token,
        workspace_bytes=workspace_bytes(spec, context, precision),
        staging_bytes=staging if on_host else 0,
        policy_bytes=policy_bytes_of(shape, config.policy, knowledge, config.policy_options) if on_host else 0,
        # On CUDA torch keeps what a pass gives back.
        lendable_bytes=lendable_bytes(spec, 1, context, precision, kernels=kernels == "fast") if on_host else 0,
    )
    # No promise below what starting took, before code that only it needed was given back; so small are only tests'.
    short = starting - plan_slots(spec, fixed, store.slot_bytes, 0.0).budget_bytes
    fixed = replace(fixed, base_bytes=fixed.base_bytes + max(0, short))
    fraction = config.experts_fraction
    if fraction is None and config.budget_bytes is None:
        fraction = DEFAULT_EXPERTS_FRACTION
    memory = device_memory_bytes(device)
    plan = make_plan(spec, fixed, store.slot_bytes, config.budget_bytes, fraction, memory)
    unpacker = None
    if precision != BF16:
        unpacker = Unpacker(precision, compiled=kernels == "fast")
        use_quantised_modules(model, precision, unpacker)
    source = store if isinstance(store, PackedStore) and precision != BF16 else index
    dense = load_dense(model, shapes, spec.architecture, source, layout, device, progress)

    _restore_rotary(model, device)
    model.lm_head.register_forward_pre_hook(_with_plain_strides)
    if device.type == "cuda" and torch.cuda.device_count() > 1:
        model = place_on_devices(model)
    cache = KVCache(spec, context, device, attention_windows(model.config))
    tier: Tier
    if on_host:
        tier = host_tier = HostTier(store.slot_bytes, spec.total_experts)
    else:
        tier = CudaTier(store.slot_bytes, spec.total_experts, device)
    residency = Residency(spec.total_experts, spec.total_experts, plan.slots)
    counters = Counters(spec.num_layers, spec.num_experts)
    lanes = Lanes(store, tier.stage, lanes_count)
    rates = Rates(read_s=measured.seconds_per_expert, layer_s=FIRST_LAYER_S)
    fetcher = ExpertFetcher(residency, lanes, counters, spec.num_layers, spec.top_k, rates, tier.prepare)
    around = Surroundings(
        layers=spec.num_layers,
        experts=spec.num_experts,
        top_k=spec.top_k,
        hidden=spec.hidden_size,
        slot_bytes=store.slot_bytes,
        residency=residency,
        last_used=fetcher.last_used,
        fresh=fetcher.fresh,
        misses=counters.misses,
        link=lanes,
        rates=rates,
        routers=_router_weights(model),
        knowledge=knowledge,
        options=config.policy_options,
    )
    policy = make_policy(config.policy, around)
    fetcher.policy = policy
    watch = Watch(policy, fetcher, counters, rates)
    watch.attach(model)
    fetcher.fill(likeliest_experts(policy))
    views = ExpertViews(spec, store, tier, residency, unpacker)
    layers = [module for module in model.modules() if isinstance(module, ArenaExperts)]
    for number, module in enumerate(layers):
        module.attach(number, spec.num_experts, fetcher, views)
    decoder = None
    if kernels == "fast":
        from offload.runtime.decode import FastDecoder, dense_view

        assert dense is not None
        view = dense_view(spec, model, dense, cache.context)
        decoder = FastDecoder(
            spec, view, cache, store, host_tier.arena, residency, fetcher, counters, watch, torch.get_num_threads()
        )
    return LoadedModel(
        spec,
        device,
        kernels,
        model,
        cache,
        store,
        tier,
        residency,
        lanes,
        around,
        fetcher,
        counters,
        watch,
        plan,
        fraction if config.budget_bytes is None else None,
        decoder,
        shape,
        config.knowledge,
        views,
    )


def _router_weights(model: Any) -> RouterWeights | None:
    """The routers and the norms in front of them, as views; None where the weights are not in host memory."""
    gates, norms = [], []
    for layer, router in routers(model):
        weight, norm = router.weight, layer.post_attention_layernorm.weight
        plain = weight.dtype == torch.bfloat16 and getattr(layer.post_attention_layernorm, "bias", None) is None
        if weight.device.type != "cpu" or not plain:
            return None
        gates.append(weight.detach().view(torch.uint16).numpy())
        norms.append(norm.detach().view(torch.uint16).numpy())
    return RouterWeights(gates, norms, float(model.config.rms_norm_eps))


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


def _with_plain_strides(module: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """The last token's hidden state [1, 1, H] as if it were a tensor of its own.

    It is a view of the whole prompt's and has its strides. They mean nothing with one token, but torch's product
    then copies the head's weight for it, 600 MiB of Qwen1.5-MoE.
    """
    (hidden,) = inputs
    return (hidden.reshape(-1).view(hidden.shape),)


def _restore_rotary(model: Any, device: torch.device) -> None:
    """Make the rotary embedding anew: its tables are in no checkpoint."""
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=model.config).to(device)
