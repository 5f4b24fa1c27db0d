"""What ``finemoe simulate`` is told, from text to values; `ConfigError` for what cannot be used."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from finemoe_cli.lists import words
from offload.config import POLICIES
from offload.errors import ConfigError

_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")
_SPLIT = re.compile(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)")
_OPTION = re.compile(r"([a-z-]+)\.([a-z_]+)=(\S+)")


def simulated_policies() -> list[str]:
    """All that can be simulated: the engine's, and those that know the future."""
    return [*POLICIES, "belady", "oracle"]


def read_policies(text: str | None) -> list[str]:
    """Names of policies; all of them for None."""
    known = simulated_policies()
    names = known if text is None else words(text, "--policy")
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown policy '{name}'", f"choose of {', '.join(known)}")
    return list(dict.fromkeys(names))


def read_budgets(text: str) -> list[float | int]:
    """Shares of the experts, as fractions, and numbers of slots."""
    found: list[float | int] = []
    for word in words(text, "--budget"):
        share = _SHARE.fullmatch(word)
        value = float(share.group(1)) / 100 if share else int(word) if word.isascii() and word.isdigit() else 0
        if value <= 0 or (share and value > 1):
            raise ConfigError(f"'{word}' is not a budget", "give shares up to 100%, such as 12.5%, or slots: 450")
        found.append(value)
    return found


def read_links(text: str) -> list[float]:
    """Ratios."""
    found = []
    for word in words(text, "--link"):
        try:
            ratio = float(word)
        except ValueError:
            ratio = 0.0
        if not 0 < ratio <= 10_000:
            raise ConfigError(
                f"'{word}' is not a link", "give how many layers an expert takes to move, above 0, such as 1.5"
            )
        found.append(ratio)
    return found


def read_split(text: str) -> float:
    """The share of the first part."""
    match = _SPLIT.fullmatch(text.strip())
    parts = [float(part) for part in match.groups()] if match else []
    if not parts or parts[1] == 0:
        raise ConfigError(f"'{text}' is not a split", "give two numbers, such as 70:30; the second above 0")
    return parts[0] / sum(parts)


def read_options(words: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Parameters by policy and name; only of the policies `names`."""
    found: dict[str, dict[str, float]] = {}
    for word in words:
        match = _OPTION.fullmatch(word.strip())
        try:
            value = float(match.group(3)) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or not math.isfinite(value):
            raise ConfigError(f"'{word}' is not an option", "write POLICY.NAME=NUMBER, such as promoe.stride=3")
        if match.group(1) not in names:
            raise ConfigError(f"option '{word}' is of a policy that is not simulated", f"of {', '.join(names)}")
        found.setdefault(match.group(1), {})[match.group(2)] = value
    return found
