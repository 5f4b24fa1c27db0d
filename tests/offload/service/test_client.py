"""The engine in a process of its own: real processes, real pipes, every way in which either can end."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from offload.config import EngineConfig, Sampling
from offload.errors import EngineBroken
from offload.service.board import BoardReader
from offload.service.client import EngineClient
from offload.service.messages import Changed, Counted, Done, Failed, Open, Progress, Ready, Started, Text
from offload.telemetry.frame import DECODE, IDLE
from tests.support.checkpoints import tiny_checkpoint
from tests.support.tokenizers import CHATML, CHATML_TOKENS, tiny_tokenizer

ROOT = Path(__file__).parents[3]
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
_TGKILL = {"x86_64": 234, "aarch64": 131}.get(platform.machine()) if sys.platform == "linux" else None
HELLO = [{"role": "user", "content": "Hello"}]
LONG = Sampling(max_new_tokens=4000, temperature=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that goes on talking: its tokenizer's end of text is no token that it could choose."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_checkpoint(folder, eos_token_id=None, max_position_embeddings=8192)
    return tiny_tokenizer(folder, special=CHATML_TOKENS, eos="<|endoftext|>", template=CHATML)


class Listening:
    """A client, and what came from it."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self.events: list[Any] = []
        self.deaths: list[str] = []
        self.ready: Any = None
        self._changed = threading.Condition()
        client.events(self._take, self._died)

    def _take(self, event: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def _died(self, reason: str) -> None:
        with self._changed:
            self.deaths.append(reason)
            self._changed.notify_all()

    def wait(self, kind: type[Any], number: int | None = None, count: int = 1) -> Any:
        """The first event of a kind, or as many as `count`."""
        found: list[Any] = []

        def there() -> bool:
            found[:] = [e for e in self.events if type(e) is kind and number in (None, e.number)]
            return len(found) >= count or bool(self.deaths)

        with self._changed:
            assert self._changed.wait_for(there, 120), self.events
        assert len(found) >= count, (self.deaths, self.events)
        return found[0] if count == 1 else found

    def wait_for_death(self) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: self.deaths, 60)
        return self.deaths[0]


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    """A client whose process has not been started."""
    client = EngineClient(os.environ, tmp_path / "logs" / "engine.log", tmp_path / "boards")
    yield Listening(client)
    client.kill()
    assert list((tmp_path / "boards").glob("*")) == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    folder = tmp_path_factory.mktemp("shared")
    listening = Listening(EngineClient(os.environ, folder / "engine.log", folder / "boards"))
    yield listening
    listening.client.close()
    assert list((folder / "boards").iterdir()) == []


@pytest.fixture
def running(shared: Listening, model: Path) -> Listening:
    """A client with the model open, shared by tests: opening takes seconds."""
    shared.deaths.clear()
    if not shared.client.alive:
        shared.client.start()
        shared.events.clear()
        shared.ready = shared.wait(Ready, shared.client.open(config(model), profile="low"))
    else:
        shared.wait(Changed, shared.client.set_budget(experts_fraction=0.5, profile="low"))
        shared.events.clear()
    return shared


def config(model: Path, **more: Any) -> EngineConfig:
    values = {"experts_fraction": 0.5, "kernels": "reference", "device": "cpu", "context": 4096, "lanes": 1}
    return EngineConfig(model=model, **(values | more))


def gone(pid: int | None) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


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
        assert (frame.state == 2).sum() == records[-1].resident
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


def test_a_killed_engine_is_told_of_and_can_be_started_again(running: Listening) -> None:
    client, board, pid = running.client, Path(running.ready.board), running.client.pid
    client.chat(HELLO, LONG)
    running.wait(Text)
    assert pid is not None and board.exists()
    os.kill(pid, signal.SIGKILL)
    reason = running.wait_for_death()
    assert reason == "the engine was killed by SIGKILL: out of memory?"
    assert client.died == reason and not client.alive
    assert gone(pid) and not board.exists()
    client.chat(HELLO)  # to nobody, and nobody is hurt
    client.stop()

    running.deaths.clear()
    ready = running.wait(Ready, client.restart())
    second = client.pid
    assert client.died == "" and second not in (None, pid) and Path(ready.board).exists()
    with pytest.raises(EngineBroken, match="runs already"):
        client.start()
    running.events.clear()
    client.chat(HELLO, LONG)
    running.wait(Text)
    client.close()  # in the middle of an answer
    assert gone(second) and not Path(ready.board).exists()
    assert running.deaths == [] and not client.alive
    client.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGSEGV])
