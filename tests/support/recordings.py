"""Recordings for tests, made of a synthetic engine: each has a conversation, telemetry and a change of budget.

``python -m tests.support.recordings`` writes those in ``tests/fixtures/recordings`` anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from offload.service.messages import Changed, Done, Ready, Started, Text
from offload.telemetry.counters import Kind
from offload.telemetry.frame import TokenRecord
from tests.support.synthetic import GpuProbe, SyntheticEngine, failing_gpu, no_gpu, steady_gpu
from ui.recording.recorder import SUFFIX, Recorder

FOLDER = Path(__file__).parents[1] / "fixtures" / "recordings"
KINDS: dict[str, GpuProbe] = {"cpu": no_gpu, "gpu": steady_gpu, "gpu-lost": failing_gpu}

QUESTIONS = (
    ("Name three rivers.", "Three rivers:\n\n1. The **Danube**\n2. The **Rhine**\n3. The **Elbe**\n"),
    ("Why is the sky blue?", "Air scatters *short* waves more than long ones, and blue light is short. "),
)
_WORDS = ("the", " river", " is", " long", " and", " blue", ",", " so", " it", " runs", " far", ".")


def record(path: Path, engine: SyntheticEngine, tokens: int = 40) -> SyntheticEngine:
    """Records two questions and answers of ``tokens`` tokens, with a smaller budget before the second."""
    recorder = Recorder(path, "rivers and skies", now=lambda: engine.time)
    facts = engine.facts
    recorder.event(
        Ready(1, facts.model, facts.device, facts.kernels, "finemoe", 2048, 1 << 30, engine.slots, "no board")
    )
    for number, (question, answer) in enumerate(QUESTIONS, 2):
        recorder.said("user", question)
        first = len(engine.all_records)
        looked, pieces = 0, answer.split(" ")
        for frame in engine.run(tokens):
            if frame.requests and not looked:
                recorder.event(Started(number, engine.requests, first))
            recorder.frame(frame)
            recorder.records(engine.records(first))
            due = min(len(pieces), looked + max(1, len(pieces) * 4 // tokens + 1)) if frame.requests else 0
            if due > looked:
                text = " ".join(pieces[looked:due]) + (" " if due < len(pieces) else "")
                recorder.event(Text(number, text, len(engine.all_records) - first))
                looked = due
        records = engine.records(first)
        recorder.event(Done(number, completion(answer, records, engine)))
        engine.rest(0.5)
        if number == 2:
            engine.set_slots(engine.slots // 2, "low")
            recorder.event(Changed(9, "finemoe", "low", 1 << 29, engine.slots))
    recorder.token_texts({record.token_id: _WORDS[record.token_id % len(_WORDS)] for record in engine.all_records})
    recorder.close()
    return engine


def completion(answer: str, records: Iterable[TokenRecord], engine: SyntheticEngine) -> dict[str, object]:
    """An answer's numbers, out of its records."""
    records = list(records)
    kinds = [int((record.kinds == kind).sum()) for record in records for kind in Kind]
    totals = [sum(kinds[kind::4]) for kind in Kind]
    seconds = sum(record.pass_ns for record in records) / 1e9
    return {
        "model": engine.facts.model,
        "text": answer,
        "completion_tokens": len(records) + 1,
        "tokens_per_s": len(records) / seconds,
        "tpot_s": seconds / len(records),
        "ttft_s": engine.ttft,
        "profile": engine.profile,
        "finish_reason": "stop",
        "memory": asdict(engine.frame().memory),
        "experts": {
            "decode": {
                "selections": sum(totals),
                "hit_rate": (totals[Kind.RESIDENT] + totals[Kind.PREFETCHED]) / sum(totals),
            }
        },
    }


def write_fixtures(folder: Path = FOLDER) -> None:
    """Writes one recording for each of `KINDS`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, gpu in KINDS.items():
        path = folder / f"{name}{SUFFIX}"
        path.unlink(missing_ok=True)
        record(path, SyntheticEngine(12, 16, 2, gpu=gpu))


if __name__ == "__main__":
    os.environ["TZ"] = "UTC"
    time.tzset()
    write_fixtures()
