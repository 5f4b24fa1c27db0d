"""What an evaluation does: settled before it begins, kept in its folder, and compared when it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from finemoe_cli.datasets.conversation import Conversation
from finemoe_cli.evaluation.draws import Draw, draw_all
from finemoe_cli.evaluation.perplexity import Text, read_text
from finemoe_cli.evaluation.prompts import Prompts
from finemoe_cli.lists import words_or_default
from offload.config import EngineConfig, Sampling
from offload.errors import ConfigError
from offload.models.spec import read_spec
from profiles.settings import Resolved, resolve

DEFAULTS: Mapping[str, Any] = {
    "dataset": "sample",
    "data": None,
    "limit": 64,
    "seed": "0",
    "split": None,
    "online": False,
    "arrivals": None,
    "arrival_scale": 1.0,
    "check_exact": False,
    "perplexity": None,
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
    "precision": None,
    "device": None,
    "threads": None,
    "lanes": None,
}
"""Everything that can be asked for."""


@dataclass(frozen=True, slots=True)
class Combination:
    """A policy and a budget, with what a seed draws.

    Attributes:
        name: ``policy@profile``, or ``policy@budget``; where there are several seeds, with ``#seed`` behind.
        group: The name without the seed.
        policy / budget: As the user would give them.
        profile: Empty where a bare budget was given.
        lesson: Combinations with the same learn the same from the history.
        engine: What to open.
    """

    name: str
    group: str
    policy: str
    profile: str
    budget: str
    lesson: str
    draw: Draw
    sampling: Sampling
    engine: EngineConfig


@dataclass(frozen=True, slots=True)
class Plan:
    """An evaluation.

    Attributes:
        asked: The options, by name, as in `DEFAULTS`.
        draws: What each seed draws.
        warmup: So many conversations of the history go first in each engine, uncounted.
        turns: Of each conversation at most; None for all.
        system: The system prompt of conversations that have none.
        check_exact: Hold the conversations again with every expert in memory, and compare.
        text: Whose perplexity is asked for; None for none.
    """

    asked: Mapping[str, Any]
    draws: Sequence[Draw]
    warmup: int
    turns: int | None
    system: str | None
    check_exact: bool
    text: Text | None
    model: Path
    combinations: Sequence[Combination] = field(default_factory=list)

    @property
    def prompts(self) -> Prompts:
        """Where the conversations are from: the same place for every seed."""
        return self.draws[0].prompts

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
                        "history": len(self.draws[0].history),
                        "test": len(self.draws[0].test),
                        "digests": {str(draw.seed): draw.digest for draw in self.draws},
                    },
                    "arrivals": {str(draw.seed): draw.arrivals for draw in self.draws},
                    "perplexity": None if self.text is None else asdict(self.text),
                    "turns": self.turns,
                    "warmup": self.warmup,
                    "system": self.system,
                    "sampling": {
                        name: value
                        for name, value in asdict(self.combinations[0].sampling).items()
                        if name != "seed"
                    },
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
    draws = draw_all(asked)
    chosen = _chosen(asked)
    folder = model_folder(chosen[0].resolved.settings.model)
    read_spec(folder)  # What cannot be run is said before anything is started.
    return Plan(
        asked=asked,
        draws=draws,
        warmup=min(asked["warmup"], len(draws[0].history)),
        turns=asked["turns"],
        system=chosen[0].resolved.settings.system,
        check_exact=asked["check_exact"],
        text=None if asked["perplexity"] is None else read_text(Path(asked["perplexity"])),
        model=folder,
        combinations=[_combination(one, draw, folder, several=len(draws) > 1) for draw in draws for one in chosen],
    )


class _Chosen(NamedTuple):
    """A policy and a budget, before seeds."""

    label: str
    resolved: Resolved


def _chosen(asked: Mapping[str, Any]) -> list[_Chosen]:
    if asked["profile"] is not None and asked["budget"] is not None:
        raise ConfigError("both --profile and --budget are given", "give one of the two")
    policies = words_or_default(asked["policy"], "--policy")
    key = "budget" if asked["budget"] is not None else "profile"
    places = words_or_default(asked[key], f"--{key}")
    common = (
        "model",
        "max_new_tokens",
        "temperature",
        "system",
        "context",
        "kernels",
        "precision",
        "device",
        "threads",
        "lanes",
    )
    found = []
    for policy, place in product(policies, places):
        resolved = resolve({name: asked[name] for name in common} | {"policy": policy, key: place})
        label = place
        if label is None:
            of_profile = resolved.origins["budget"].kind in ("profile", "default")
            label = resolved.profile.name if of_profile else str(resolved.settings.budget)
        found.append(_Chosen(label, resolved))
    names = [(one.label, one.resolved.settings.policy) for one in found]
    if len(set(names)) < len(names):
        raise ConfigError("a policy is measured twice with one budget", "name each policy and each budget once")
    return found


def _combination(one: _Chosen, draw: Draw, folder: Path, *, several: bool) -> Combination:
    resolved = one.resolved
    suffix = f"#{draw.seed}" if several else ""
    policy = resolved.settings.policy
    group = f"{policy}@{one.label}"
    return Combination(
        name=group + suffix,
        group=group,
        policy=policy,
        profile=resolved.profile.name if resolved.origins["budget"].kind in ("profile", "default") else "",
        budget=str(resolved.settings.budget),
        lesson=policy + suffix,
        draw=draw,
        sampling=replace(resolved.sampling(), seed=draw.seed),
        engine=resolved.engine_config(folder),
    )


def _said(combination: Combination) -> dict[str, Any]:
    engine = asdict(combination.engine)
    shown = (
        "budget_bytes",
        "experts_fraction",
        "host_budget_bytes",
        "context",
        "kernels",
        "precision",
        "device",
        "lanes",
        "threads",
    )
    return {
        "name": combination.name,
        "group": combination.group,
        "seed": combination.draw.seed,
        "digest": combination.draw.digest,
        "policy": combination.policy,
        "profile": combination.profile,
        "budget": combination.budget,
        **{name: engine[name] for name in shown},
    }
