"""The replay screen, driven by its keys and by a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.support.recordings import FOLDER
from tests.support.screens import Pictures, pictures, shown, until
from ui.recording.recorder import SUFFIX
from ui.recording.recording import Recording
from ui.recording.screen import ReplayScreen
from ui.recording.seek_bar import SeekBar
from ui.screens.experts import ExpertsScreen
from ui.watch import WatchApp

__all__ = ["pictures"]

Flow = Callable[[ReplayScreen, Pilot[Any]], Awaitable[None]]


def play(flow: Flow, name: str = "cpu", size: tuple[int, int] = (120, 40), **options: Any) -> None:
    """Runs ``flow`` in a replay that stands still: time passes by `ReplayScreen.tick` alone."""

    async def run() -> None:
        replay = ReplayScreen(Recording.open(FOLDER / f"{name}{SUFFIX}"), **options)
        replay.source.paused = True
        app = WatchApp(replay)
        app.animation_level = "none"
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await flow(replay, pilot)

    asyncio.run(run())


async def pass_time(replay: ReplayScreen, seconds: float) -> None:
    """Moves the recording on, whatever the clock on the wall does."""
    replay.source.paused = False
    replay.source.advance(seconds)
    replay.source.paused = True
    await replay.tick(1.0)


def test_the_conversation_comes_as_it_came() -> None:
    async def flow(replay: ReplayScreen, pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: "Name three rivers." in shown(pilot.app), "the question")
        assert "Danube" not in shown(pilot.app)
        await pass_time(replay, 2.0)
        await until(pilot, lambda: "Danube" in shown(pilot.app), "the answer")
        assert "sky" not in shown(pilot.app)
        await pass_time(replay, 9)
        await until(pilot, lambda: "Why is the sky blue?" in shown(pilot.app), "the next question")
        await until(pilot, lambda: "ended" in shown(pilot.app), "the end")
        assert replay.history.total().tokens == 80

    play(flow)


@pytest.mark.parametrize(("size", "name"), [((120, 40), "replay-120x40"), ((80, 24), "replay-80x24")])
def test_pictures(pictures: Pictures, size: tuple[int, int], name: str) -> None:
    async def flow(replay: ReplayScreen, pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: "Air scatters" in shown(pilot.app), "the second answer")
        await until(pilot, lambda: "hit" in shown(pilot.app), "telemetry")
        replay.query_one(SeekBar).redraw()
        await pilot.pause()
        pictures.check(name, shown(pilot.app))

    play(flow, size=size, at=4.0)


def test_picture_in_ascii_without_colour(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def flow(replay: ReplayScreen, pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: "Air scatters" in shown(pilot.app), "the second answer")
        assert shown(pilot.app).isascii()
        pictures.check("replay-ascii", shown(pilot.app))

    play(flow, at=4.0, ascii=True)


def test_keys() -> None:
    async def flow(replay: ReplayScreen, pilot: Pilot[Any]) -> None:
        source = replay.source
        await pilot.press("space")
        await until(pilot, lambda: not source.paused, "it plays")
        await pilot.press("space")
        await until(pilot, lambda: source.paused, "it stands")
        await pilot.press("plus", "plus", "minus")
        assert source.speed == 2.0
        await pilot.press("right")
        await until(pilot, lambda: source.position >= 5, "five seconds on")
        await until(pilot, lambda: "Air scatters" in shown(pilot.app), "the second answer")
        await pilot.press("left")
        await until(pilot, lambda: source.position < 1, "five seconds back")
        await until(pilot, lambda: "Air scatters" not in shown(pilot.app), "the answer is taken back")
        await pilot.press("f3")
        await until(pilot, lambda: isinstance(pilot.app.screen, ExpertsScreen), "experts")
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(pilot.app.screen, ExpertsScreen), "back")
        await pilot.press("f2")
        await until(pilot, lambda: replay.panes.layout_mode == "full", "all panes")
        assert "Name three rivers." not in shown(pilot.app)
        await pilot.press("f2", "f2")
        await until(pilot, lambda: "Name three rivers." in shown(pilot.app), "the conversation again")
        await pilot.press("f5")
        assert replay.panes.freeze
        await pilot.press("q")
        await until(pilot, lambda: pilot.app._exit, "the end")

    play(flow)


def test_a_click_on_the_bar_goes_there() -> None:
    async def flow(replay: ReplayScreen, pilot: Pilot[Any]) -> None:
        bar = replay.query_one(SeekBar)
        begin, columns = bar._bar
        await pilot.click(SeekBar, offset=(begin + 1 + columns // 2, 0))
        await until(pilot, lambda: replay.source.position > 0, "a place")
        assert abs(replay.source.position / replay.source.recording.seconds - 0.5) < 0.05

    play(flow)


def test_it_begins_again_at_the_end() -> None:
    async def flow(replay: ReplayScreen, pilot: Pilot[Any]) -> None:
        await pilot.press("right", "right")
        await until(pilot, lambda: replay.source.ended, "the end")
        await pilot.press("space")
        await until(pilot, lambda: not replay.source.paused and not replay.source.ended, "it plays again")

    play(flow)


def test_a_lost_gpu_shows_while_it_plays() -> None:
    async def flow(replay: ReplayScreen, pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: "80.0 GiB" in shown(pilot.app), "the GPU's memory")
        await pilot.press("right")
        await until(pilot, lambda: "the GPU is lost" in shown(pilot.app), "why it cannot be read")

    play(flow, "gpu-lost")
