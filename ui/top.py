"""A running engine's counters as plain values and as a table: what ``finemoe top`` prints without a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from offload.memory.residency import RESIDENT
from offload.telemetry.counters import LayerCounts, Phase, phase_counts
from offload.telemetry.frame import DECODE, Frame, TokenRecord
from offload.units import MIB, format_bytes
from ui.text import many

PHASES = ("idle", "prefill", "decode", "loading")
"""Names of `Frame.phase`."""

WINDOW_S = 1.0
"""The speed of a running answer is that of so many last seconds."""

Numbers = Mapping[str, Any]
_WORST = 3


def top_numbers(frame: Frame, records: Sequence[TokenRecord]) -> dict[str, Any]:
    """Everything as plain values, for JSON; docs/telemetry.md defines each.

    ``records`` are the latest, of which those of the last request count.
    """
    experts = {phase.name.lower(): phase_counts(frame, phase) for phase in Phase}
    return {
        "facts": asdict(frame.facts),
        "time_s": frame.time_s,
        "phase": PHASES[frame.phase],
        "policy": frame.policy,
        "profile": frame.profile,
        "prefetching": frame.prefetching,
        "note": frame.note,
        "requests": frame.requests,
        "tokens": frame.tokens,
        "ttft_s": frame.ttft_s,
        "tokens_per_s": tokens_per_s(records, running=frame.phase == DECODE),
        "last_token_s": frame.last_token_s or None,
        "experts": {name: counts.to_dict() for name, counts in experts.items()},
        "prefill_layers": asdict(_layer_counts(frame, Phase.PREFILL)),
        "decode_layers": asdict(_layer_counts(frame, Phase.DECODE)),
        "resident": int(np.count_nonzero(frame.state == RESIDENT)),
        "queued": frame.queued,
        "reading": frame.reading,
        "memory": asdict(frame.memory),
        "host": asdict(frame.host),
        "gpu": None if frame.gpu is None else asdict(frame.gpu),
        "marks": [asdict(mark) for mark in frame.marks],
    }


def tokens_per_s(records: Sequence[TokenRecord], *, running: bool) -> float | None:
    """Decoded tokens a second of the last request: of its last second while it runs, afterwards of all of it."""
    if not records:
        return None
    times = [record.time_s for record in records if record.request == records[-1].request]
    if running:
        recent = [time for time in times if time >= times[-1] - WINDOW_S]
        times = recent if len(recent) > 1 else times[-2:]  # a model may take longer than that for one token
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return (len(times) - 1) / (times[-1] - times[0])


def top_table(numbers: Numbers) -> Table:
    """A table of two columns: what, and how much."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="note", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in top_rows(numbers):
        table.add_row(name, Text(value))
    return table


def top_rows(numbers: Numbers) -> list[tuple[str, str]]:
    """The rows of :func:`top_table`."""
    facts: Numbers = numbers["facts"]
    rows = [
        ("process", _join(f"{facts['pid']}", f"finemoe {facts['command']}", facts["model"], facts["device"])),
        (
            "phase",
            _join(numbers["phase"], many(numbers["requests"], "request"), many(numbers["tokens"], "token")),
        ),
        ("speed", _speed(numbers)),
    ]
    a_pass = facts["layers"] * facts["top_k"]  # selections of a decoded token
    for phase in ("prefill", "decode"):
        counts: Numbers = numbers["experts"][phase]
        if counts["selections"]:
            rows.append((phase, _counts(counts)))
            rows.append(("", _cost(counts, counts["selections"] / a_pass if phase == "decode" else None)))
    rows.append(("worst layers", _worst_layers(numbers["decode_layers"])))
    rows += [("memory", _memory(numbers)), ("host", _host(numbers["host"])), ("GPU", _gpu(numbers["gpu"]))]
    rows.append(("policy", _policy(numbers)))
    if numbers["marks"]:
        rows.append(("last", numbers["marks"][-1]["text"]))
    return [(name, value) for name, value in rows if value]


def _layer_counts(frame: Frame, phase: Phase) -> LayerCounts:
    resident, prefetched, late, missed = (tuple(row.tolist()) for row in frame.tally[phase])
    return LayerCounts(resident, prefetched, late, missed, tuple((frame.stall_ns[phase] / 1e9).tolist()))


def _speed(numbers: Numbers) -> str:
    return _join(
        _number(numbers["tokens_per_s"], "{:.1f} tok/s"),
        _number(numbers["ttft_s"], "TTFT {:.2f} s"),
        f"{numbers['queued']} reads queued" if numbers["queued"] else "",
        f"{numbers['reading']} under way" if numbers["reading"] else "",
    )


def _counts(counts: Numbers) -> str:
    kinds = (f"{counts[kind]:,} {kind}" for kind in ("resident", "prefetched", "late", "missed") if counts[kind])
    return _join(f"hit {counts['hit_rate']:.1%}", *kinds)


def _cost(counts: Numbers, passes: float | None) -> str:
    read = counts["bytes_demand"] + counts["bytes_prefetch"]
    if passes is None:
        cost = (f"{format_bytes(read)} read", f"stall {counts['stall_s']:.2f} s")
    else:
        cost = (f"{read / MIB / passes:.2f} MiB/token", f"stall {counts['stall_s'] * 1000 / passes:.1f} ms/token")
    wasted = counts["bytes_prefetch_wasted"]
    return _join(*cost, f"{counts['evictions']:,} evicted", f"{format_bytes(wasted)} wasted" if wasted else "")


def _worst_layers(layers: Numbers) -> str:
    """The layers with the lowest hit rates of decoding, of those that missed at all."""
    rates = []
    for layer, kinds in enumerate(
        zip(layers["resident"], layers["prefetched"], layers["late"], layers["missed"], strict=True)
    ):
        if sum(kinds) and kinds[2] + kinds[3]:
            rates.append(((kinds[0] + kinds[1]) / sum(kinds), layer))
    return _join(*(f"{layer}: hit {rate:.1%}" for rate, layer in sorted(rates)[:_WORST]))


def _memory(numbers: Numbers) -> str:
    memory: Numbers = numbers["memory"]
    now, budget = memory["rss_bytes"], memory["budget_bytes"]
    return _join(
        f"{format_bytes(now)} of {format_bytes(budget)} ({now / budget:.0%})" if budget else format_bytes(now),
        f"peak {format_bytes(memory['peak_bytes'])}",
        f"{numbers['resident']} experts in {memory['slots']} slots",
    )


def _host(host: Numbers) -> str:
    parts = (("total_bytes", "{} in all"), ("available_bytes", "{} available"), ("limit_bytes", "limit {}"))
    return _join(*(form.format(format_bytes(host[name])) for name, form in parts if host[name] is not None))


def _gpu(gpu: Numbers | None) -> str:
    if gpu is None:
        return ""
    if gpu["used_bytes"] is None or gpu["total_bytes"] is None:
        return _join(gpu["name"] or "", gpu["reason"])
    used = f"{format_bytes(gpu['used_bytes'])} of {format_bytes(gpu['total_bytes'])} used"
    return _join(gpu["name"] or "", used)


def _policy(numbers: Numbers) -> str:
    return _join(
        numbers["policy"],
        "reads ahead" if numbers["prefetching"] else "",
        f"profile {numbers['profile']}" if numbers["profile"] else "",
        f"{numbers['facts']['kernels']} kernels",
        numbers["facts"]["precision"],
        numbers["note"],
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _join(*parts: str) -> str:
    return " · ".join(part for part in parts if part)
