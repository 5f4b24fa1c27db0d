"""A store of its own for every test, and other processes that use it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ui.sessions import SessionStore

ROOT = Path(__file__).parents[3]

HEAD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from offload.errors import StorageError
from ui.sessions import SessionStore
path = Path({path!r})
def say(*what):
    print(*what, flush=True)
"""

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is to be."""
    return tmp_path / "data" / "sessions.db"


@pytest.fixture
def store(path: Path) -> Iterator[SessionStore]:
    """An empty store."""
    with SessionStore.open(path) as store:
        yield store


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    """Starts Python in another process with ``SessionStore``, ``path`` and ``say``; it is killed at the end."""
    running: list[subprocess.Popen[str]] = []

    def begin(script: str) -> subprocess.Popen[str]:
        code = HEAD.format(root=str(ROOT), path=str(path)) + script
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()
