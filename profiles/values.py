"""One checker for each kind of value that a flag, an environment variable or a TOML file can give.

A checker takes the raw value (text from the command line and the environment, a TOML scalar from a file) and
returns the typed one, or raises :class:`BadValue`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from offload import config
from offload.errors import ConfigError
from offload.precision import PRECISIONS
from offload.units import parse_bytes
from profiles.budget import Budget

Raw = str | int | float | bool | Budget
"""What a source gives; anything else a TOML file holds (a table, a date) no checker accepts."""


class BadValue(Exception):
    """A value that cannot be used.

    Attributes:
        remedy: What it should be.
    """

    def __init__(self, remedy: str) -> None:
        super().__init__(remedy)
        self.remedy = remedy


def text(raw: object) -> str:
    """Text that is not empty."""
    if not isinstance(raw, str) or not raw.strip():
        raise BadValue("it must be text")
    return raw


def any_text(raw: object) -> str:
    """Text."""
    if not isinstance(raw, str):
        raise BadValue("it must be text")
    return raw


def budget(raw: object) -> Budget:
    """A memory budget; a bare TOML number is bytes."""
    if isinstance(raw, Budget):
        return raw
    if isinstance(raw, int) and not isinstance(raw, bool):
        raw = str(raw)
    try:
        return Budget.parse(raw if isinstance(raw, str) else "")
    except ConfigError as error:
        raise BadValue(error.hint) from error


def size(raw: object) -> int:
    """Bytes; so is a bare TOML number."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        raw = str(raw)
    try:
        return parse_bytes(raw if isinstance(raw, str) else "")
    except (ConfigError, OverflowError) as error:
        raise BadValue("write a number and a unit, such as 900MiB or 1.5GiB") from error


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    def __call__(self, raw: object) -> str:
        if raw not in self.words:
            raise BadValue(f"it must be one of {', '.join(self.words)}")
        return str(raw)


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number between two limits, both allowed."""

    least: int
    most: int

    def __call__(self, raw: object) -> int:
        number: object = raw
        if isinstance(raw, str):
            try:
                number = int(raw)
            except ValueError:
                pass
        if isinstance(number, bool) or not isinstance(number, int) or not self.least <= number <= self.most:
            raise BadValue(f"it must be a whole number from {self.least} to {self.most}")
        return number


@dataclass(frozen=True, slots=True)
class Number:
    """A number between two limits; the upper one is allowed, the lower one if ``closed``."""

    least: float
    most: float
    closed: bool = True

    def __call__(self, raw: object) -> float:
        number: object = raw
        if isinstance(raw, str):
            try:
                number = float(raw)
            except ValueError:
                pass
        if isinstance(number, bool) or not isinstance(number, int | float) or not self._holds(float(number)):
            lower = f"from {self.least:g}" if self.closed else f"above {self.least:g}, at most"
            between = f"{lower} to {self.most:g}" if self.closed else f"{lower} {self.most:g}"
            raise BadValue(f"it must be a number {between}")
        return float(number)

    def _holds(self, number: float) -> bool:
        above = number >= self.least if self.closed else number > self.least
        return math.isfinite(number) and above and number <= self.most


_KEYMAP = re.compile(r"\s*[a-z_]+\s*=\s*[^\s,=]+\s*(,\s*[a-z_]+\s*=\s*[^\s,=]+\s*)*,?\s*")


def keymap(raw: object) -> str:
    """Names of actions, and the key that each gets."""
    if not isinstance(raw, str) or not _KEYMAP.fullmatch(raw):
        raise BadValue("write names and keys, such as: experts=f9, quit=ctrl+x")
    return raw


_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


def device(raw: object) -> str:
    """Where the model runs."""
    if not isinstance(raw, str) or not _DEVICE.fullmatch(raw):
        raise BadValue("it must be auto, cpu, cuda or cuda:N")
    return raw


KERNELS = OneOf(config.KERNELS)
PRECISION = OneOf(PRECISIONS)
POLICY = OneOf(config.POLICIES)
CONTEXT = Whole(1, 1 << 24)
LANES = Whole(1, 64)
THREADS = Whole(1, 1024)

LAYOUT = OneOf(("auto", "off", "strip", "side", "full"))
ASCII = OneOf(("auto", "on", "off"))

Checker = Callable[[object], object]
"""Any of the above."""
