"""What a combination's selections found, by layer, by place in the answer, and by conversation."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finemoe_cli.evaluation.metrics import KINDS, Row, kind_rates, metrics_of
from profiles.files import write_atomically

FIRST_BIN = 8
BIN_FACTOR = 4
"""Places in an answer are put together as 1-8, 9-32, 33-128 and so on."""

_PHASES = ("prefill", "decode")


def breakdown_of(rows: Sequence[Row]) -> dict[str, Any]:
    """``layers``, ``positions`` and ``progress`` of the requests of one combination.

    Args:
        rows: As in ``requests.jsonl``; those with an `error` are left out.
    """
    done = [row for row in rows if "error" not in row]
    return {"layers": _layers(done), "positions": _positions(done), "progress": _progress(done)}


def write_tables(folder: Path, combinations: Sequence[Mapping[str, Any]]) -> None:
    """Write ``layers.csv``, ``positions.csv`` and ``progress.csv``: a line for each of each combination's.

    Raises:
        StorageError: They cannot be written.
    """
    layers = [
        {"combination": one["name"], "phase": phase} | layer
        for one in combinations
        for phase in _PHASES
        for layer in one["layers"][phase]
    ]
    write_atomically(folder / "layers.csv", _csv(layers))
    for name in ("positions", "progress"):
        lines = [{"combination": one["name"]} | line for one in combinations for line in one[name]]
        write_atomically(folder / f"{name}.csv", _csv(lines))


def bin_of(place: int) -> tuple[int, int]:
    """First and last place of the bin that a place in the answer, from 1, is in."""
    first, last = 1, FIRST_BIN
    while place > last:
        first, last = last + 1, last * BIN_FACTOR
    return first, last


def _layers(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for phase in _PHASES:
        own = [row["layers"][phase] for row in rows]
        found[phase] = [
            {"layer": layer} | _counted([{name: one[name][layer] for name in one} for one in own])
            for layer in range(len(own[0]["stall_s"]) if own else 0)
        ]
    return found


def _positions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    bins: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        passes = row["passes"]
        for place in range(1, len(passes["stall_s"]) + 1):
            bins.setdefault(bin_of(place), []).append({name: passes[name][place - 1] for name in passes})
    return [
        {"first": first, "last": last, "tokens": len(counts)} | _counted(counts)
        for (first, last), counts in sorted(bins.items())
    ]


def _progress(rows: Sequence[Row]) -> list[dict[str, Any]]:
    found = []
    for number in sorted({row["number"] for row in rows}):
        own = [row for row in rows if row["number"] == number]
        metrics = metrics_of(own)
        found.append(
            {
                "number": number,
                "conversation": own[0]["conversation"],
                "requests": metrics["requests"],
                "completion_tokens": metrics["completion_tokens"],
                "ttft_s": metrics["ttft_s"]["mean"],
                "tpot_s": metrics["tpot_s"]["mean"],
                "hit_rate": metrics["decode"]["hit_rate"],
                "covered_rate": metrics["decode"]["covered_rate"],
                "prefill_hit_rate": metrics["prefill"]["hit_rate"],
                "bytes_per_token": metrics["decode"]["bytes_per_token"],
                "stall_per_token_s": metrics["decode"]["stall_per_token_s"],
            }
        )
    return found


def _counted(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    total = {name: sum(one[name] for one in counts) for name in (*KINDS, "stall_s")}
    selections = sum(total[name] for name in KINDS)
    return {"selections": selections} | total | kind_rates(total, selections)


def _csv(lines: Iterable[Mapping[str, Any]]) -> str:
    written = list(lines)
    text = io.StringIO()
    if written:
        writer = csv.DictWriter(text, list(written[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)
    return text.getvalue()
