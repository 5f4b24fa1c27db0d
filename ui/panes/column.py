"""The panes put together: beside a chat, in a strip, or over the whole screen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal, get_args

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.reactive import reactive
from textual.widget import Widget

from offload.telemetry.frame import IDLE, TokenRecord
from ui.panes.expert_map import ExpertMap
from ui.panes.history import FrameHistory
from ui.panes.layer_bars import LayerBars
from ui.panes.memory import Memory
from ui.panes.oracle import reply_oracle
from ui.panes.pane import Pane
from ui.panes.speed import Speed
from ui.panes.strip import Strip
from ui.panes.traffic import Traffic

LayoutMode = Literal["off", "strip", "side", "full"]

_WIDE = 90
"""Columns from which the full layout has two columns."""

_HIGH = 36
"""Rows from which one column has room for all panes; below, the last three are the strip's lines."""


class PaneColumn(Widget):
    """All panes. It docks itself in its parent: at the right, at the bottom, or over all of it.

    Args:
        mode: The layout to begin with.
        ascii: Draw with ASCII characters only.
    """

    MODES: ClassVar[tuple[LayoutMode, ...]] = get_args(LayoutMode)

    DEFAULT_CSS = """
    PaneColumn {
        display: none;
        background: $background;
        & > Strip { display: none; dock: bottom; height: 3; }
        & > .panes { height: 1fr; width: 1fr; padding: 0 1; visibility: hidden; }
        & > .panes > Pane { margin-bottom: 1; visibility: visible; }
        &.-strip { display: block; dock: bottom; height: 3; width: 100%; padding: 0 1; }
        &.-strip > Strip { display: block; }
        &.-strip > .panes { display: none; }
        &.-side { display: block; dock: right; width: 34%; min-width: 38; max-width: 72; height: 100%; }
        &.-full { display: block; width: 100%; height: 100%; dock: right; }
        &.-full.-wide { layout: horizontal; }
        &.-full.-wide > #panes-map { width: 3fr; }
        &.-full.-wide > #panes-rest { width: 2fr; }
        & > #panes-rest { height: auto; }
        &.-brief > #panes-rest { display: none; }
        &.-brief > Strip { display: block; padding: 0 1; }
        &.-full.-wide > #panes-rest { height: 1fr; }
        &.-full.-wide Speed { height: 2fr; max-height: 12; min-height: 5; }
        &.-full.-wide Traffic { height: 3fr; max-height: 20; min-height: 6; }
    }
    """

    layout_mode: reactive[LayoutMode] = reactive[LayoutMode]("side")
    freeze: reactive[bool] = reactive(False)

    def __init__(
        self,
        mode: LayoutMode = "side",
        *,
        ascii: bool = False,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(id=id, classes=classes)
        self._ascii = ascii
        self._history: FrameHistory | None = None
        self._live: FrameHistory | None = None
        self._asked = (0, 0)
        self.set_reactive(PaneColumn.layout_mode, mode)
        self.add_class(f"-{mode}")

    def compose(self) -> ComposeResult:
        yield Strip(ascii=self._ascii)
        with Vertical(id="panes-map", classes="panes"):
            yield ExpertMap(ascii=self._ascii)
            yield LayerBars(ascii=self._ascii)
        with Vertical(id="panes-rest", classes="panes"):
            yield Speed(ascii=self._ascii)
            yield Traffic(ascii=self._ascii)
            yield Memory(ascii=self._ascii)

    def show(self, history: FrameHistory) -> None:
        """Draws what the history says now, unless frozen. What is not to be seen is not drawn."""
        self._live = history
        self._ask_oracle(history)
        if not self.freeze:
            self._show(history)

    def cycle(self) -> None:
        """The next layout."""
        modes = self.MODES
        self.layout_mode = modes[(modes.index(self.layout_mode) + 1) % len(modes)]

    def watch_layout_mode(self, old: LayoutMode, mode: LayoutMode) -> None:
        self.remove_class(f"-{old}", update=False)  # Styles are worked out once.
        self.add_class(f"-{mode}")
        self._fit()
        if self._history is not None:
            self._show(self._history)

    def watch_freeze(self, freeze: bool) -> None:
        self.set_class(freeze, "-frozen")
        if self._live is not None:
            self._show(self._live.frozen() if freeze else self._live)

    def on_resize(self) -> None:
        self._fit()

    def _fit(self) -> None:
        """What there is room for."""
        full = self.layout_mode == "full"
        self.set_class(self.size.width >= _WIDE, "-wide")
        low = self.size.height < _HIGH and self.layout_mode in ("side", "full")
        self.set_class(low and not (full and self.size.width >= _WIDE), "-brief")

    def _ask_oracle(self, history: FrameHistory) -> None:
        """When a reply is over, a thread works out what an oracle would have hit."""
        frame, facts = history.latest, history.facts
        if frame is None or facts is None or frame.phase != IDLE or not history.records:
            return
        request = history.records[-1].request
        if (history.generation, request) != self._asked:
            self._asked = (history.generation, request)
            work = partial(_work_out, history, history.reply(request), facts.experts, frame.memory.slots)
            # Described by itself, it would write out every number that it works on.
            self.run_worker(work, thread=True, description="oracle")

    def _show(self, history: FrameHistory) -> None:
        self._history = history
        if not self.is_mounted or self.layout_mode == "off":
            return
        for pane in self.query(Pane):
            pane.history = history
            if pane.size or pane.is_on_screen:
                pane.show(history)


def _work_out(history: FrameHistory, reply: Sequence[TokenRecord], experts: int, slots: int) -> None:
    generation = history.generation
    oracle = reply_oracle(reply, experts, slots)
    if history.generation == generation:
        history.oracle = oracle
