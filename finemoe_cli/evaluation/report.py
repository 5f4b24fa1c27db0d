"""The report of a run, for people (``report.md``) and for spreadsheets (``combinations.csv``, ``requests.csv``).

``report.html``, which has figures too, is made by ``finemoe_cli.evaluation.page``.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finemoe_cli.evaluation.folder import Row
from finemoe_cli.evaluation.gates import flat
from finemoe_cli.evaluation.metrics import COUNTS, TIMES, metrics_of
from finemoe_cli.evaluation.sections import markdown_table, sections
from offload.child import run_child
from offload.errors import StorageError
from offload.units import MIB, format_bytes
from profiles.files import write_atomically
from profiles.settings import flag_name
from ui.text import many

REPORT = "report.md"
PAGE = "report.html"
COMBINATIONS = "combinations.csv"
REQUESTS = "requests.csv"

_NAMES = ("name", "group", "seed", "policy", "profile", "budget", "device", "kernels", "precision")
_OF_REQUEST = (
    "combination",
    "seed",
    "conversation",
    "number",
    "turn",
    "turns",
    "sitting",
    "device",
    "kernels",
    "precision",
    "prompt_tokens",
    "reused_tokens",
    "completion_tokens",
    "finish_reason",
    "ttft_s",
    "tpot_s",
    "e2e_s",
    "arrival_s",
    "queue_s",
    "service_s",
    "energy_j",
    "budget_bytes",
    "peak_bytes",
    "slots",
    "error",
)
_OF_PHASE = (*COUNTS, "hit_rate", "covered_rate")


def write_report(folder: Path, summary: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write all three beside the summary.

    Raises:
        StorageError: They cannot be written.
    """
    write_atomically(folder / REPORT, report_md(summary))
    write_atomically(folder / COMBINATIONS, combinations_csv(summary))
    write_atomically(folder / REQUESTS, requests_csv(rows))


def draw_page(folder: Path) -> None:
    """Write ``report.html``: in a process of its own, as drawing takes much memory.

    Raises:
        StorageError: It cannot be written.
    """
    why = run_child("finemoe_cli.evaluation.page", str(folder))
    if why:
        raise StorageError(
            f"the figures of {folder} could not be drawn: {why}", "all else is kept; try finemoe plot"
        )


def combinations_csv(summary: Mapping[str, Any]) -> str:
    """A line for each combination; columns are its names and its metrics, as gates name them in full."""
    known = set(metrics_of([]))

    def metrics(one: Mapping[str, Any]) -> dict[str, Any]:
        values = flat({name: value for name, value in one.items() if name in known})
        return {name: value for name, value in values.items() if "." in name or name in known}

    lines = [{name: one[name] for name in _NAMES} | metrics(one) for one in summary["combinations"]]
    columns = [*_NAMES, *(name for name in lines[0] if name not in _NAMES)]
    return _csv(columns, ([line[column] for column in columns] for line in lines))


def requests_csv(rows: Sequence[Row]) -> str:
    """A line for each request: what a row of ``requests.jsonl`` has, but for tokens and their times."""
    phases = [(phase, name) for phase in ("prefill", "decode") for name in _OF_PHASE]
    columns = [*_OF_REQUEST, *(f"{phase}.{name}" for phase, name in phases)]
    return _csv(
        columns,
        (
            [row.get(name) for name in _OF_REQUEST] + [row.get(phase, {}).get(name) for phase, name in phases]
            for row in rows
        ),
    )


