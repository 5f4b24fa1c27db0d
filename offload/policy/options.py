"""The user's parameters of a policy, by name."""

from __future__ import annotations

from offload.errors import ConfigError
from offload.policy.base import Surroundings


def option(around: Surroundings, name: str, default: float, low: float, high: float) -> float:
    """The option called `name`, or `default`.

    Raises:
        ConfigError: It lies outside of `low`..`high`.
    """
    value = around.options.get(name, default)
    if not low <= value <= high:
        raise ConfigError(f"policy option {name} is {value}", f"it must be between {low:g} and {high:g}")
    return value


def whole_option(around: Surroundings, name: str, default: int, low: int, high: int) -> int:
    """As `option`, for whole numbers.

    Raises:
        ConfigError: It lies outside of `low`..`high`, or between two whole numbers.
    """
    value = option(around, name, default, low, high)
    if value != int(value):
        raise ConfigError(f"policy option {name} is {value}", "it must be a whole number")
    return int(value)
