"""Pictures of screens as text, compared with those that are kept.

A picture is ``NAME.txt`` in the folder ``pictures`` beside the test. With ``FINEMOE_TEST_UPDATE=1`` in the
environment they are written instead of compared: look at the difference before it is committed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.color import Color
from textual.pilot import Pilot

UPDATE = os.environ.get("FINEMOE_TEST_UPDATE") == "1"

_PATIENCE_S = 20.0


def shown(app: App[Any]) -> str:
    """All that is on the terminal, as text without spaces at the ends of lines."""
    strips = app.screen._compositor.render_strips()
    return "".join(f"{strip.text.rstrip()}\n" for strip in strips)


def colours(app: App[Any]) -> list[list[tuple[str, str]]]:
    """Foreground and background, as ``#rrggbb``, of every cell of the terminal, line by line."""
    lines = []
    for strip in app.screen._compositor.render_strips():
        line: list[tuple[str, str]] = []
        for text, style, _ in strip:
            pair = ("", "")
            if style is not None:
                pair = (_hex(style.color), _hex(style.bgcolor))
            line += [pair] * len(text)
        lines.append(line)
    return lines


def painted(app: App[Any]) -> str:
    """The terminal's colours in short: a letter for each pair of them, and what the letters mean."""
    letters: dict[tuple[str, str], str] = {}
    rows = []
    for line in colours(app):
        row = "".join(letters.setdefault(pair, _letter(len(letters))) for pair in line)
        rows.append(row.rstrip())
    meaning = [f"{letter} {fore or '-'} on {back or '-'}" for (fore, back), letter in letters.items()]
    return "\n".join([*rows, *meaning]) + "\n"


async def until(pilot: Pilot[Any], happened: Callable[[], Any], what: str = "") -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + _PATIENCE_S
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError(f"it never happened: {what}\n{shown(pilot.app)}")
        await pilot.pause(0.01)
    await pilot.pause()


class Pictures:
    """Compares texts with those kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, name: str, picture: str) -> None:
        """Fails where ``picture`` is not the one kept under ``name``."""
        path = self.folder / f"{name}.txt"
        if UPDATE:
            self.folder.mkdir(exist_ok=True)
            path.write_text(picture, encoding="utf-8")
        assert path.is_file(), f"there is no picture {path.name}: run with FINEMOE_TEST_UPDATE=1"
        assert picture == path.read_text(encoding="utf-8"), f"{path.name} looks otherwise"


@pytest.fixture
def pictures(request: pytest.FixtureRequest) -> Pictures:
    """The pictures beside the test that asks."""
    return Pictures(request.path.parent / "pictures")


def _letter(number: int) -> str:
    """``A``, ``B`` and so on; behind ASCII it goes on with what can be read too."""
    return chr(ord("A") + number) if number < 58 else chr(0x100 + number)


def _hex(colour: Any) -> str:
    return "" if colour is None or colour.is_default else Color.from_rich_color(colour).hex.lower()
