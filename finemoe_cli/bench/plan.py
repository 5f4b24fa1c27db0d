"""What is measured: configurations of the engine, and the tests that each goes through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from finemoe_cli.datasets.sample import load_sample
from finemoe_cli.lists import words_or_default
from offload.config import EngineConfig
from offload.errors import ConfigError
from profiles.settings import resolve


@dataclass(frozen=True, slots=True)
class Workload:
    """The tests.

    Attributes:
        prompt: Tokens of the prompt test; 0 for none.
        generate: Tokens of the generation test; 0 for none.
        repeats: Of each.
        seed: Of the drawing of tokens; each repeat has another one.
        cold: Each repeat in a process of its own, with nothing in its slots nor in the page cache.
    """

    prompt: int
    generate: int
    repeats: int
    seed: int
    cold: bool

    def __post_init__(self) -> None:
        if not (self.prompt or self.generate):
            raise ConfigError("there is nothing to measure", "give -p or -n more than 0")
        if self.prompt < 0 or self.generate < 0 or self.generate == 1:
            raise ConfigError(
                f"-p is {self.prompt} and -n {self.generate}", "-p is 0 or more; -n is 0, or 2 or more"
            )
        if self.repeats < 1 or self.seed < 0:
            raise ConfigError(f"-r is {self.repeats} and --seed {self.seed}", "-r is 1 or more, --seed 0 or more")

    @property
    def tests(self) -> list[str]:
        """Their names, as llama-bench has them: ``pp512``, ``tg128``."""
        return [f"{name}{count}" for name, count in (("pp", self.prompt), ("tg", self.generate)) if count]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to run the model.

    Attributes:
        policy / budget / precision: As a user would give them; ``budget`` may be a profile's name.
        engine: What to open. It builds on nothing learnt before, so that it finds the same everywhere.
    """

    policy: str
    budget: str
    precision: str
    engine: EngineConfig

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{self.policy}@{self.budget}, {self.precision}"


def configurations(asked: Mapping[str, Any], folder: Path, workload: Workload) -> list[Configuration]:
    """Every combination of the policies, budgets and precisions that were asked for, each a list with commas.

    Args:
        asked: Settings by name, None where not given.

    Raises:
        ConfigError: Something cannot be used.
    """
    if asked["profile"] is not None and asked["budget"] is not None:
        raise ConfigError("both --profile and --budget are given", "give one of the two")
    key = "budget" if asked["budget"] is not None else "profile"
    places = words_or_default(asked[key], f"--{key}")
    policies = words_or_default(asked["policy"], "--policy")
    precisions = words_or_default(asked["precision"], "--precision")
    varied = ("policy", "budget", "profile", "precision")
    common = {name: value for name, value in asked.items() if name not in varied}
    found = []
    for precision, place, policy in product(precisions, places, policies):
        resolved = resolve(common | {key: place, "policy": policy, "precision": precision})
        settings = resolved.settings
        label = place
        if label is None:
            of_profile = resolved.origins["budget"].kind in ("profile", "default")
            label = resolved.profile.name if of_profile else str(settings.budget)
        engine = replace(resolved.engine_config(folder), knowledge=None)
        needed = max(workload.prompt + 1, workload.generate + SHORT_PROMPT)
        if needed > engine.context:
            raise ConfigError(
                f"the tests take {needed} positions, and the context is {engine.context}",
                "raise --context, or measure fewer tokens",
            )
        found.append(Configuration(settings.policy, label, settings.precision, engine))
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise ConfigError("a configuration is measured twice", "name each policy, budget and precision once")
    return found


SHORT_PROMPT = 64
"""Tokens of the prompt that a generation begins with, at most."""


def prompts(count: int) -> list[str]:
    """Questions to begin with: the shortest of the sample that comes with finemoe, always the same."""
    turns = sorted({one.turns[0] for one in load_sample()}, key=lambda text: (len(text), text))
    asked = [text for text in turns if len(text) >= 24 and text.isascii()]
    return [asked[number % len(asked)] for number in range(count)]


def long_text(least: int) -> str:
    """At least so many characters of the sample's prompts, one after the other, always the same."""
    turns = [turn for one in load_sample() for turn in one.turns]
    text = "\n\n".join(turns)
    return text * (least // len(text) + 1)
