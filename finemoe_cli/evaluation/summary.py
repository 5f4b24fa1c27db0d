"""The summary of a run, and the table that is shown of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from finemoe_cli.evaluation.breakdown import breakdown_of
from finemoe_cli.evaluation.exact import exactness
from finemoe_cli.evaluation.folder import PERPLEXITY, REPLAYED, Row, RunFolder
from finemoe_cli.evaluation.gates import flat
from finemoe_cli.evaluation.metrics import MAIN, metrics_of
from finemoe_cli.evaluation.perplexity import perplexity_of
from offload.units import MIB, format_bytes

if TYPE_CHECKING:
    from rich.table import Table


def summarise(folder: RunFolder) -> dict[str, Any]:
    """What is in ``summary.json``: all that the folder says, and the metrics of each combination."""
    run, rows = folder.run, folder.rows()
    assert run is not None
    said, asked = run["config"]["combinations"], run["config"]["asked"]
    combinations = [_combination(one, [row for row in rows if row["combination"] == one["name"]]) for one in said]
    if text := run["config"]["perplexity"]:
        scored = folder.rows(PERPLEXITY)
        for one in combinations:
            own = [row for row in scored if row["combination"] == one["name"]]
            one["perplexity"] = perplexity_of(own, text, whole=run["complete"])
    config = {name: value for name, value in run["config"].items() if name not in ("combinations", "data")}
    return {
        "path": str(folder.path),
        "complete": run["complete"],
        "created": run["created"],
        "data": run["config"]["data"],
        "config": config,
        "sittings": run["sittings"],
        "engines": run["engines"],
        "combinations": combinations,
        "over_seeds": over_seeds(combinations),
        "exact": exactness(said, rows, folder.rows(REPLAYED)) if asked["check_exact"] else None,
    }


def over_seeds(combinations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each policy and budget with several seeds: mean, standard deviation and range of the main metrics."""
    found = []
    known = set(metrics_of([]))
    for group in dict.fromkeys(one["group"] for one in combinations):
        own = [one for one in combinations if one["group"] == group]
        if len(own) < 2:
            continue
        values = [flat({name: value for name, value in one.items() if name in known}) for one in own]
        metrics = {}
        for name, path in MAIN.items():
            numbers = [number for one in values if (number := one[path]) is not None]
            metrics[name] = {
                "count": len(numbers),
                "mean": fmean(numbers) if numbers else None,
                "std": stdev(numbers) if len(numbers) > 1 else None,
                "min": min(numbers, default=None),
                "max": max(numbers, default=None),
            }
        found.append({"group": group, "seeds": [one["seed"] for one in own], "metrics": metrics})
    return found


def _combination(said: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    known = {name: said[name] for name in ("name", "group", "seed", "policy", "profile", "budget")}
    done = next((row for row in rows if "error" not in row), {})
    return (
        known
        | {name: done.get(name) for name in ("device", "kernels", "precision")}
        | metrics_of(rows)
        | breakdown_of(rows)
    )


def table_of(summary: dict[str, Any]) -> Table:
    """A row for each combination; below them where prompts are from that are not those that were asked for."""
    from rich.table import Table
    from rich.text import Text

    data = summary["data"]
    caption = f"prompts: {data['source']}, not {data['dataset']}" if data["note"] else None
    table = Table(
        caption=caption, caption_justify="left", box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.add_column("policy@budget", style="name", overflow="fold")
    columns = {name: cell for name, (cell, wanted) in _COLUMNS.items() if wanted(summary)}
    for header in columns:
        table.add_column(header, justify="right")
    for one in summary["combinations"]:
        table.add_row(Text(one["name"]), *(cell(one) for cell in columns.values()))
    return table


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _peak(memory: Mapping[str, Any]) -> str:
    if memory["peak_bytes"] is None:
        return "-"
    return f"{format_bytes(memory['peak_bytes'])} / {format_bytes(memory['budget_bytes'])}"


def _mib(count: float | None) -> str:
    return _number(None if count is None else count / MIB, 1)


def _always(summary: Mapping[str, Any]) -> bool:
    return True


_Combination = Mapping[str, Any]
_COLUMNS: Mapping[str, tuple[Callable[[_Combination], str], Callable[[Mapping[str, Any]], bool]]] = {
    "requests": (lambda one: str(one["requests"]), _always),
    "queue ms": (
        lambda one: _ms(one["queue_s"]["median"]),
        lambda summary: summary["config"]["asked"]["arrivals"] is not None,
    ),
    "TTFT ms": (lambda one: _ms(one["ttft_s"]["median"]), _always),
    "TPOT ms": (lambda one: _ms(one["tpot_s"]["median"]), _always),
    "ITL p99": (lambda one: _ms(one["itl_s"]["p99"]), _always),
    "tok/s": (lambda one: _number(one["tokens_per_s"], 2), _always),
    "hit": (lambda one: _percent(one["decode"]["hit_rate"]), _always),
    "covered": (lambda one: _percent(one["decode"]["covered_rate"]), _always),
    "MiB/token": (lambda one: _mib(one["decode"]["bytes_per_token"]), _always),
    "stall ms": (lambda one: _ms(one["decode"]["stall_per_token_s"]), _always),
    "perplexity": (
        lambda one: _number(one["perplexity"]["perplexity"], 3),
        lambda summary: summary["config"]["perplexity"] is not None,
    ),
    "peak / budget": (lambda one: _peak(one["memory"]), _always),
}
"""What is shown of a combination, and of which runs."""
