"""How much memory a model may use, as people say it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from offload.errors import ConfigError
from offload.units import format_bytes, parse_bytes

MINIMUM = "minimum"
_PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


@dataclass(frozen=True, slots=True)
class Budget:
    """A memory budget: bytes, or a share of the routed experts. Exactly one of the two is set.

    Attributes:
        total_bytes: Bytes for everything that the budget binds (see ``EngineConfig.budget_bytes``).
        experts_fraction: Share of the routed experts kept resident, up to 1; 0 stands for the smallest arena
            that works.
    """

    total_bytes: int | None = None
    experts_fraction: float | None = None

    def __post_init__(self) -> None:
        assert (self.total_bytes is None) != (self.experts_fraction is None)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget meant by ``"900MiB"``, ``"25%"`` (of the routed experts) or ``"minimum"``.

        Raises:
            ConfigError: ``text`` is none of these.
        """
        if text.strip().lower() == MINIMUM:
            return cls(experts_fraction=0.0)
        if percent := _PERCENT.fullmatch(text):
            share = float(percent.group(1))
            if not 0 < share <= 100:
                raise ConfigError(
                    f"'{text}' is not a share of the experts",
                    "give more than 0% and at most 100%, or 'minimum'",
                )
            return cls(experts_fraction=share / 100)
        try:
            return cls(total_bytes=parse_bytes(text))
        except (ConfigError, OverflowError):
            raise ConfigError(
                f"'{text}' is not a memory budget",
                "give a size such as 900MiB, a share of the experts such as 25%, or 'minimum'",
            ) from None

    def __str__(self) -> str:
        """As :meth:`parse` reads it."""
        if self.total_bytes is not None:
            return exact_size(self.total_bytes)
        assert self.experts_fraction is not None
        return f"{self.experts_fraction * 100:.10g}%" if self.experts_fraction else MINIMUM

    def describe(self) -> str:
        """In words: ``"25% of the experts"``, ``"900 MiB"``, ``"the smallest that works"``."""
        if self.total_bytes is not None:
            return format_bytes(self.total_bytes)
        return f"{self} of the experts" if self.experts_fraction else "the smallest that works"


def exact_size(count: int) -> str:
    """``count`` bytes in the largest binary unit that divides them: ``"900MiB"``, ``"1000001"``."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift}{unit}"
    return str(count)
