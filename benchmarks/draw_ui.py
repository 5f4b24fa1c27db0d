"""Draw the README's pictures of the panes from a recording, and measure what drawing costs.

    python -m benchmarks.draw_ui             # docs/pictures/replay.svg and experts.svg, from demo.finemoe there
    python -m benchmarks.draw_ui --record    # makes that recording first: the real chat, with the demo model
    python -m benchmarks.draw_ui --measure   # CPU time of one refresh, and of the map alone

The chat runs without a terminal; its engine is a process of its own as always. Recording takes about a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.app import App

from tests.support.synthetic import SyntheticEngine
from ui.panes.column import PaneColumn
from ui.panes.expert_map import ExpertMap
from ui.panes.history import FrameHistory
from ui.recording.recording import Recording
from ui.recording.screen import ReplayScreen
from ui.watch import WatchApp

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
RECORDING = PICTURES / "demo.finemoe"
SIZE = (120, 40)
SAID = (
    "Name three rivers in Europe and say one sentence about each.",
    "/profile roomy",
    "Why is the sky blue? Explain it to a child.",
)
_WEB_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
_PATIENCE_S = 240


def record(path: Path, policy: str) -> None:
    """The real chat, asked `SAID` with the profile ``low``, recorded into ``path``."""
    from finemoe_cli.chatting import have_model, make_link, open_board
    from profiles.environment import prepare_process
    from profiles.settings import resolve
    from ui.app import ChatApp
    from ui.chat.setup import ChatSetup

    prepare_process()
    path.unlink(missing_ok=True)
    flags = {"model": "demo", "profile": "low", "max_new_tokens": "120", "temperature": "0", "policy": policy}

    async def run(database: Path) -> None:
        app = ChatApp(ChatSetup(resolve(flags), make_link, have_model, open_board, database, record=path))
        async with app.run_test(size=SIZE) as pilot:

            async def until(happened: Callable[[], Any]) -> None:
                end = time.monotonic() + _PATIENCE_S
                while not happened():
                    if time.monotonic() > end:
                        raise SystemExit("the chat does not answer")
                    await pilot.pause(0.1)

            await pilot.pause(1)
            await until(lambda: app.chat.room.driver.ready is not None)
            for text in SAID:
                app.chat.prompt.set_text(text)
                app.chat.prompt.leave_completions()
                await pilot.press("enter")
                await pilot.pause(0.5)
                await until(lambda: not app.chat.answering.busy)
                await pilot.pause(1.5)
            # The experts' screen loads the texts of tokens, which the recording then has too.
            await pilot.press("f3")
            await pilot.pause(3)
            await pilot.press("escape")

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder) / "sessions.db"))


def draw(recording: Recording, at: float, folder: Path) -> None:
    """``replay.svg`` and ``experts.svg`` of a place in a recording."""

    async def run() -> None:
        screen = ReplayScreen(recording, at=at)
        screen.source.paused = True
        app = WatchApp(screen)
        async with app.run_test(size=SIZE) as pilot:
            await pilot.pause(1)
            save(app, folder / "replay.svg")
            await pilot.press("f3", "left", "left")
            await pilot.pause(2)
            save(app, folder / "experts.svg")

    asyncio.run(run())


def save(app: App[Any], path: Path) -> None:
    """The screen as SVG, without web fonts: the picture is to look the same without a network."""
    path.write_text(_WEB_FONTS.sub("", app.export_screenshot(title="finemoe", simplify=True)), encoding="utf-8")
    print(path)


def measure() -> None:
    """Milliseconds of CPU time, medians of 40: all panes beside a chat of 120 x 40, and a map of 96 x 64 cells."""

    class Panes(App[None]):
        def compose(self) -> Any:
            yield PaneColumn("side")

    async def run() -> None:
        for layers, experts, top_k in ((24, 60, 4), (48, 128, 8)):
            engine, history = SyntheticEngine(layers, experts, top_k), FrameHistory()
            for frame in engine.run(40):
                history.add(frame)
            app = Panes()
            async with app.run_test(size=SIZE) as pilot:
                await pilot.pause()
                adding, drawing = [], []
                for _ in range(40):
                    record = engine.token(1)
                    frame = engine.frame()
                    begin = time.process_time()
                    history.add(frame)
                    history.add_records([record])
                    adding.append(time.process_time() - begin)
                    begin = time.process_time()
                    app.query_one(PaneColumn).show(history)
                    await pilot.pause()
                    drawing.append(time.process_time() - begin)
                print(f"{layers} x {experts}: frame {median(adding)} ms, all panes {median(drawing)} ms")
        engine, history = SyntheticEngine(96, 128, 8), FrameHistory()
        history.add(engine.frame())
        app = Panes()
        async with app.run_test(size=SIZE) as pilot:
            await pilot.pause()
            pane, times = app.query_one(ExpertMap), []
            for _ in range(40):
                engine.token(1)
                history.add(engine.frame())
                pane.history = history
                begin = time.process_time()
                pane.draw(102, 67)
                times.append(time.process_time() - begin)
            print(f"map of 96 x 64 cells: {median(times)} ms")

    asyncio.run(run())


def median(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, nargs="?", default=RECORDING)
    parser.add_argument("--record", action="store_true", help="make the recording first")
    parser.add_argument("--policy", default="demand", help="the recording's policy")
    parser.add_argument("--at", type=float, help="seconds from the beginning; else four fifths of it")
    parser.add_argument("--to", type=Path, default=PICTURES, help="folder of the pictures")
    parser.add_argument("--measure", action="store_true", help="measure, and draw nothing")
    arguments = parser.parse_args()
    if arguments.measure:
        measure()
        return
    if arguments.record:
        record(arguments.recording, arguments.policy)
    recording = Recording.open(arguments.recording)
    draw(recording, recording.seconds * 0.8 if arguments.at is None else arguments.at, arguments.to)


if __name__ == "__main__":
    main()
