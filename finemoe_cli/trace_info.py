"""What ``finemoe trace info`` says of a trace; ``docs/traces.md`` defines every field."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from offload.trace.file import Trace
from offload.trace.statistics import routing_statistics
from offload.units import format_bytes


def trace_info(trace: Trace, *, routing: bool) -> dict[str, Any]:
    """All there is to say, as JSON has it.

    Args:
        routing: Read every request for statistics; otherwise ``routing`` is None.

    Raises:
        TraceError: A request is damaged.
    """
    model = trace.model
    return {
        "path": str(trace.path),
        "bytes": trace.path.stat().st_size,
        "warning": trace.warning,
        "model": {
            "name": model.name,
            "fingerprint": model.fingerprint,
            "layers": model.layers,
            "experts": model.experts,
            "top_k": model.top_k,
            "hidden": model.hidden,
            "slot_bytes": model.slot_bytes,
            "routers": model.routers is not None,
        },
        "recorded": asdict(trace.header),
        "requests": len(trace),
        "prompt_tokens": sum(entry.prompt_tokens for entry in trace.entries),
        "decoded_tokens": sum(entry.decoded_tokens for entry in trace.entries),
        "routing": asdict(routing_statistics(model, trace)) if routing else None,
    }


def trace_table(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for readers: names and what is to say of each."""
    model, recorded, routing = facts["model"], facts["recorded"], facts["routing"]
    kept = [
        word
        for word, name in (("residuals", "residuals"), ("prompt residuals", "prompt_residuals"))
        if recorded[name]
    ]
    run = (
        f"policy {recorded['policy']}, {recorded['slots']:,} experts resident, {recorded['kernels']} kernels, "
        f"{recorded['precision']}"
    )
    rows = [
        ("trace", f"{facts['path']}, {format_bytes(facts['bytes'])}"),
        ("model", f"{model['name']}, {model['layers']} layers of {model['experts']} experts, top {model['top_k']}"),
        ("recorded", f"{recorded['created']}, {run}"),
        ("prompts", recorded["dataset"]),
        ("kept", ", ".join(["routers"] * model["routers"] + ["probabilities", *kept])),
        ("requests", f"{facts['requests']:,}"),
        ("tokens", f"{facts['prompt_tokens']:,} of prompts, {facts['decoded_tokens']:,} decoded"),
    ]
    if routing is None or not routing["tokens"]:
        return rows
    total = model["layers"] * model["experts"]
    top = "  ".join(f"{each['layer']}:{each['expert']} {each['share']:.1%}" for each in routing["top"])
    persistence = (
        "not known"
        if routing["persistence"] is None
        else f"{routing['persistence']:.1%} of a token's experts were the last one's too"
    )
    return [
        *rows,
        ("entropy", f"{routing['entropy']:.2f} of {routing['entropy_max']:.2f} nats"),
        ("persistence", persistence),
        ("margin", f"{routing['margin']:.4f} between the last expert chosen and the first left out"),
        ("chosen", f"{routing['chosen_mass']:.1%} of the probability"),
        (
            "experts",
            f"{routing['used']:,} of {total:,} were used; half of the uses went to {routing['half_of_uses']:.1%}",
        ),
        ("token", f"{1e3 * routing['token_s']:.1f} ms, {1e3 * routing['stall_s']:.1f} ms of it waiting"),
        ("reads", f"{routing['reads']:.1f} experts a token"),
        ("top experts", f"{top}  (layer:expert, share of its layer)"),
    ]
