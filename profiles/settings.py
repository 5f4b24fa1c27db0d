"""What a user can set, where each value comes from, and which source wins.

A value is taken from the first of these that has it: a flag, the environment (``FINEMOE_`` and the setting's
name in capitals), the settings file, the default. The values a profile carries count as if given where the
profile was named, behind those given one by one at the same place: ``--profile low`` beats a ``budget`` in
the settings file, and ``--budget`` beats ``--profile``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from offload.config import DEFAULT_CONTEXT, EngineConfig, Sampling
from offload.errors import ConfigError
from offload.precision import BF16, Precision
from profiles import values
from profiles.budget import Budget
from profiles.files import line_of, read_toml
from profiles.paths import config_file, knowledge_dir, packs_dir
from profiles.store import DEFAULT_PROFILE, Profile, load_profile

ENVIRONMENT_PREFIX = "FINEMOE_"


def _says(check: values.Checker, about: str) -> dict[str, object]:
    return {"check": check, "about": about}


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, with its default, its check and what it means. None: left to the model or the engine."""

    model: str = field(
        default="demo", metadata=_says(values.text, "Model to run: the name of a pulled model, or a folder")
    )
    profile: str = field(
        default=DEFAULT_PROFILE, metadata=_says(values.text, "Named memory budget; see finemoe profiles")
    )
    budget: Budget | None = field(
        default=None,
        metadata=_says(
            values.budget, "Memory for the model: a size, a share of the experts such as 25%, or minimum"
        ),
    )
    host_budget: int | None = field(
        default=None, metadata=_says(values.size, "On CUDA: host memory for the process, a size")
    )
    context: int = field(
        default=DEFAULT_CONTEXT,
        metadata=_says(values.CONTEXT, "Longest conversation in tokens; its cache is held in memory"),
    )
    kernels: str = field(default="auto", metadata=_says(values.KERNELS, "Decode kernels: auto, fast, reference"))
    precision: Precision = field(
        default=BF16,
        metadata=_says(values.PRECISION, "Weights: bf16, or int8 or int4 of a model packed so with finemoe pack"),
    )
    device: str = field(default="auto", metadata=_says(values.device, "Where to run: auto, cpu, cuda, cuda:N"))
    threads: int | None = field(default=None, metadata=_says(values.THREADS, "Threads that compute"))
    lanes: int | None = field(default=None, metadata=_says(values.LANES, "Threads that read experts"))
    policy: str = field(
        default="auto", metadata=_says(values.POLICY, "How experts are chosen to be read and evicted")
    )
    system: str | None = field(default=None, metadata=_says(values.text, "System prompt"))
    max_new_tokens: int = field(default=512, metadata=_says(values.Whole(1, 1 << 24), "Longest answer in tokens"))
    temperature: float | None = field(
        default=None, metadata=_says(values.Number(0, 100), "Sampling temperature; 0 is greedy")
    )
    top_k: int | None = field(
        default=None, metadata=_says(values.Whole(1, 1 << 24), "Sample from the k likeliest tokens")
    )
    top_p: float | None = field(
        default=None,
        metadata=_says(values.Number(0, 1, closed=False), "Sample from the likeliest tokens that make up p"),
    )
    min_p: float | None = field(
        default=None,
        metadata=_says(values.Number(0, 1), "Leave out tokens less likely than this share of the likeliest"),
    )
    repetition_penalty: float | None = field(
        default=None,
        metadata=_says(
            values.Number(0, 100, closed=False), "Make tokens that were there already less likely; 1: off"
        ),
    )
    seed: int | None = field(
        default=None, metadata=_says(values.Whole(0, (1 << 63) - 1), "Seed of the random choices")
    )
    theme: str = field(default="finemoe", metadata=_says(values.text, "Chat: colours; see /theme"))
    layout: str = field(
        default="auto", metadata=_says(values.LAYOUT, "Chat: telemetry is auto, off, strip, side or full")
    )
    keymap: str | None = field(
        default=None,
        metadata=_says(values.keymap, "Chat: other keys, such as experts=f9, quit=ctrl+x; names in docs/chat.md"),
    )
    ascii: str = field(
        default="auto", metadata=_says(values.ASCII, "Chat: draw with ASCII only: auto (by the locale), on, off")
    )
    editor: str | None = field(
        default=None, metadata=_says(values.text, "Chat: editor for messages, instead of $VISUAL and $EDITOR")
    )


