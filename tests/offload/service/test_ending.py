"""Every way in which an engine's process, or whoever drives it, can end; with real ones."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from offload.errors import EngineBroken
from offload.service.client import EngineClient
from offload.service.messages import Failed, Ready, Text
from tests.offload.service.listening import HELLO, LONG, ROOT, Listening, config, gone, until

_TGKILL = {"x86_64": 234, "aarch64": 131}.get(platform.machine()) if sys.platform == "linux" else None


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


def test_ctrl_c_is_not_for_the_engine(listening: Listening) -> None:
    listening.client.start()
    pid = listening.client.pid
    assert pid is not None
    # Keys go to the group in the foreground. A session of its own would be another party to share processors with.
    assert (os.getpgid(pid), os.getsid(pid)) == (pid, os.getsid(0))


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
