"""Two runs compared: paired differences by conversation, with bootstrap confidence intervals.

Both runs answered the same conversations, so what a conversation costs by itself cancels out of the difference.
The intervals are percentiles of the mean difference over conversations that are drawn anew with replacement
(Efron 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finemoe_cli.evaluation.folder import REQUESTS, RUN, Row, is_last, read_rows, read_run
from finemoe_cli.evaluation.gates import flat
from finemoe_cli.evaluation.metrics import MAIN, metrics_of
from offload.errors import ConfigError, NotFound

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Side:
    """One combination of one run.

    Attributes:
        rows: Its rows by conversation, of those that were held to the end.
    """

    run: Path
    combination: str
    digest: str
    rows: Mapping[int, Sequence[Row]]


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of both sides.

    Attributes:
        pairs: Conversations in which both have it.
        a / b: Mean over them.
        difference: b - a.
        low / high: Bounds of the confidence interval of the difference; None below two pairs.
    """

    metric: str
    pairs: int
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides compared.

    Attributes:
        conversations: That both have held.
        same_answers: Share of their requests with equal token ids.
    """

    a: Side
    b: Side
    conversations: int
    same_answers: float
    differences: Sequence[Difference]


def compare_runs(a: str, b: str, seed: int = 0) -> list[Comparison]:
    """Compare the combinations that both runs have; or, where each has one or one is named, those two.

    Args:
        a / b: Folders of runs; ``FOLDER:COMBINATION`` names one of its combinations.
        seed: Of the bootstrap.

    Raises:
        NotFound: There is no such run, or combination.
        ConfigError: The runs did not answer the same conversations, or have no combination in common.
    """
    left, right = _sides(a), _sides(b)
    if len(left) == len(right) == 1:
        pairs = [(left[0], right[0])]
    else:
        by_name = {side.combination: side for side in right}
        pairs = [(side, by_name[side.combination]) for side in left if side.combination in by_name]
    if not pairs:
        raise ConfigError(f"{a} and {b} have no combination in common", "name one of each: FOLDER:COMBINATION")
    return [_compare(one, other, seed) for one, other in pairs]


def paired(
    values_a: Sequence[float], values_b: Sequence[float], seed: int
) -> tuple[float, float | None, float | None]:
    """The mean of b - a, and its confidence interval by bootstrap; None below two pairs."""
    differences = np.asarray(values_b, float) - np.asarray(values_a, float)
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, None, None
    draws = np.random.default_rng(seed).integers(0, len(differences), (RESAMPLES, len(differences)))
    means = differences[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return mean, float(low), float(high)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """As plain values, for JSON."""
    return {
        **{
            name: {"run": str(side.run), "combination": side.combination}
            for name, side in (("a", comparison.a), ("b", comparison.b))
        },
        "conversations": comparison.conversations,
        "same_answers": comparison.same_answers,
        "confidence": CONFIDENCE,
        "differences": [asdict(one) for one in comparison.differences],
    }


def comparison_rows(comparison: Comparison) -> list[list[str]]:
    """Metric, A, B, difference, confidence interval and ratio of each difference, as text."""
    rows = []
    for one in comparison.differences:
        unit = 1e3 if one.metric.endswith("_s") and one.metric != "tokens_per_s" else 1.0
        name = one.metric.removesuffix("_s") + ", ms" if unit != 1 else one.metric
        bounds = "-"
        if one.low is not None and one.high is not None:
            bounds = f"{unit * one.low:+.4g} .. {unit * one.high:+.4g}"
        ratio = f"{one.b / one.a:.3f}" if one.a else "-"
        rows.append(
            [name, f"{unit * one.a:.4g}", f"{unit * one.b:.4g}", f"{unit * one.difference:+.4g}", bounds, ratio]
        )
    return rows


def _compare(a: Side, b: Side, seed: int) -> Comparison:
    if a.digest != b.digest:
        raise ConfigError(
            f"{a.run} and {b.run} answered different conversations", "compare runs of the same prompts"
        )
    both = sorted(set(a.rows) & set(b.rows))
    if not both:
        raise ConfigError(f"{a.run} and {b.run} have held no conversation in common", "go on with them: --resume")
    values = [[flat(metrics_of(side.rows[number])) for number in both] for side in (a, b)]
    differences = []
    for metric, name in MAIN.items():
        known = [(x[name], y[name]) for x, y in zip(*values, strict=True)]
        pairs = [(x, y) for x, y in known if x is not None and y is not None]
        if pairs:
            of_a, of_b = ([pair[side] for pair in pairs] for side in (0, 1))
            mean, low, high = paired(of_a, of_b, seed)
            mean_a, mean_b = sum(of_a) / len(of_a), sum(of_b) / len(of_b)
            differences.append(Difference(metric, len(pairs), mean_a, mean_b, mean, low, high))
    same = [
        one.get("token_ids") == other.get("token_ids")
        for number in both
        for one, other in zip(a.rows[number], b.rows[number], strict=False)
    ]
    return Comparison(a, b, len(both), sum(same) / len(same), differences)


def _sides(text: str) -> list[Side]:
    path, wanted = Path(text), ""
    if not path.exists() and ":" in text:
        folder, _, wanted = text.rpartition(":")
        path = Path(folder)
    if not (path / RUN).exists():
        raise NotFound(f"there is no run in {path}", "give the folder that finemoe eval wrote")
    combinations = read_run(path)["config"]["combinations"]
    digests: dict[str, str] = {one["name"]: one["digest"] for one in combinations}
    names = list(digests)
    if wanted and wanted not in names:
        raise NotFound(f"the run in {path} has no combination '{wanted}'", f"it has {', '.join(names)}")
    rows = read_rows(path / REQUESTS) if (path / REQUESTS).exists() else []
    sides = []
    for name in [wanted] if wanted else names:
        own: dict[int, list[Row]] = {}
        for row in rows:
            if row["combination"] == name:
                own.setdefault(row["number"], []).append(row)
        held = {number: found for number, found in own.items() if is_last(found[-1])}
        sides.append(Side(path, name, digests[name], held))
    return sides
