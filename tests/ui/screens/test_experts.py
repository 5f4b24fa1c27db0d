"""The experts' screen: its list in every order, and stepping through the tokens of replies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from textual.app import App
from textual.pilot import Pilot

from offload.memory.residency import RESIDENT
from tests.support.screens import Pictures, pictures, shown, until
from tests.support.synthetic import SyntheticEngine
from ui.panes.expert_table import ExpertTable
from ui.panes.history import FrameHistory
from ui.screens.experts import ExpertsScreen
from ui.widgets.ascii import AsciiFilter
from ui.widgets.themes import THEMES

__all__ = ["pictures"]


class Opened:
    """The screen, and what it is of."""

    def __init__(self, app: App[None], pilot: Pilot[Any], engine: SyntheticEngine, history: FrameHistory) -> None:
        self.app, self.pilot, self.engine, self.history = app, pilot, engine, history

    @property
    def screen(self) -> ExpertsScreen:
        assert isinstance(self.app.screen, ExpertsScreen)
        return self.app.screen

    @property
    def table(self) -> ExpertTable:
        return self.screen.query_one(ExpertTable)

    async def sees(self, *texts: str) -> None:
        await until(self.pilot, lambda: all(text in shown(self.app) for text in texts), f"{texts}")

    def rows(self) -> list[int]:
        """Numbers of the experts in the list, from the top."""
        return [int(row) for row in self.table._rows if row >= 0]


Flow = Callable[[Opened], Awaitable[None]]


def opened(
    flow: Flow, size: tuple[int, int] = (120, 40), *, words: bool = True, light: bool = False, **options: Any
) -> None:
    """Runs ``flow`` on a screen of two replies of 12 tokens each."""

    async def run() -> None:
        engine, history = SyntheticEngine(8, 10, 2, slots=24), FrameHistory()
        for _ in range(2):
            for frame in engine.run(12):
                history.add(frame)
        history.add_records(engine.records(0))
        app: App[None] = App()
        app.animation_level = "none"
        for theme in THEMES:
            app.register_theme(theme)
        app.theme = THEMES[light].name
        if options.get("ascii"):
            app._filters.append(AsciiFilter(keep_letters=False))
        texts = (lambda token: f" w{token}") if words else None
        async with app.run_test(size=size) as pilot:
            app.push_screen(ExpertsScreen(history, texts, **options))
            await until(pilot, lambda: isinstance(app.screen, ExpertsScreen), "the screen")
            await until(pilot, lambda: len(app.screen.query_one(ExpertTable)._rows) == 80, "the list")
            await flow(Opened(app, pilot, engine, history))

    asyncio.run(run())


async def at_rest(opened: Opened) -> None:
    """Waits until the oracle is known and drawn."""
    await until(opened.pilot, lambda: "..." not in shown(opened.app), "the oracle")


@pytest.mark.parametrize("size", [(120, 40), (80, 24)])
def test_pictures(pictures: Pictures, size: tuple[int, int]) -> None:
    dark: list[str] = []
    name = f"experts-{size[0]}x{size[1]}"

    async def flow(opened: Opened) -> None:
        await at_rest(opened)
        pictures.check(name, shown(opened.app))
        await opened.pilot.press("g", "g", "t")
        await opened.pilot.pause()
        dark.append(shown(opened.app))

    opened(flow, size)
    opened(flow, size, light=True)
    assert dark[0] == dark[1]


def test_picture_in_ascii_without_colour(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def flow(opened: Opened) -> None:
        await at_rest(opened)
        assert shown(opened.app).isascii()
        pictures.check("experts-ascii", shown(opened.app))

    opened(flow, ascii=True)


def test_sorting() -> None:
    async def flow(opened: Opened) -> None:
        heat = opened.history.heat
        assert [heat[row] for row in opened.rows()] == sorted(heat, reverse=True)
        await opened.pilot.press("s")
        misses = opened.engine.misses
        assert [misses[row] for row in opened.rows()] == sorted(misses, reverse=True)
        await opened.pilot.press("s")
        assert opened.rows() == list(range(80))
        await opened.sees("by layer")

    opened(flow)


def test_grouping() -> None:
    async def flow(opened: Opened) -> None:
        await opened.pilot.press("g")
        await opened.sees("layer 0 ", "of 10 resident")
        assert [row // 10 for row in opened.rows()] == sorted(row // 10 for row in range(80))
        await opened.pilot.press("g")
        held = int(np.count_nonzero((opened.engine.state == RESIDENT) & (opened.engine.fresh == 0)))
        await opened.sees(f"{held} experts")
        states = opened.engine.state[opened.rows()]
        assert all(states[:held] == RESIDENT)

    opened(flow)


def test_the_chosen_expert_stays_chosen_while_the_list_moves() -> None:
    async def flow(opened: Opened) -> None:
        await opened.pilot.press("down", "down", "down")
        chosen = opened.table.expert
        assert opened.rows()[3] == chosen
        await opened.sees(f"layer {chosen // 10}, expert {chosen % 10} ")
        await opened.pilot.press("s", "s")
        assert opened.table.expert == chosen
        await opened.sees(f"uses {opened.engine.uses[chosen]} ", "share of its layer")
        await opened.pilot.press("pagedown", "pagedown", "pagedown", "pagedown")
        assert opened.rows()[-1] == opened.table.expert
        await opened.pilot.press("up")
        assert opened.rows()[-2] == opened.table.expert
        assert opened.table.scroll_offset.y > 0

    opened(flow)


def test_stepping_through_tokens() -> None:
    async def flow(opened: Opened) -> None:
        await opened.sees("token 12 of 12", "request 2")
        record = opened.engine.records(0)[-1]
        await opened.sees(f"w{record.token_id}", f"pass {record.pass_ns / 1e6:.0f} ms")
        await opened.pilot.press("left", "left")
        await opened.sees("token 10 of 12")
        await opened.pilot.press("right")
        await opened.sees("token 11 of 12")
        await opened.pilot.press("home")
        await opened.sees("token 1 of 12", "request 2")
        await opened.pilot.press("left")
        await opened.sees("token 12 of 12", "request 1")
        await opened.pilot.press("left_square_bracket", "home", "left")
        await opened.sees("token 1 of 12", "request 1")
        await opened.pilot.press("end")
        await opened.sees("token 12 of 12", "request 2")

    opened(flow)


def test_a_token_shows_its_routing() -> None:
    async def flow(opened: Opened) -> None:
        await opened.pilot.press("home")
        await opened.sees("token 1 of 12")
        record = opened.engine.records(12)[0]
        lines = [line[60:] for line in shown(opened.app).splitlines()]
        for layer, experts in enumerate(record.chosen.tolist()):
            marks = [" +~×"[kind] for kind in record.kinds[layer].tolist()]
            row = " ".join(f"{expert:>2}{mark}" for expert, mark in zip(experts, marks, strict=True))
            assert any(f"{layer:>3} {row}".rstrip() in line for line in lines), (layer, row)
        counts = [int((record.kinds == kind).sum()) for kind in range(4)]
        assert f"{counts[0]} resident" in "".join(lines)
        assert f"{counts[3]}× missed" in "".join(lines)

    opened(flow)


def test_the_real_hit_rate_is_beside_the_oracles() -> None:
    async def flow(opened: Opened) -> None:
        hits = np.mean([record.kinds <= 1 for record in opened.engine.records(12)])
        await opened.sees(f"reply's hits {hits * 100:.1f} %")
        await at_rest(opened)
        await opened.sees("oracle's, on demand")

    opened(flow)


def test_the_latest_token_is_followed_until_one_is_chosen() -> None:
    async def flow(opened: Opened) -> None:
        opened.engine.token(7)
        opened.history.follow(opened.engine)
        await opened.sees("token 13 of 13")
        await opened.pilot.press("left")
        await opened.sees("token 12 of 13")
        opened.engine.token(8)
        opened.history.follow(opened.engine)
        await opened.sees("token 12 of 14")

    opened(flow)


def test_frozen_it_stays() -> None:
    async def flow(opened: Opened) -> None:
        await opened.pilot.press("f5")
        await opened.sees("frozen")
        opened.engine.token(7)
        opened.history.follow(opened.engine)
        opened.screen._look()
        await opened.pilot.pause()
        assert "token 12 of 12" in shown(opened.app)
        await opened.pilot.press("f5")
        await opened.sees("token 13 of 13")

    opened(flow)


def test_the_map_in_the_place_of_the_list() -> None:
    async def flow(opened: Opened) -> None:
        await opened.pilot.press("m")
        await opened.sees("hot", "cold")
        await opened.pilot.press("m")
        await until(opened.pilot, lambda: "cold" not in shown(opened.app), "the list")

    opened(flow)


def test_narrow_it_shows_one_side_and_turns() -> None:
    async def flow(opened: Opened) -> None:
        assert "token 12" not in shown(opened.app)
        await opened.pilot.press("t")
        await opened.sees("token 12 of 12")
        assert "uses" not in shown(opened.app)

    opened(flow, (80, 24), words=False)


def test_before_anything_was_said() -> None:
    async def run() -> None:
        app: App[None] = App()
        async with app.run_test(size=(120, 40)) as pilot:
            app.push_screen(ExpertsScreen(FrameHistory()))
            await pilot.pause()
            await pilot.press("left", "right", "home", "end", "s", "g", "down", "pagedown", "m", "f5", "escape")
            await until(pilot, lambda: not isinstance(app.screen, ExpertsScreen), "closed")

    asyncio.run(run())
