"""What an evaluation does: settled before it begins, kept in its folder, and compared when it goes on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from finemoe_cli.datasets.conversation import Conversation
from finemoe_cli.datasets.sample import split
from finemoe_cli.evaluation.prompts import Prompts, find_prompts
from offload.config import EngineConfig, Sampling
from offload.errors import ConfigError
from offload.models.spec import read_spec
from profiles.settings import resolve

_SPLIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*:\s*(\d+(?:\.\d+)?)\s*")

DEFAULTS: Mapping[str, Any] = {
    "dataset": "sample",
    "data": None,
    "limit": 64,
    "seed": 0,
    "split": "70:30",
    "turns": None,
    "max_new_tokens": "128",
    "temperature": "0",
    "system": None,
    "warmup": 1,
    "model": None,
    "policy": None,
    "profile": None,
    "budget": None,
    "context": None,
    "kernels": None,
    "device": None,
    "threads": None,
    "lanes": None,
}
"""Everything that can be asked for."""


@dataclass(frozen=True, slots=True)
class Combination:
    """A policy and a budget.

    Attributes:
        name: ``policy@profile``, or ``policy@budget``.
        policy / budget: As the user would give them.
        profile: Empty where a bare budget was given.
        engine: What to open.
    """

    name: str
    policy: str
    profile: str
    budget: str
    engine: EngineConfig


@dataclass(frozen=True, slots=True)
class Plan:
    """An evaluation.

    Attributes:
        asked: The options, by name, as in `DEFAULTS`.
        prompts: Where the conversations are from.
        history: Conversations that policies learn from.
        test: Conversations that are measured.
        warmup: So many conversations of the history go first in each engine, uncounted.
        turns: Of each conversation at most; None for all.
        system: The system prompt of conversations that have none.
    """

    asked: Mapping[str, Any]
    prompts: Prompts
    history: Sequence[Conversation]
    test: Sequence[Conversation]
    warmup: int
    turns: int | None
    system: str | None
    sampling: Sampling
    model: Path
    combinations: Sequence[Combination] = field(default_factory=list)

    def turns_of(self, conversation: Conversation) -> Sequence[str]:
        """What is said in it."""
        return conversation.turns[: self.turns]

    def config(self) -> dict[str, Any]:
        """Everything that the numbers depend on, as JSON has it."""
        said: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "asked": dict(self.asked),
                    "data": {
                        "dataset": self.prompts.dataset,
                        "source": self.prompts.source,
                        "path": self.prompts.path,
                        "skipped_rows": self.prompts.skipped_rows,
                        "skipped": list(self.prompts.skipped),
                        "note": self.prompts.note,
                        "history": len(self.history),
                        "test": len(self.test),
                        "digest": _digest([*self.history, *self.test]),
                    },
                    "turns": self.turns,
                    "warmup": self.warmup,
                    "system": self.system,
                    "sampling": asdict(self.sampling),
                    "model": str(self.model),
                    "combinations": [_said(combination) for combination in self.combinations],
                }
            )
        )
        return said


def make_plan(asked: Mapping[str, Any], model_folder: Any) -> Plan:
    """Settle everything.

    Args:
        asked: Every option of `DEFAULTS`.
        model_folder: Gives the folder of a model that is named, and sees that it is there.

    Raises:
        FinemoeError: Something cannot be used.
    """
    share = _share(asked["split"])
    prompts = find_prompts(
        asked["dataset"], None if asked["data"] is None else Path(asked["data"]), asked["limit"], asked["seed"]
    )
    history, test = split(prompts.conversations, share, asked["seed"]) if share else ([], prompts.conversations)
    chosen = _combinations(asked)
    folder = model_folder(chosen[0][1].settings.model)
    read_spec(folder)  # What cannot be run is said before anything is started.
    first = chosen[0][1]
    return Plan(
        asked=asked,
        prompts=prompts,
        history=history,
        test=test,
        warmup=min(asked["warmup"], len(history)),
        turns=asked["turns"],
        system=first.settings.system,
        sampling=first.sampling(),
        model=folder,
        combinations=[
            Combination(
                name=f"{resolved.settings.policy}@{label}",
                policy=resolved.settings.policy,
                profile=resolved.profile.name if resolved.origins["budget"].kind in ("profile", "default") else "",
                budget=str(resolved.settings.budget),
                engine=resolved.engine_config(folder),
            )
            for label, resolved in chosen
        ],
    )


def _combinations(asked: Mapping[str, Any]) -> list[tuple[str, Any]]:
    if asked["profile"] is not None and asked["budget"] is not None:
        raise ConfigError("both --profile and --budget are given", "give one of the two")
    policies = _words(asked["policy"], "--policy")
    key = "budget" if asked["budget"] is not None else "profile"
    places = _words(asked[key], f"--{key}")
    common = (
        "model",
        "max_new_tokens",
        "temperature",
        "seed",
        "system",
        "context",
        "kernels",
        "device",
        "threads",
        "lanes",
    )
    found = []
    for policy, place in product(policies, places):
        flags = {name: asked[name] for name in common} | {"policy": policy, key: place}
        resolved = resolve(flags)
        label = place
        if label is None:
            of_profile = resolved.origins["budget"].kind in ("profile", "default")
            label = resolved.profile.name if of_profile else str(resolved.settings.budget)
        found.append((label, resolved))
    names = [(label, resolved.settings.policy) for label, resolved in found]
    if len(set(names)) < len(names):
        raise ConfigError("a policy is measured twice with one budget", "name each policy and each budget once")
    return found


def _words(text: str | None, option: str) -> list[str | None]:
    if text is None:
        return [None]
    words: list[str | None] = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ConfigError(f"{option} '{text}' has an empty place", "put one comma between two values")
    return words


def _share(text: str) -> float:
    match = _SPLIT.fullmatch(text)
    parts = [float(part) for part in match.groups()] if match else []
    if not parts or parts[1] == 0:
        raise ConfigError(f"'{text}' is not a split", "give two numbers, such as 70:30; the second above 0")
    return parts[0] / sum(parts)


def _said(combination: Combination) -> dict[str, Any]:
    engine = asdict(combination.engine)
    shown = (
        "budget_bytes",
        "experts_fraction",
        "host_budget_bytes",
        "context",
        "kernels",
        "device",
        "lanes",
        "threads",
    )
    return {
        "name": combination.name,
        "policy": combination.policy,
        "profile": combination.profile,
        "budget": combination.budget,
        **{name: engine[name] for name in shown},
    }


def _digest(conversations: Sequence[Conversation]) -> str:
    text = json.dumps([asdict(conversation) for conversation in conversations], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