def report_md(summary: Mapping[str, Any]) -> str:
    """The run in Markdown: what was asked of what, what it cost, and with what it was measured."""
    data, config, combinations = summary["data"], summary["config"], summary["combinations"]
    last = summary["sittings"][-1]
    state = "" if summary["complete"] else "\n**Not complete**: it was broken off, and can go on with `--resume`.\n"
    source = f"{data['source']} {data['path']}".rstrip()
    note = f"\n**Not {data['dataset']}**: {data['note']}\n" if data["note"] else ""
    skipped = f"; skipped: {many(data['skipped_rows'], 'row')}" if data["skipped_rows"] else ""
    learning = f"{data['history']} to learn from, {data['test']} to test with"
    if not data["history"]:
        learning = f"{data['test']} to test with, and none to learn from before"
    sampling = config["sampling"]
    how = "greedy" if sampling["temperature"] == 0 else f"temperature {sampling['temperature']}"
    parts = [
        f"# Evaluation of {Path(config['model']).name}\n{state}{note}",
        markdown_table(
            ("", ""),
            [
                ("prompts", f"{source}; {learning}{skipped}"),
                ("answers", f"at most {sampling['max_new_tokens']} tokens, {how}, seed {config['asked']['seed']}"),
                ("machine", _machine(last["machine"])),
                ("versions", ", ".join(f"{name} {version}" for name, version in last["versions"].items())),
                ("commit", last["commit"] or "none"),
                ("sittings", str(len(summary["sittings"]))),
                ("took turns", "; ".join(", ".join(group) for group in last["groups"]) or "none"),
            ],
        ),
        "## Latency\n\nMilliseconds: median / 90 % / 99 %.\n",
        markdown_table(
            ("policy@budget", "requests", "TTFT", "TPOT", "ITL", "end to end", "tokens/s"),
            [
                (
                    one["name"],
                    f"{one['requests']} ({one['errors']} errors)" if one["errors"] else str(one["requests"]),
                    *(_times(one[name]) for name in TIMES),
                    _number(one["tokens_per_s"], 2),
                )
                for one in combinations
            ],
        ),
        "## Experts\n",
        *(
            f"{title}:\n\n" + markdown_table(
                ("policy@budget", "hit", "covered", "late", "missed", "MiB/token", "wasted", "stall ms/token"),
                [(one["name"], *_experts(one[phase])) for one in combinations],
            )
            for phase, title in (("prefill", "Prompts"), ("decode", "Decoding"))
        ),
        "## Memory\n",
        markdown_table(
            ("policy@budget", "peak", "budget", "experts in memory"),
            [
                (
                    one["name"],
                    _size(one["memory"]["peak_bytes"]),
                    _size(one["memory"]["budget_bytes"]),
                    str(one["memory"]["slots"] or "-"),
                )
                for one in combinations
            ],
        ),
        *sections(summary),
        f"## Again\n\n```sh\n{_command(config['asked'])}\n```\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _command(asked: Mapping[str, Any]) -> str:
    given = {name: value for name, value in asked.items() if value is not None and value is not False}
    flags = [flag_name(name) if value is True else f"{flag_name(name)}={value}" for name, value in given.items()]
    return shlex.join(["finemoe", "eval", *flags])


def _machine(machine: Mapping[str, Any]) -> str:
    system = f"{machine['system']} {machine['release']}, {machine['architecture']}"
    return f"{machine['cpu']}, {machine['cpus']} cores, {format_bytes(machine['memory_bytes'])}; {system}"


def _times(spread: Mapping[str, float | None]) -> str:
    return " / ".join(
        "-" if seconds is None else f"{1e3 * seconds:.1f}"
        for seconds in (spread[name] for name in ("median", "p90", "p99"))
    )


def _experts(phase: Mapping[str, Any]) -> list[str]:
    rates = [phase[name] for name in ("hit_rate", "covered_rate", "late_rate", "missed_rate")]
    brought, wasted = phase["bytes_prefetch"], phase["bytes_prefetch_wasted"]
    return [
        *("-" if rate is None else f"{100 * rate:.1f} %" for rate in rates),
        _number(None if phase["bytes_per_token"] is None else phase["bytes_per_token"] / MIB, 2),
        f"{100 * wasted / brought:.1f} %" if brought else "-",
        _number(None if phase["stall_per_token_s"] is None else 1e3 * phase["stall_per_token_s"], 2),
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _size(count: int | None) -> str:
    return "-" if count is None else format_bytes(count)


def _csv(columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()
