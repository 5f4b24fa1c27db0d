"""What the chat needs of this machine: a model, an engine's process, its counters.

All of it comes after the chat's first picture, and so do the imports that it takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from offload.errors import PullError
from profiles.models import find_model, is_demo
from profiles.paths import boards_dir, cache_dir, ensure_folder
from ui.engine_link import EngineLink, Gone, Listener, Progress

if TYPE_CHECKING:
    from ui.source import TelemetrySource

_CHILD = "import sys; sys.path.append(sys.argv.pop(1)); from finemoe_cli.chatting import build; build()"


def make_link(listener: Listener) -> EngineLink:
    """An engine's process that tells ``listener`` what it says."""
    from offload.service.client import EngineClient

    client = EngineClient(os.environ, ensure_folder(cache_dir()) / "engine.log", boards_dir())
    client.events(listener, lambda reason: listener(Gone(reason)))
    return client


def open_board(path: str) -> TelemetrySource:
    """The counters of an engine, by the path that it said."""
    from offload.service.board import BoardReader

    return BoardReader(Path(path))


def have_model(name: str, progress: Progress) -> Path:
    """The folder of model ``name``; the demo is built first if it is not there, in a process of its own.

    Args:
        progress: Told how far that is. An exception that it raises ends it.

    Raises:
        ModelNotFound: There is no such model.
        ModelError: finemoe cannot run it.
        PullError: The demo could not be built.
    """
    from finemoe_cli.models import demo_is_there
    from offload.models.spec import read_spec

    folder = find_model(name)
    if is_demo(name) and not demo_is_there(folder):
        _build_apart(progress)
    read_spec(folder)
    return folder


def build() -> None:
    """Builds the demo and says how far it is: a JSON object a line. Runs in a process of its own."""
    from offload.errors import FinemoeError
    from offload.models.demo import build_demo
    from profiles.models import demo_folder
    from profiles.paths import models_dir

    def say(**values: object) -> None:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()

    try:
        ensure_folder(models_dir())
        build_demo(demo_folder(), progress=lambda stage, done, total: say(stage=stage, done=done, total=total))
    except FinemoeError as error:
        say(error=error.message, hint=error.hint)
        sys.exit(1)


def _build_apart(progress: Progress) -> None:
    # A session of its own: Ctrl-C is for the chat, which ends this one itself.
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", _CHILD, str(Path(__file__).parents[1])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    assert child.stdout is not None
    last = ""
    try:
        for line in child.stdout:
            if not line.startswith("{"):
                last = line.strip() or last
                continue
            told = json.loads(line)
            if "error" in told:
                raise PullError(told["error"], told["hint"])
            progress(told["stage"], told["done"], told["total"])
        if child.wait():
            raise PullError(f"building the demo failed: {last or child.returncode}", "see: finemoe pull demo")
    finally:
        child.terminate()
        child.wait()
        child.stdout.close()
