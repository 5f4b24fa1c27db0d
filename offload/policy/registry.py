"""All policies by name."""

from __future__ import annotations

from importlib import import_module

from offload.config import POLICIES
from offload.errors import ConfigError
from offload.policy.base import Policy, Surroundings

_MAKERS = {
    "auto": "offload.policy.auto:Auto",
    "demand": "offload.policy.demand:DemandLRU",
    "lfu": "offload.policy.lfu:DecayedLFU",
    "layer-lru": "offload.policy.layer_lru:LayerLRU",
    "deepspeed": "offload.policy.deepspeed:DeepSpeed",
    "mixtral-offloading": "offload.policy.mixtral_offloading:MixtralOffloading",
    "moe-infinity": "offload.policy.moe_infinity:MoEInfinity",
    "promoe": "offload.policy.promoe:ProMoE",
    "finemoe": "offload.policy.finemoe:FineMoE",
}


def check_policy(name: str) -> None:
    """Raise `ConfigError` for a name that is no policy's."""
    if name not in POLICIES:
        raise ConfigError(f"unknown policy '{name}'", f"choose one of {', '.join(POLICIES)}")


def make_policy(name: str, around: Surroundings) -> Policy:
    """The policy called `name`.

    Raises:
        ConfigError: There is none.
    """
    check_policy(name)
    module, _, attribute = _MAKERS[name].partition(":")
    policy: Policy = getattr(import_module(module), attribute)(around)
    return policy
