"""For tests of the user interface."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.chat_app import RunChat


@pytest.fixture
def run_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunChat:
    """Runs a chat with nothing configured, in an empty folder."""
    for name in list(os.environ):
        if name.startswith("FINEMOE_") or name in ("NO_COLOR", "EDITOR", "VISUAL"):
            monkeypatch.delenv(name)
    for kind in ("config", "cache", "data"):
        monkeypatch.setenv(f"FINEMOE_{kind.upper()}_DIR", str(tmp_path / kind))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return RunChat(tmp_path)
