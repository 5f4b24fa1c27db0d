"""Parts of a report that not every run has: seeds, waiting, learning, places in answers, exactness, perplexity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from finemoe_cli.evaluation.exact import difference_in_words

PARTS = 5
"""Of a run's conversations, whose hit rates are shown side by side."""

Summary = Mapping[str, Any]


def sections(summary: Summary) -> list[str]:
    """Those that this run has, in Markdown."""
    return [text for make in _SECTIONS if (text := make(summary))]


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may have any text."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |\n"

    return line(headers) + "|" + "---|" * len(headers) + "\n" + "".join(line(row) for row in rows)


def _seeds(summary: Summary) -> str:
    groups = summary["over_seeds"]
    if not groups:
        return ""
    names = ("ttft_s", "tpot_s", "tokens_per_s", "hit_rate", "covered_rate")
    rows = [
        (one["group"], str(len(one["seeds"])), *(_spread(one["metrics"][name], name) for name in names))
        for one in groups
    ]
    headers = ("policy@budget", "seeds", "TTFT ms", "TPOT ms", "tokens/s", "hit", "covered")
    return "## Over seeds\n\nMean ± standard deviation.\n\n" + markdown_table(headers, rows)


def _waiting(summary: Summary) -> str:
    arrivals = summary["config"]["asked"]["arrivals"]
    if arrivals is None:
        return ""
    rows = [
        (
            one["name"],
            " / ".join(_seconds(one["queue_s"][name]) for name in ("median", "p90", "p99")),
            _seconds(one["busy_s"]),
            _seconds(one["makespan_s"]),
        )
        for one in summary["combinations"]
    ]
    headers = ("policy@budget", "waiting", "busy", "makespan")
    how = f"Arrivals: {arrivals}. Seconds; waiting: median / 90 % / 99 %. Latencies above go from the arrival on."
    return f"## Waiting\n\n{how}\n\n" + markdown_table(headers, rows)


def _learning(summary: Summary) -> str:
    parts = [_parts([one["hit_rate"] for one in each["progress"]]) for each in summary["combinations"]]
    if not summary["config"]["asked"]["online"] or not any(parts):
        return ""
    rows = [
        (one["name"], *(_percent(rate) for rate in rates))
        for one, rates in zip(summary["combinations"], parts, strict=True)
    ]
    headers = ("policy@budget", *(f"{number} of {PARTS}" for number in range(1, PARTS + 1)))
    return "## Learning\n\nHit rate of decoding over the run, in parts of it.\n\n" + markdown_table(headers, rows)


def _positions(summary: Summary) -> str:
    bins = sorted(
        {(place["first"], place["last"]) for one in summary["combinations"] for place in one["positions"]}
    )
    if not bins:
        return ""
    rows = []
    for one in summary["combinations"]:
        rates = {(place["first"], place["last"]): place["hit_rate"] for place in one["positions"]}
        rows.append((one["name"], *(_percent(rates.get(each)) for each in bins)))
    headers = ("policy@budget", *(f"{first}-{last}" for first, last in bins))
    return "## Place in the answer\n\nHit rate by the token's place.\n\n" + markdown_table(headers, rows)


def _exactness(summary: Summary) -> str:
    exact = summary["exact"]
    if exact is None:
        return ""
    compared = f"{exact['passes']} forward passes of {exact['requests']} requests were compared"
    if exact["exact"] is None:
        said = "Nothing was compared with the resident model yet."
    elif exact["exact"]:
        said = f"All logits are those of the resident model, to the last bit: {compared}."
    else:
        said = f"**Not exact**: {difference_in_words(exact['first_difference'])}; {compared}."
    return f"## Exactness\n\n{said}\n"


def _perplexity(summary: Summary) -> str:
    text = summary["config"]["perplexity"]
    if text is None:
        return ""
    rows = [
        (
            one["name"],
            _number(one["perplexity"]["perplexity"], 4),
            _number(one["perplexity"]["nll_per_token"], 6),
            _number(one["perplexity"]["bits_per_byte"], 4),
            str(one["perplexity"]["tokens"]),
        )
        for one in summary["combinations"]
    ]
    headers = ("policy@budget", "perplexity", "nats a token", "bits a byte", "tokens")
    return f"## Perplexity\n\nOf {text['path']}.\n\n" + markdown_table(headers, rows)


_SECTIONS: Sequence[Callable[[Summary], str]] = (
    _seeds,
    _waiting,
    _learning,
    _positions,
    _exactness,
    _perplexity,
)


def _parts(rates: Sequence[float | None]) -> list[float | None]:
    """Means of the rates in `PARTS` parts of nearly equal length; fewer rates than that are not divided."""
    if len(rates) < PARTS:
        return []
    edges = [round(part * len(rates) / PARTS) for part in range(PARTS + 1)]
    found: list[float | None] = []
    for begin, end in pairwise(edges):
        known = [rate for rate in rates[begin:end] if rate is not None]
        found.append(fmean(known) if known else None)
    return found


def _spread(metric: Mapping[str, float | None], name: str) -> str:
    mean, std = metric["mean"], metric["std"]
    if mean is None:
        return "-"
    unit, digits = (100.0, 1) if name.endswith("_rate") else (1.0, 2) if name == "tokens_per_s" else (1e3, 1)
    text = f"{unit * mean:.{digits}f}" + ("" if std is None else f" ± {unit * std:.{digits}f}")
    return f"{text} %" if unit == 100 else text


def _seconds(value: float | None) -> str:
    return _number(value, 2)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