def test_other_ends_have_other_reasons(listening: Listening, how: signal.Signals) -> None:
    client = listening.client
    with pytest.raises(EngineBroken, match="nothing was open"):
        client.restart()
    client.start()
    pid = client.pid
    listening.wait(Failed, client.chat(HELLO))
    assert pid is not None
    os.kill(pid, signal.SIGINT)  # Ctrl-C is not for it
    listening.wait(Failed, client.chat(HELLO))
    os.kill(pid, how)
    reason = listening.wait_for_death()
    assert (
        reason
        == {
            signal.SIGTERM: "the engine ended with status 0",
            signal.SIGSEGV: "the engine was killed by SIGSEGV",
        }[how]
    )
    assert gone(pid)


def test_a_stopped_process_blocks_nobody_and_can_be_killed(listening: Listening) -> None:
    listening.client.start()
    pid = listening.client.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    for _ in range(200):
        listening.client.count_tokens([[{"role": "user", "content": "x" * 10_000}]])
    listening.client.kill()
    assert gone(pid)


def test_a_process_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    client = EngineClient(os.environ, tmp_path / "file" / "engine.log", tmp_path)
    with pytest.raises(EngineBroken, match="cannot be started"):
        client.start()
    assert not client.alive


def test_what_it_said_last_is_the_reason(tmp_path: Path) -> None:
    client = EngineClient({**os.environ, "PYTHONHOME": "/nowhere"}, tmp_path / "log", tmp_path)
    listening = Listening(client)
    client.start()
    reason = listening.wait_for_death()
    assert reason.startswith("the engine ended with status 1: ")
    assert (tmp_path / "log").read_text()


DRIVER = """
import os, sys, threading
from pathlib import Path
from offload.config import EngineConfig, Sampling
from offload.service.client import EngineClient
from offload.service.messages import Failed, Ready, Text

model, folder, hold = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "hold"
client = EngineClient(os.environ, folder / "log", folder / "boards")
board, said = "-", threading.Event()

def tell(event):
    global board
    if isinstance(event, Ready):
        board = event.board
        client.chat([{"role": "user", "content": "Hello"}], Sampling(max_new_tokens=4000, temperature=0))
    if isinstance(event, (Text, Failed)):
        said.set()

client.events(tell)
client.start()
holder = 0
if hold:
    client.stop()
    client.chat([])
    holder = os.fork()  # has the other end of the pipe
    if not holder:
        threading.Event().wait()
else:
    client.open(EngineConfig(model=model, experts_fraction=0.5, kernels="reference", device="cpu", lanes=1))
said.wait()
print(client.pid, holder, board, flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("hold", [False, True], ids=["pipe closes", "another process holds the pipe"])
def test_the_engine_does_not_outlive_whoever_drives_it(model: Path, tmp_path: Path, hold: bool) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(model), str(tmp_path), "hold" if hold else ""],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert driver.stdout is not None
    pid, holder, board = driver.stdout.readline().split()
    try:
        assert not gone(int(pid))
        assert hold or Path(board).exists()
        driver.kill()
        driver.wait()
        until(lambda: gone(int(pid)))
        assert list((tmp_path / "boards").glob("*")) == []
        assert not hold or not gone(int(holder))
    finally:
        if hold:
            os.kill(int(holder), signal.SIGKILL)
        driver.stdout.close()


@pytest.mark.slow
def test_the_engine_takes_its_own_children_along(listening: Listening, model: Path, tmp_path: Path) -> None:
    # Compiling kernels is a child of the engine's, and takes half a minute.
    listening.client = client = EngineClient(
        {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kernels")}, tmp_path / "log", tmp_path / "boards"
    )
    client.start()
    client.open(config(model, kernels="fast"))
    assert client.pid is not None
    host = psutil.Process(client.pid)
    until(lambda: host.children())
    child = host.children()[0].pid
    client.close()
    assert gone(host.pid) and gone(child)


def test_watching_and_driving_import_nothing_heavy() -> None:
    script = (
        "import sys\nimport offload.service.messages, offload.service.client\n"
        "assert 'numpy' not in sys.modules\nimport offload.service.board\n"
        "print(*{'torch', 'transformers', 'numba', 'accelerate'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "\n"


@pytest.mark.skipif(_TGKILL is None, reason="it is not known here how to signal one thread of another process")
def test_a_signal_is_heard_on_whichever_thread(listening: Listening) -> None:
    client = listening.client
    client.start()
    listening.wait(Failed, client.chat(HELLO))
    pid = client.pid
    assert pid is not None
    # The main thread stays in its read, as it does where the signal comes just before that read begins.
    other = max(thread.id for thread in psutil.Process(pid).threads())
    assert other != pid
    assert ctypes.CDLL(None).syscall(_TGKILL, pid, other, int(signal.SIGTERM)) == 0
    assert listening.wait_for_death() == "the engine ended with status 0"
    assert gone(pid)
