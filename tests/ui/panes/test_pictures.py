"""The panes as they look: on every size, dark and light, without colours, in ASCII."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import Static

from tests.support.screens import Pictures, colours, painted, shown, until
from tests.support.synthetic import SyntheticEngine, failing_gpu, steady_gpu
from tests.ui.panes.conftest import made_history
from ui.panes.column import LayoutMode, PaneColumn
from ui.panes.history import FrameHistory
from ui.panes.status_line import StatusLine
from ui.widgets.themes import THEMES

SIZES = {"120x40": (120, 40), "80x24": (80, 24), "60x20": (60, 20)}
MODES: tuple[LayoutMode, ...] = ("side", "full", "strip")


class PanesApp(App[None]):
    """Panes beside some text."""

    def __init__(
        self, history: FrameHistory, mode: LayoutMode, *, ascii: bool = False, light: bool = False
    ) -> None:
        super().__init__()
        self.history = history
        self.mode: LayoutMode = mode
        self.ascii = ascii
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = THEMES[1].name if light else THEMES[0].name

    def compose(self) -> ComposeResult:
        yield Static("chat")
        yield PaneColumn(self.mode, ascii=self.ascii)
        yield StatusLine(ascii=self.ascii)

    async def ready(self, pilot: Pilot[Any]) -> None:
        await pilot.pause()
        self.query_one(PaneColumn).show(self.history)
        self.query_one(StatusLine).show(self.history)
        await pilot.pause()
        wanted = "hits" if self.mode == "strip" else "experts" if self.mode in ("side", "full") else "chat"
        await until(pilot, lambda: wanted in shown(self), wanted)


Seen = dict[str, tuple[str, list[list[tuple[str, str]]]]]


def seen_everywhere(app: PanesApp) -> Seen:
    """Text and colours in all layouts on all sizes, by names such as ``side-80x24``."""

    async def run() -> Seen:
        pictures = {}
        async with app.run_test(size=SIZES["120x40"]) as pilot:
            await app.ready(pilot)
            column = app.query_one(PaneColumn)
            for size, (width, height) in SIZES.items():
                await pilot.resize_terminal(width, height)
                for mode in MODES:
                    column.layout_mode = mode
                    await pilot.pause()
                    await until(pilot, lambda mode=mode: settled(app, mode), mode)  # type: ignore[misc]
                    pictures[f"{mode}-{size}"] = (shown(app), colours(app))
        return pictures

    return asyncio.run(run())


def settled(app: PanesApp, mode: LayoutMode) -> bool:
    """Whether the screen shows a layout, and its panes their lines."""
    text = shown(app)
    return ("chat" in text) != (mode == "full") and ("experts" in text) == (mode != "strip")


def seen(app: PanesApp, size: tuple[int, int]) -> tuple[str, str]:
    """Text of an app that shows its history, and its colours in short."""

    async def run() -> tuple[str, str]:
        async with app.run_test(size=size) as pilot:
            await app.ready(pilot)
            return shown(app), painted(app)

    return asyncio.run(run())


def test_with_colours(history: FrameHistory, pictures: Pictures) -> None:
    dark, light = seen_everywhere(PanesApp(history, "side")), seen_everywhere(PanesApp(history, "side", light=True))
    for name, (text, cells) in dark.items():
        pictures.check(name, text)
        light_text, light_cells = light[name]
        assert light_text == text
        assert cells[-1][-1] != light_cells[-1][-1]


def test_without_colours(history: FrameHistory, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    for name, (text, cells) in seen_everywhere(PanesApp(history, "side")).items():
        pictures.check(f"{name}-no-colour", text)
        assert "▀" not in text  # two colours in one cell say nothing there
        used = {colour for line in cells for pair in line for colour in pair if colour}
        assert all(colour[1:3] == colour[3:5] == colour[5:7] for colour in used)


def test_in_ascii(history: FrameHistory, pictures: Pictures) -> None:
    for name, (text, _) in seen_everywhere(PanesApp(history, "side", ascii=True)).items():
        assert text.isascii()
        pictures.check(f"{name}-ascii", text)


@pytest.mark.parametrize("light", [False, True], ids=["dark", "light"])
def test_the_colours_themselves(pictures: Pictures, light: bool) -> None:
    history = made_history(SyntheticEngine(12, 16, 2), tokens=40)
    _, picture = seen(PanesApp(history, "side", light=light), SIZES["120x40"])
    pictures.check(f"colours-{'light' if light else 'dark'}", picture)


@pytest.mark.parametrize(("layers", "experts", "top_k"), [(30, 60, 4), (48, 128, 8), (32, 8, 2)])
def test_other_models_are_legible(pictures: Pictures, layers: int, experts: int, top_k: int) -> None:
    history = made_history(SyntheticEngine(layers, experts, top_k), tokens=6)
    text, _ = seen(PanesApp(history, "full"), SIZES["120x40"])
    pictures.check(f"full-{layers}x{experts}", text)


@pytest.mark.parametrize(("name", "gpu"), [("gpu", steady_gpu), ("gpu-lost", failing_gpu)])
def test_with_a_gpu(pictures: Pictures, name: str, gpu: Any) -> None:
    history = made_history(SyntheticEngine(12, 16, 2, gpu=gpu), tokens=60)
    text, _ = seen(PanesApp(history, "side"), SIZES["120x40"])
    assert ("the GPU is lost" in text) == (name == "gpu-lost")
    pictures.check(f"side-{name}", text)


def test_before_the_first_frame(pictures: Pictures) -> None:
    text, _ = seen(PanesApp(FrameHistory(), "side"), SIZES["120x40"])
    pictures.check("side-waiting", text)


def test_layouts_follow_each_other(history: FrameHistory) -> None:
    async def run() -> list[str]:
        app = PanesApp(history, "off")
        texts = []
        async with app.run_test(size=(120, 40)) as pilot:
            await app.ready(pilot)
            column = app.query_one(PaneColumn)
            for _ in column.MODES:
                await pilot.pause()
                texts.append(shown(app))
                column.cycle()
        return texts

    off, strip, side, full = asyncio.run(run())
    assert "experts" not in off
    assert "traffic" not in off
    assert "hits" in strip
    assert "experts" not in strip
    assert "chat" in side
    assert "experts" in side
    assert "experts" in full
    assert "chat" not in full


def test_frozen_panes_stay_as_they_are_even_when_resized() -> None:
    async def run() -> None:
        engine, history = SyntheticEngine(6, 8, 2), FrameHistory()
        for frame in engine.run(20):
            history.add(frame)
        app = PanesApp(history, "side")
        async with app.run_test(size=(120, 40)) as pilot:
            await app.ready(pilot)
            column = app.query_one(PaneColumn)

            def panes() -> list[str]:
                return [line[column.region.x :] for line in shown(app).splitlines()]

            column.freeze = True
            await pilot.pause()
            before = panes()
            for frame in engine.run(40):
                history.add(frame)
                column.show(history)
            await pilot.pause()
            assert panes() == before
            await pilot.resize_terminal(110, 40)
            await pilot.resize_terminal(120, 40)
            await until(pilot, lambda: panes() == before, "the same picture")
            column.freeze = False
            await until(pilot, lambda: panes() != before, "another picture")

    asyncio.run(run())


def test_the_oracle_shows_when_a_reply_is_over() -> None:
    async def run() -> None:
        engine, history = SyntheticEngine(6, 8, 2), FrameHistory()
        app = PanesApp(history, "side")
        async with app.run_test(size=(120, 40)) as pilot:
            for frame in engine.run(20):
                history.add(frame)
            history.add_records(engine.records(0))
            app.query_one(PaneColumn).show(history)
            await until(pilot, lambda: history.oracle is not None, "the oracle")
            app.query_one(PaneColumn).show(history)
            await until(pilot, lambda: "oracle" in shown(app), "the oracle's rate")

    asyncio.run(run())
