"""Gates: what an evaluation has to reach. ``hit_rate<0.6`` fails it if any combination's hit rate is below that."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finemoe_cli.evaluation.metrics import SPREADS, metrics_of, phase_metrics
from offload.errors import ConfigError

_GATE = re.compile(r"\s*([a-z0-9_.]+)\s*(<=|>=|<|>)\s*(\S+)\s*")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition that an evaluation fails on.

    Attributes:
        text: As it was given.
        metric: See `metric_names`.
    """

    text: str
    metric: str
    sign: str
    limit: float

    def fails(self, value: float | None) -> bool:
        """Whether a combination whose metric is `value` fails. What could not be measured does."""
        return value is None or _COMPARE[self.sign](value, self.limit)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a gate for one combination."""

    gate: str
    combination: str
    value: float | None
    failed: bool


def metric_names() -> list[str]:
    """Every metric by name: ``requests``, ``ttft_s.p90``, ``decode.hit_rate``; and short: ``ttft_s`` is the median,
    ``hit_rate`` that of decoding, ``peak_bytes`` that of the memory."""
    return list(flat(metrics_of([])))


def flat(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of `metrics_of` by their names, the short ones too."""
    found: dict[str, float | None] = {}
    for name, value in metrics.items():
        if name in (*SPREADS, "prefill", "decode", "memory"):
            found |= {f"{name}.{inner}": number for inner, number in value.items()}
        elif name != "finish_reasons" and not isinstance(value, str):
            found[name] = value
    short = {name: found[f"{name}.median"] for name in SPREADS}
    short |= {name: found[f"decode.{name}"] for name in phase_metrics([], 0)}
    short |= {name: found[f"memory.{name}"] for name in ("budget_bytes", "peak_bytes", "slots")}
    return short | found


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """The gates that are written so.

    Raises:
        ConfigError: One is not written as a gate, or of no metric that there is.
    """
    gates = []
    known = metric_names()
    for text in texts:
        match = _GATE.fullmatch(text)
        try:
            limit = float(match.group(3)) if match else math.nan
        except ValueError:
            limit = math.nan
        if match is None or not math.isfinite(limit):
            raise ConfigError(f"'{text}' is not a condition", "write METRIC<NUMBER, such as 'hit_rate<0.6'")
        if match.group(1) not in known:
            close = difflib.get_close_matches(match.group(1), known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "docs/evaluation.md has the names"
            raise ConfigError(f"there is no metric '{match.group(1)}'", hint)
        gates.append(Gate(text.strip(), match.group(1), match.group(2), limit))
    return gates


def judge(gates: Sequence[Gate], combinations: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """What becomes of each gate for each of the summary's combinations."""
    known = set(metrics_of([]))
    verdicts = []
    for one in combinations:
        values = flat({name: value for name, value in one.items() if name in known})
        for gate in gates:
            value = values[gate.metric]
            verdicts.append(Verdict(gate.text, one["name"], value, gate.fails(value)))
    return verdicts