SETTINGS: Mapping[str, Field[Any]] = {f.name: f for f in fields(Settings)}
"""Every setting by name."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from.

    Attributes:
        kind: ``flag``, ``environment``, ``profile``, ``file`` or ``default``.
        label: What to call it: ``--budget``, ``FINEMOE_BUDGET``, ``profile low``, the file and its line.
    """

    kind: str
    label: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings in force.

    Attributes:
        settings: Their values; ``budget`` is never None.
        origins: For each, where it comes from.
        profile: The chosen profile.
    """

    settings: Settings
    origins: Mapping[str, Origin]
    profile: Profile

    def engine_config(self, model: Path) -> EngineConfig:
        """What to start the engine with, for the model in ``model``."""
        s = self.settings
        assert s.budget is not None
        return EngineConfig(
            model=model,
            budget_bytes=s.budget.total_bytes,
            experts_fraction=s.budget.experts_fraction,
            host_budget_bytes=s.host_budget,
            context=s.context,
            kernels=s.kernels,
            precision=s.precision,
            device=s.device,
            lanes=s.lanes,
            threads=s.threads,
            policy=s.policy,
            packs_folder=packs_dir(),
            knowledge=knowledge_dir(),
        )

    def sampling(self) -> Sampling:
        """How to draw tokens."""
        s = self.settings
        return Sampling(
            max_new_tokens=s.max_new_tokens,
            temperature=s.temperature,
            top_k=s.top_k,
            top_p=s.top_p,
            min_p=s.min_p,
            repetition_penalty=s.repetition_penalty,
            seed=s.seed,
        )


def flag_name(name: str) -> str:
    """``--max-new-tokens`` for ``max_new_tokens``."""
    return "--" + name.replace("_", "-")


def variable_name(name: str) -> str:
    """``FINEMOE_MAX_NEW_TOKENS`` for ``max_new_tokens``."""
    return ENVIRONMENT_PREFIX + name.upper()


def meaning(name: str) -> str:
    """What setting ``name`` is for, in one line."""
    return str(SETTINGS[name].metadata["about"])


def check_setting(name: str, raw: object, where: str) -> object:
    """The typed value of setting ``name``, given as ``raw`` by the source called ``where``.

    Raises:
        ConfigError: It cannot be used; the message opens with ``where``.
    """
    try:
        return SETTINGS[name].metadata["check"](raw)
    except values.BadValue as error:
        raise ConfigError(f"{where} is {raw!r}", error.remedy) from error


def check_known(name: str, where: str = "") -> str:
    """``name`` if there is such a setting.

    Raises:
        ConfigError: There is none.
    """
    if name not in SETTINGS:
        close = difflib.get_close_matches(name, SETTINGS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"settings: {', '.join(SETTINGS)}"
        raise ConfigError(f"{where}unknown setting '{name}'", hint)
    return name


def resolve(flags: Mapping[str, object] | None = None, environment: Mapping[str, str] | None = None) -> Resolved:
    """The settings in force, given the command line's ``flags`` (None values count as not given).

    Raises:
        ConfigError: A value or the settings file cannot be used; the message says where it was given.
        ProfileNotFound: The chosen profile does not exist.
    """
    sources = [
        _Source("flag", dict(_from_flags(flags or {}))),
        _Source("environment", dict(_from_environment(os.environ if environment is None else environment))),
        _Source("file", dict(_from_file(config_file()))),
    ]
    naming = next((i for i, source in enumerate(sources) if "profile" in source.given), len(sources))
    chosen = str(sources[naming].given["profile"][0]) if naming < len(sources) else DEFAULT_PROFILE
    profile = load_profile(chosen)
    carried = {name: (value, f"profile {profile.name}") for name, value in profile.carried().items()}
    sources.insert(naming + 1, _Source("profile", carried))

    found: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for name, declared in SETTINGS.items():
        source = next((source for source in sources if name in source.given), None)
        found[name], label = source.given[name] if source else (declared.default, "default")
        origins[name] = Origin(source.kind if source else "default", label)
    return Resolved(Settings(**found), origins, profile)


@dataclass(frozen=True, slots=True)
class _Source:
    kind: str
    given: dict[str, tuple[Any, str]]


_Given = Iterator[tuple[str, tuple[object, str]]]


def _from_flags(flags: Mapping[str, object]) -> _Given:
    for name, raw in flags.items():
        if raw is not None:
            yield name, (check_setting(name, raw, flag_name(name)), flag_name(name))


def _from_environment(environment: Mapping[str, str]) -> _Given:
    for name in SETTINGS:
        variable = variable_name(name)
        if raw := environment.get(variable):
            yield name, (check_setting(name, raw, variable), variable)


def _from_file(path: Path) -> _Given:
    for name, raw in read_toml(path).items():
        line = line_of(name, path)
        where = f"{path}, line {line}" if line else str(path)
        check_known(name, f"{where}: ")
        yield name, (check_setting(name, raw, f"{where}: {name}"), where)
