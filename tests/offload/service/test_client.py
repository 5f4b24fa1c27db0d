"""Driving an engine in a process of its own: commands, tokens and errors over real pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from offload.config import Sampling
from offload.service.board import BoardReader
from offload.service.client import EngineClient
from offload.service.messages import Changed, Counted, Done, Failed, Open, Progress, Started, Text
from offload.telemetry.frame import DECODE, IDLE
from tests.offload.service.listening import HELLO, LONG, ROOT, Listening, config, until

NOISE = """
import os, sys, threading, time

def shout():
    while True:
        print("this is no event")
        os.write(1, b"and neither is this" * 1000 + b"\\n")

if "offload.service.host" in " ".join(sys.orig_argv):
    import signal
    real = signal.signal
    def later(*arguments):
        signal.signal = real
        threading.Timer(0.1, shout).start()
        return real(*arguments)
    signal.signal = later  # the first that it does
"""


def test_a_model_is_opened(running: Listening) -> None:
    ready = running.ready
    assert (ready.model, ready.device, ready.kernels, ready.policy) == ("tiny", "cpu", "reference", "auto")
    assert ready.slots == 12 and ready.context == 4096 and ready.budget_bytes > 0
    if running.events:
        assert all(event.number == ready.number for event in running.events)
        assert {event.stage for event in running.events if isinstance(event, Progress)} >= {"load"}


def test_a_conversation(running: Listening) -> None:
    client, listening = running.client, running
    with BoardReader(Path(running.ready.board)) as board:
        before, requests, counts = board.next_record, board.frame().requests, board.frame().tally.sum(axis=(1, 2))
        first = client.chat(HELLO, Sampling(max_new_tokens=30, temperature=0))
        second = client.chat(HELLO, Sampling(max_new_tokens=5, temperature=0))
        done = listening.wait(Done, first)
        listening.wait(Done, second)
        texts = [event for event in listening.events if isinstance(event, Text) and event.number == first]
        assert "".join(text.text for text in texts) == done.completion["text"]
        assert [text.tokens for text in texts] == sorted(text.tokens for text in texts)
        assert 0 < texts[-1].tokens <= 30
        assert done.completion["completion_tokens"] == 30 and done.completion["finish_reason"] == "length"
        assert [event for event in listening.events if isinstance(event, Started)] == [
            Started(first, requests + 1, before),
            Started(second, requests + 2, before + 29),
        ]
        kinds = [type(event) for event in listening.events if event.number == first]
        assert kinds[0] is Started and kinds[-1] is Done

        until(lambda: board.next_record == before + 33 and board.frame().tokens == before + 33)
        records = board.records(before)
        assert [record.request for record in records] == [requests + 1] * 29 + [requests + 2] * 4
        assert [record.token_id for record in records[:29]] == done.completion["token_ids"][:-1]
        until(lambda: board.frame().phase == IDLE)
        frame = board.frame()
        assert (frame.requests, frame.profile, frame.facts.command) == (requests + 2, "low", "chat")
        assert frame.facts.pid == client.pid and frame.facts.model == "tiny"
        assert int(frame.tally[1].sum() - counts[1]) == 33 * 3 * 2
        assert int(frame.uses.sum()) == int(frame.tally.sum())
        # A read ahead may have come in after the last token.
        assert 0 < records[-1].resident <= (frame.state == 2).sum() <= frame.memory.slots == 12
        assert frame.host.total_bytes and frame.memory.rss_bytes > 0


def test_the_middle_of_an_answer(running: Listening) -> None:
    client, listening, ready = running.client, running, running.ready
    with BoardReader(Path(ready.board)) as board:
        chat = client.chat(HELLO, LONG)
        until(lambda: board.frame().phase == DECODE)
        changed = listening.wait(Changed, client.set_budget(experts_fraction=1.0, profile="resident"))
        assert (changed.slots, changed.profile) == (24, "resident") and changed.budget_bytes > ready.budget_bytes
        changed = listening.wait(Changed, client.set_policy("demand"))
        assert changed.policy == "demand"
        refused = listening.wait(Failed, client.set_policy("magic"))
        assert refused.kind == "ConfigError" and not refused.fatal
        refused = listening.wait(Failed, client.set_budget(budget_bytes=1))
        assert refused.kind == "BudgetTooSmall"
        counted = listening.wait(Counted, client.count_tokens([HELLO, [*HELLO, *HELLO]]))
        assert 0 < counted.tokens[0] < counted.tokens[1]
        assert not [event for event in listening.events if isinstance(event, Done)]
        client.stop()
        done = listening.wait(Done, chat)
        assert done.completion["finish_reason"] == "stopped"
        assert done.completion["text"] == "".join(e.text for e in listening.events if isinstance(e, Text))
        until(lambda: {mark.kind for mark in board.frame().marks} >= {"request", "budget", "policy"})
        assert board.frame().profile == "resident"
        listening.wait(Changed, client.reset_stats())
        until(lambda: board.frame().marks[-1].kind == "reset")
        assert board.frame().tally.sum() == 0


def test_a_stop_reaches_an_answer_that_has_not_begun(running: Listening) -> None:
    listening = running
    numbers = [listening.client.chat(HELLO, LONG) for _ in range(3)]
    listening.client.stop()
    after = listening.client.chat(HELLO, Sampling(max_new_tokens=3, temperature=0))
    assert listening.wait(Done, after).completion["finish_reason"] == "length"
    for number in numbers:
        assert listening.wait(Done, number).completion["finish_reason"] == "stopped"


def test_a_failure_leaves_the_engine_as_it_was(running: Listening, model: Path) -> None:
    client, listening = running.client, running
    assert listening.wait(Failed, client.open(config(model))).message == "a model is open already"
    failed = listening.wait(Failed, client.chat([{"role": "user", "content": "x" * 5000}]))
    assert failed.kind == "ContextOverflow" and failed.hint and not failed.fatal
    strange = [{"role": "user", "content": "a\u2028b\n\udc80 \U0001f600"}]
    assert (
        listening.wait(Done, client.chat(strange, Sampling(max_new_tokens=2))).completion["completion_tokens"] == 2
    )


def test_without_a_model_it_waits_for_one(listening: Listening, tmp_path: Path) -> None:
    client = listening.client
    client.start()
    failed = listening.wait(Failed, client.chat(HELLO))
    assert failed.message == "no model is open" and not failed.fatal
    failed = listening.wait(Failed, client._send(Open(50, {"model": str(tmp_path), "policy": "magic"})))
    assert failed.kind == "ConfigError" and not failed.fatal
    failed = listening.wait(Failed, client.set_policy("demand"))
    assert failed.message == "no model is open"


@pytest.mark.parametrize("debug", ["", "1"])
def test_an_unexpected_error_is_fatal_and_told_in_one_line(
    tmp_path: Path, debug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = EngineClient({**os.environ, "FINEMOE_DEBUG": debug}, tmp_path / "log", tmp_path / "boards")
    listening = Listening(client)
    client.start()
    number = client._send(Open(7, {"nonsense": "\n"}))
    failed = listening.wait(Failed, number)
    assert failed.fatal and failed.kind == "TypeError" and failed.message.startswith("unexpected TypeError: ")
    assert "\n" not in failed.message
    assert listening.wait_for_death() == failed.message
    assert ("Traceback" in (tmp_path / "log").read_text()) == bool(debug)


def test_what_is_no_command_ends_it(listening: Listening) -> None:
    listening.client.start()
    listening.client._send(Started(1, 2, 3))  # type: ignore[arg-type]
    assert listening.wait(Failed).fatal


def test_nothing_that_is_printed_spoils_the_events(tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.mkdir()
    (noise / "sitecustomize.py").write_text(NOISE)
    log = tmp_path / "engine.log"
    client = EngineClient({**os.environ, "PYTHONPATH": str(noise)}, log, tmp_path / "boards")
    listening = Listening(client)
    try:
        client.start()
        until(lambda: log.with_name("engine.log.old").exists())
        assert listening.wait(Failed, client.chat(HELLO)).message == "no model is open"
        assert log.with_name("engine.log.old").stat().st_size < 2 << 20
    finally:
        client.close()
    assert listening.deaths == [] and len(listening.events) == 1


def test_watching_and_driving_import_nothing_heavy() -> None:
    script = (
        "import sys\nimport offload.service.messages, offload.service.client\n"
        "assert 'numpy' not in sys.modules\nimport offload.service.board\n"
        "print(*{'torch', 'transformers', 'numba', 'accelerate'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "\n"
