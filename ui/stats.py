"""The numbers of one answer as a short table.

The dictionaries are those of ``Completion.to_dict()``; names and definitions are the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from offload.precision import BF16
from offload.units import MIB, format_bytes

Numbers = Mapping[str, Any]


def stats_table(completion: Numbers) -> Table:
    """A table of two columns: what, and how much."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="note", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in stats_rows(completion):
        table.add_row(name, Text(value))
    return table


def stats_rows(completion: Numbers) -> list[tuple[str, str]]:
    """The rows of :func:`stats_table`. What a completion does not have is left out."""
    passes = max(1, int(completion.get("completion_tokens") or 0) - 1)
    experts: Numbers = completion.get("experts") or {}
    rows = [("speed", _speed(completion)), ("tokens", _tokens(completion))]
    for phase in ("prefill", "decode"):
        counts: Numbers = experts.get(phase) or {}
        if counts.get("selections"):
            rows.append((phase, _phase(counts, passes if phase == "decode" else None)))
    rows += [("memory", _memory(completion.get("memory") or {})), ("setup", _setup(completion))]
    return [(name, value) for name, value in rows if value]


def status_line(completion: Numbers) -> str:
    """One line: ``118 tok · 10.2 tok/s · TTFT 0.84 s · hit 92 % · balanced``."""
    decode: Numbers = (completion.get("experts") or {}).get("decode") or {}
    parts = [
        f"{completion.get('completion_tokens', 0)} tok",
        _number(completion.get("tokens_per_s"), "{:.1f} tok/s"),
        _number(completion.get("ttft_s"), "TTFT {:.2f} s"),
        _number(decode.get("hit_rate"), "hit {:.0%}"),
        str(completion.get("profile") or ""),
    ]
    return " · ".join(part for part in parts if part)


def _speed(completion: Numbers) -> str:
    tpot = completion.get("tpot_s")
    return _join(
        _number(completion.get("tokens_per_s"), "{:.1f} tok/s"),
        _number(completion.get("ttft_s"), "TTFT {:.2f} s"),
        _number(tpot * 1000 if tpot else None, "TPOT {:.1f} ms"),
        _number(completion.get("e2e_s"), "{:.2f} s in all"),
    )


def _tokens(completion: Numbers) -> str:
    reason = completion.get("finish_reason")
    return _join(
        _number(completion.get("prompt_tokens"), "{} prompt"),
        _number(completion.get("completion_tokens"), "{} answer"),
        {"length": "cut at the limit", "stopped": "stopped"}.get(str(reason), ""),
    )


def _phase(counts: Numbers, passes: int | None) -> str:
    brought = (counts.get("bytes_demand") or 0) + (counts.get("bytes_prefetch") or 0)
    stall = counts.get("stall_s") or 0.0
    if passes is None:
        cost = (f"{format_bytes(brought)} read", f"stall {stall:.2f} s")
    else:
        cost = (f"{brought / MIB / passes:.2f} MiB/token", f"stall {stall * 1000 / passes:.1f} ms/token")
    parts = [f"hit {counts['hit_rate']:.1%}" if counts.get("hit_rate") is not None else ""]
    parts += [f"{counts[kind]} {kind}" for kind in ("resident", "prefetched", "late", "missed") if counts.get(kind)]
    return _join(*parts, *cost)


def _memory(memory: Numbers) -> str:
    budget, peak = memory.get("budget_bytes"), memory.get("peak_bytes")
    if peak is None:
        head = f"budget {format_bytes(budget)}" if budget else ""
    elif budget:
        head = f"peak {format_bytes(peak)} of {format_bytes(budget)} ({peak / budget:.0%})"
    else:
        head = f"peak {format_bytes(peak)}"
    arena = ""
    if memory.get("arena_bytes"):
        arena = f"experts {format_bytes(memory['arena_bytes'])}"
        if memory.get("slots"):
            arena += f" in {memory['slots']} slots"
    dense = f"dense {format_bytes(memory['dense_bytes'])}" if memory.get("dense_bytes") else ""
    cache = f"KV {format_bytes(memory['kv_bytes'])}" if memory.get("kv_bytes") else ""
    return _join(head, arena, dense, cache)


def _setup(completion: Numbers) -> str:
    io: Numbers = completion.get("io") or {}
    reads = ""
    if "direct" in io:
        reads = (
            "direct I/O" if io["direct"] else f"buffered reads ({io.get('direct_refused') or 'direct I/O refused'})"
        )
    if io.get("store") == "packed":
        reads += " of a pack"
    return _join(
        str(completion.get("model") or ""),
        f"profile {completion['profile']}" if completion.get("profile") else "",
        f"{completion['policy']} policy" if completion.get("policy") else "",
        f"{completion.get('kernels')} kernels" if completion.get("kernels") else "",
        str(completion["precision"]) if completion.get("precision", BF16) != BF16 else "",
        str(completion.get("device") or ""),
        _number(io.get("lanes"), "{} lane" if io.get("lanes") == 1 else "{} lanes"),
        reads,
    )


def _number(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def _join(*parts: str) -> str:
    return " · ".join(part for part in parts if part)
