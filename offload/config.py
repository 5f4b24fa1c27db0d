"""What a user of the engine chooses, as plain data, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from offload.errors import ConfigError
from offload.precision import BF16, PRECISIONS, Precision

KERNELS = ("auto", "fast", "reference")
POLICIES = (
    "auto",
    "demand",
    "lfu",
    "layer-lru",
    "deepspeed",
    "mixtral-offloading",
    "moe-infinity",
    "promoe",
    "finemoe",
)

DEFAULT_CONTEXT = 4096
"""Positions of the key-value cache, unless the model was made for fewer."""

DEFAULT_EXPERTS_FRACTION = 0.25
"""Share of the experts kept resident when neither a budget nor a share is given."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How to open a model.

    Attributes:
        model: Folder of the checkpoint, in Hugging Face layout.
        budget_bytes: Memory budget. On the CPU it binds the resident memory of the whole process, on CUDA
            the memory taken on the device.
        experts_fraction: Instead of bytes, the share of the routed experts that may be resident (0..1);
            0 means the smallest arena that works. The budget follows from it.
        host_budget_bytes: On CUDA, a second budget, for the process's resident host memory.
        context: Positions of the key-value cache: prompt and answer together.
        kernels: ``fast`` (own decode kernels, CPU), ``reference`` (transformers' modules) or ``auto``.
        precision: ``bf16``, or ``int8`` or ``int4`` of a model that is packed so.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        lanes: Reading threads; None measures which number reads fastest.
        threads: Threads torch computes a prompt with; None takes the physical cores.
        policy: Which experts to keep and to fetch ahead.
        policy_options: The policy's parameters, by name.
        knowledge: Folder of what policies have learnt about models; None for nothing.
        packs_folder: Where to look for the model's packed experts if they are not in its own folder.
    """

    model: Path
    budget_bytes: int | None = None
    experts_fraction: float | None = None
    host_budget_bytes: int | None = None
    context: int = DEFAULT_CONTEXT
    kernels: str = "auto"
    precision: Precision = BF16
    device: str = "auto"
    lanes: int | None = None
    threads: int | None = None
    policy: str = "auto"
    policy_options: Mapping[str, float] = field(default_factory=dict)
    knowledge: Path | None = None
    packs_folder: Path | None = None

    def __post_init__(self) -> None:
        _one_of("kernels", self.kernels, KERNELS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("policy", self.policy, POLICIES)
        if self.budget_bytes is not None and self.experts_fraction is not None:
            raise ConfigError("both a budget and a share of the experts are given", "give one of the two")
        if self.experts_fraction is not None and not 0 <= self.experts_fraction <= 1:
            raise ConfigError(f"the share of experts is {self.experts_fraction}", "it lies between 0 and 1")
        for name in ("budget_bytes", "host_budget_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} is {value}", "a budget is a positive number of bytes")
        for name in ("context", "lanes", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}", "it must be at least 1")
        if self.device not in ("auto", "cpu", "cuda") and not self.device.removeprefix("cuda:").isdigit():
            raise ConfigError(f"there is no device '{self.device}'", "choose auto, cpu, cuda or cuda:N")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. None leaves a value to the model's own generation configuration.

    Attributes:
        max_new_tokens: Tokens generated at most.
        temperature: 0 is greedy.
        top_k: Keep only the k likeliest tokens.
        top_p: Keep the likeliest tokens whose probabilities reach p.
        min_p: Keep tokens with at least this share of the likeliest token's probability.
        repetition_penalty: Above 1 makes tokens that were there less likely.
        seed: Makes sampling repeatable.
        ignore_eos: Go on to ``max_new_tokens`` where the model would end: for measuring.
    """

    max_new_tokens: int = 512
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _within("max_new_tokens", self.max_new_tokens, 1, None)
        _within("temperature", self.temperature, 0, None)
        _within("top_k", self.top_k, 1, None)
        _within("top_p", self.top_p, 0, 1)
        _within("min_p", self.min_p, 0, 1)
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            raise ConfigError(f"repetition_penalty is {self.repetition_penalty}", "it must be above 0")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {name} '{value}'", f"choose one of {', '.join(known)}")


def _within(name: str, value: float | None, low: float, high: float | None) -> None:
    if value is None or (value >= low and (high is None or value <= high)):
        return
    bounds = f"at least {low}" if high is None else f"between {low} and {high}"
    raise ConfigError(f"{name} is {value}", f"it must be {bounds}")
