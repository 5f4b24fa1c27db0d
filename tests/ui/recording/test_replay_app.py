"""The replay screen, driven by its keys and by a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.support.recordings import FOLDER
from tests.support.screens import Pictures, pictures, shown, until
from ui.recording.app import ReplayApp
from ui.recording.recorder import SUFFIX
from ui.recording.recording import Recording
from ui.recording.seek_bar import SeekBar
from ui.screens.experts import ExpertsScreen

__all__ = ["pictures"]

Flow = Callable[[ReplayApp, Pilot[Any]], Awaitable[None]]


def play(flow: Flow, name: str = "cpu", size: tuple[int, int] = (120, 40), **options: Any) -> None:
    """Runs ``flow`` in a replay that stands still: time passes by `ReplayApp.tick` alone."""

    async def run() -> None:
        app = ReplayApp(Recording.open(FOLDER / f"{name}{SUFFIX}"), **options)
        app.animation_level = "none"
        app.source.paused = True
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await flow(app, pilot)

    asyncio.run(run())


async def pass_time(app: ReplayApp, seconds: float) -> None:
    """Moves the recording on, whatever the clock on the wall does."""
    app.source.paused = False
    app.source.advance(seconds)
    app.source.paused = True
    await app.tick(1.0)


def test_the_conversation_comes_as_it_came() -> None:
    async def flow(app: ReplayApp, pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: "Name three rivers." in shown(app), "the question")
        assert "Danube" not in shown(app)
        await pass_time(app, 2.0)
        await until(pilot, lambda: "Danube" in shown(app), "the answer")
        assert "sky" not in shown(app)
        await pass_time(app, 9)
        await until(pilot, lambda: "Why is the sky blue?" in shown(app), "the next question")
        await until(pilot, lambda: "ended" in shown(app), "the end")
        assert app.history.total().tokens == 80

    play(flow)


@pytest.mark.parametrize(("size", "name"), [((120, 40), "replay-120x40"), ((80, 24), "replay-80x24")])
def test_pictures(pictures: Pictures, size: tuple[int, int], name: str) -> None:
    async def flow(app: ReplayApp, pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: "Air scatters" in shown(app), "the second answer")
        await until(pilot, lambda: "hit" in shown(app), "telemetry")
        app.query_one(SeekBar).redraw()
        await pilot.pause()
        pictures.check(name, shown(app))

    play(flow, size=size, at=4.0)


def test_picture_in_ascii_without_colour(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def flow(app: ReplayApp, pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: "Air scatters" in shown(app), "the second answer")
        assert shown(app).isascii()
        pictures.check("replay-ascii", shown(app))

    play(flow, at=4.0, ascii=True)


def test_keys() -> None:
    async def flow(app: ReplayApp, pilot: Pilot[Any]) -> None:
        source = app.source
        await pilot.press("space")
        await until(pilot, lambda: not source.paused, "it plays")
        await pilot.press("space")
        await until(pilot, lambda: source.paused, "it stands")
        await pilot.press("plus", "plus", "minus")
        assert source.speed == 2.0
        await pilot.press("right")
        await until(pilot, lambda: source.position >= 5, "five seconds on")
        await until(pilot, lambda: "Air scatters" in shown(app), "the second answer")
        await pilot.press("left")
        await until(pilot, lambda: source.position < 1, "five seconds back")
        await until(pilot, lambda: "Air scatters" not in shown(app), "the answer is taken back")
        await pilot.press("f3")
        await until(pilot, lambda: isinstance(app.screen, ExpertsScreen), "experts")
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, ExpertsScreen), "back")
        await pilot.press("f2")
        await until(pilot, lambda: app.panes.layout_mode == "full", "all panes")
        assert "Name three rivers." not in shown(app)
        await pilot.press("f2", "f2")
        await until(pilot, lambda: "Name three rivers." in shown(app), "the conversation again")
        await pilot.press("f5")
        assert app.panes.freeze
        await pilot.press("q")
        await until(pilot, lambda: not app.is_running or app._exit, "the end")

    play(flow)


def test_a_click_on_the_bar_goes_there() -> None:
    async def flow(app: ReplayApp, pilot: Pilot[Any]) -> None:
        bar = app.query_one(SeekBar)
        begin, columns = bar._bar
        await pilot.click(SeekBar, offset=(begin + 1 + columns // 2, 0))
        await until(pilot, lambda: app.source.position > 0, "a place")
        assert abs(app.source.position / app.source.recording.seconds - 0.5) < 0.05

    play(flow)


def test_it_begins_again_at_the_end() -> None:
    async def flow(app: ReplayApp, pilot: Pilot[Any]) -> None:
        await pilot.press("right", "right")
        await until(pilot, lambda: app.source.ended, "the end")
        await pilot.press("space")
        await until(pilot, lambda: not app.source.paused and not app.source.ended, "it plays again")

    play(flow)


def test_a_lost_gpu_shows_while_it_plays() -> None:
    async def flow(app: ReplayApp, pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: "80.0 GiB" in shown(app), "the GPU's memory")
        await pilot.press("right")
        await until(pilot, lambda: "the GPU is lost" in shown(app), "why it cannot be read")

    play(flow, "gpu-lost")
