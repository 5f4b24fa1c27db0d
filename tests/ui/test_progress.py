from __future__ import annotations

import io

from rich.console import Console

from ui.console import THEME, make_console
from ui.progress import StageProgress, Waiting


def test_a_log_gets_one_line_a_stage():
    log = io.StringIO()
    with StageProgress(make_console(log)) as progress:
        for done in range(5):
            progress("read", done, 4)
        progress("something new", 0, 0)
    assert log.getvalue() == "reading the source ...\nsomething new ...\n"


def test_a_log_can_be_spared():
    log = io.StringIO()
    with StageProgress(make_console(log), lines=False) as progress:
        progress("load", 0, 4)
    with Waiting(make_console(log), "reading the prompt"):
        pass
    assert log.getvalue() == ""


def test_a_terminal_gets_bars():
    screen = io.StringIO()
    with StageProgress(Console(file=screen, force_terminal=True, theme=THEME, width=100)) as progress:
        progress("read", 1, 4)
        progress("write", 4, 4)
    assert "reading the source" in screen.getvalue()
    assert "100%" in screen.getvalue()


def test_the_time_that_is_left_of_steps_that_take_minutes():
    now = [0.0]
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, theme=THEME, width=100, get_time=lambda: now[0])
    with StageProgress(console, eta=True) as progress:
        for done in range(3):
            progress("evaluate", done, 5)
            now[0] += 120
        progress._progress.refresh()
    assert "0:06:00" in screen.getvalue()


def test_waiting_can_be_stopped_early_and_twice():
    screen = io.StringIO()
    with Waiting(Console(file=screen, force_terminal=True, theme=THEME), "reading the prompt") as waiting:
        waiting.stop()
        shown = screen.getvalue()
        waiting.stop()
    assert "reading the prompt" in shown
    assert screen.getvalue() == shown
