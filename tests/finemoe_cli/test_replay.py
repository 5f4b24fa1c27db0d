"""``finemoe replay`` without a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from profiles.paths import CONFIG_VARIABLE
from tests.support.recordings import FOLDER
from tests.support.terminal import Terminal
from ui.recording.recorder import SUFFIX

FILE = FOLDER / f"cpu{SUFFIX}"


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "finemoe_cli", "replay", *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_it_prints_the_conversation_and_what_it_adds_up_to() -> None:
    done = replay(str(FILE))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("user: Name three rivers.\n\nassistant: Three rivers:\n")
    assert done.stdout.splitlines()[-1].startswith("0:05 · demo · 2 replies · 80 tokens · hit ")


def test_json() -> None:
    done = replay(str(FILE), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    numbers = json.loads(done.stdout)
    assert (numbers["tokens"], numbers["complete"]) == (80, True)


def test_a_recording_that_was_cut_off(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(FILE.read_bytes()[:-200])
    done = replay(str(part))
    assert done.returncode == 0
    assert "was not ended as it should be" in done.stderr
    assert "Danube" in done.stdout
    assert json.loads(replay(str(part), "--json").stdout)["complete"] is False


def test_what_cannot_be_played(tmp_path: Path) -> None:
    assert replay(str(tmp_path / "nowhere")).returncode == 3
    other = tmp_path / "other"
    other.write_text("a text")
    done = replay(str(other))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "is not a recording" in done.stderr
    done = replay(str(FILE), "--speed", "3")
    assert done.returncode == 2
    assert "0.25, 0.5, 1, 2, 4, 8, 16" in done.stderr


def test_on_a_terminal(tmp_path: Path) -> None:
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1", CONFIG_VARIABLE: str(tmp_path)}
    command = [sys.executable, "-m", "finemoe_cli", "replay", str(FILE), "--speed", "16", "--at", "1"]
    with Terminal(command, environment, (120, 40)) as terminal:
        terminal.sees("Name three rivers.", "experts", "Why is the sky blue?", "ended   16x")
        for signum, said in ((signal.SIGSTOP, "are held"), (signal.SIGTSTP, "go on"), (signal.SIGSTOP, "are held")):
            terminal.stopped(signum)
            terminal.sees("Name three rivers.", "experts", "ended   16x")
            terminal.press("f5")
            terminal.sees(f"the panes {said}")
        terminal.type("q")
        assert terminal.ended() == 0
