"""The monitor: what it shows of a board, and that it survives the engine's end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from offload.errors import BoardError
from offload.telemetry.frame import Frame
from tests.support.screens import Pictures, pictures, shown, until
from tests.support.synthetic import SyntheticEngine
from tests.support.terminal import Terminal
from ui.monitor import MonitorScreen
from ui.screens.experts import ExpertsScreen
from ui.watch import WatchApp

__all__ = ["pictures"]

ROOT = Path(__file__).parents[2]

Flow = Callable[[MonitorScreen, Pilot[Any], "Watched"], Awaitable[None]]


class Watched(SyntheticEngine):
    """An engine that can end, or leave a board that cannot be read."""

    lives = True
    readable = True

    def alive(self) -> bool:
        return self.lives

    def frame(self) -> Frame:
        if not self.readable:
            raise BoardError("nothing whole can be read")
        return super().frame()


def watch(flow: Flow, size: tuple[int, int] = (120, 40), **options: Any) -> None:
    async def run() -> None:
        engine = Watched(12, 16, 2)
        engine.ask()
        for token in range(20):
            engine.token(token)
        screen = MonitorScreen(engine, **options)
        app = WatchApp(screen)
        app.animation_level = "none"
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await flow(screen, pilot, engine)

    asyncio.run(run())


def test_it_follows_and_keeps_the_last_picture() -> None:
    async def flow(monitor: MonitorScreen, pilot: Pilot[Any], engine: Watched) -> None:
        await until(pilot, lambda: "finemoe chat · demo · cpu · process 4321" in shown(pilot.app), "who is watched")
        for token in range(30):
            engine.token(token)
        monitor.look()
        await until(pilot, lambda: "answering" in shown(pilot.app), "what it does")
        assert len(monitor.history.records) == 50
        engine.token(1)
        engine.lives = False
        monitor.look()
        await until(pilot, lambda: "has ended" in shown(pilot.app), "that it has ended")
        assert monitor.history.latest is not None
        assert monitor.history.latest.tokens == 51  # the last thing that was published
        before = shown(pilot.app)
        monitor.look()
        await pilot.pause()
        assert shown(pilot.app) == before
        assert "experts" in before

    watch(flow)


def test_a_board_that_cannot_be_read_any_more_has_ended() -> None:
    async def flow(monitor: MonitorScreen, pilot: Pilot[Any], engine: Watched) -> None:
        engine.readable = False
        monitor.look()
        await until(pilot, lambda: "has ended" in shown(pilot.app), "that it has ended")

    watch(flow)


def test_keys() -> None:
    async def flow(monitor: MonitorScreen, pilot: Pilot[Any], engine: Watched) -> None:
        await pilot.press("f2")
        await until(pilot, lambda: "hits" in shown(pilot.app), "three lines")
        await pilot.press("f2")
        await until(pilot, lambda: "experts" in shown(pilot.app), "all panes")
        await pilot.press("f3")
        await until(pilot, lambda: isinstance(pilot.app.screen, ExpertsScreen), "experts")
        monitor.look()  # goes on underneath
        await pilot.press("escape", "f5")
        assert monitor.panes.freeze
        await pilot.press("q")
        await until(pilot, lambda: pilot.app._exit, "the end")

    watch(flow)


@pytest.mark.parametrize("size", [(120, 40), (80, 24), (60, 20), (60, 8)])
def test_pictures(pictures: Pictures, size: tuple[int, int]) -> None:
    async def flow(monitor: MonitorScreen, pilot: Pilot[Any], engine: Watched) -> None:
        wanted = "answering" if size[1] < 12 else "experts"
        await until(pilot, lambda: wanted in shown(pilot.app), wanted)
        pictures.check(f"monitor-{size[0]}x{size[1]}", shown(pilot.app))

    watch(flow, size)


WRITER = """
import sys, time
from pathlib import Path
from tests.offload.service.boards import FakeEngine

engine = FakeEngine(layers=4, experts=8, top_k=2, pid=77)
with engine.published(Path(sys.argv[1])) as writer:
    print(writer.path, flush=True)
    for number in range(10**9):
        engine.counters.uses += 1
        engine.decode(writer, 1, number)
        time.sleep(0.02)
"""


def test_a_real_board_on_a_real_terminal_outlives_its_killed_writer(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as writer:
        assert writer.stdout is not None
        board = writer.stdout.readline().strip()
        program = f"import sys, pathlib, ui.monitor; sys.exit(ui.monitor.run_monitor(pathlib.Path({board!r})))"
        with Terminal([sys.executable, "-c", program], environment, (120, 40)) as terminal:
            terminal.sees("process 77", "answering", "of 32 resident")
            writer.kill()
            writer.wait()
            terminal.sees("has ended", "of 32 resident")
            terminal.type("q")
            assert terminal.ended() == 0
