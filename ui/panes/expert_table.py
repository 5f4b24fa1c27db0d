"""All experts in a list: sorted, grouped, and one of them chosen. Only the lines that are seen are made."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from offload.memory.residency import LOADING, RESIDENT
from ui.panes.history import FrameHistory
from ui.panes.pane import Line, Look, Pane, percent

Sort = Literal["heat", "misses", "layer"]
Group = Literal["none", "layer", "tier"]

Choice = TypeVar("Choice", bound=str)

TIERS = ("absent", "resident", "ahead", "coming")
_HUES = ("absent", "resident", "prefetched", "late")
_TIER_ORDER = (3, 0, 1, 2)
"""Where each tier comes in a list grouped by tier: what is resident first."""

_HEAD_LINES = 2
_BAR = 5
_CURSOR = 0.15
"""How much of the text's colour the chosen line's background takes on."""
_HEADER = (
    f"{'layer':>5} {'expert':>6}  {'state':<8} {'heat':<{_BAR}} {'uses':>6} {'missed':>6} {'rate':>5} {'used':>6}"
)


def tiers(history: FrameHistory) -> NDArray[np.intp]:
    """[L*E], index into `TIERS` of each expert."""
    frame = history.latest
    assert frame is not None
    found = np.where(frame.state == RESIDENT, 1, 0)
    found[(frame.fresh != 0) & (frame.state == RESIDENT)] = 2
    found[frame.state == LOADING] = 3
    return found


def ago(seconds: float) -> str:
    """``3.2 s``, ``4 min``; a dash for something that has not been seen."""
    if not np.isfinite(seconds):
        return "-"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


class ExpertTable(Pane, ScrollView, can_focus=True):
    """The list. Keys: up, down, page up, page down.

    Attributes:
        expert: Number (of L*E) of the chosen expert; -1 before there are any.
        sort / group: In which order; within a group by `sort`.
        state: What else the title says, such as that the list is frozen.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
    ]

    DEFAULT_CSS = """
    ExpertTable { width: 1fr; height: 1fr; overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1; }
    """

    class Chosen(Message):
        """Another expert was chosen."""

    def __init__(self, *, ascii: bool = False, id: str | None = None) -> None:
        super().__init__(ascii=ascii, id=id)
        self.sort: Sort = "heat"
        self.group: Group = "none"
        self.state = ""
        self.expert = -1
        self._rows: NDArray[np.intp] = np.zeros(0, np.intp)
        self._tiers: NDArray[np.intp] = np.zeros(0, np.intp)

    def lines_wanted(self, width: int) -> int:
        return len(self._rows) + _HEAD_LINES

    def show(self, history: FrameHistory) -> None:
        """Puts the experts in order and draws them; the chosen one stays chosen."""
        self.history = history
        if history.latest is None or history.facts is None:
            return
        self._tiers = tiers(history)
        self._rows = self._arranged(history)
        if not 0 <= self.expert < len(self._tiers):
            self.expert = int(self._rows[self._rows >= 0][0])
        self.virtual_size = Size(self.size.width, len(self._rows) + _HEAD_LINES)
        self.refresh()

    def next_sort(self) -> None:
        """Heat, misses, layer."""
        self.sort = _next(self.sort, get_args(Sort))
        self._again()

    def next_group(self) -> None:
        """None, layer, tier."""
        self.group = _next(self.group, get_args(Group))
        self._again()

    def action_move(self, by: int) -> None:
        """Chooses the next expert up or down the list."""
        experts = self._rows[self._rows >= 0]
        if not len(experts):
            return
        at = int(np.flatnonzero(experts == self.expert)[0])
        self.expert = int(experts[min(len(experts) - 1, max(0, at + by))])
        self._seek()

    def action_page(self, by: int) -> None:
        """Chooses the expert a page away."""
        self.action_move(by * max(1, self.size.height - _HEAD_LINES - 1))

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        base = self.rich_style
        if self.history is None or self.history.latest is None:
            return Strip.blank(width, base)
        if y == 0:
            order = f"by {self.sort}" if self.group == "none" else f"by {self.group}{self.dot}by {self.sort}"
            line = self.title(width, "experts", f"{order}{self.dot}{self.state}" if self.state else order)
        elif y == 1:
            line = [self.piece(_HEADER, "dim")]
        else:
            at = y + self.scroll_offset.y - _HEAD_LINES
            if at >= len(self._rows):
                return Strip.blank(width, base)
            code = int(self._rows[at])
            line = self._row(self.history, code) if code >= 0 else self._head(self.history, -code - 1, width)
            if code == self.expert:
                cursor = self._cursor()
                line = list(Segment.apply_style(line, post_style=cursor))
                base += cursor
        return Strip(Segment.apply_style(line, base)).adjust_cell_length(width, base).simplify()

    def _cursor(self) -> Style:
        """What the whole of the chosen line has: its hues stay what they are, where there are any."""
        if self.look is not Look.COLOUR:
            return Style(reverse=True)
        background, text = self.background_colors[1], self.get_component_styles("pane--title").color
        return Style(bgcolor=background.blend(text, _CURSOR).rich_color, bold=True)

    def _again(self) -> None:
        if self.history is not None:
            self.show(self.history)
            self.scroll_home(animate=False, force=True)

    def _seek(self) -> None:
        """Brings the chosen expert into view, and says that it was chosen."""
        found = np.flatnonzero(self._rows == self.expert)
        if len(found):
            self.scroll_to_region(Region(0, int(found[0]), 1, 1 + _HEAD_LINES), animate=False, force=True)
        self.refresh()
        self.post_message(self.Chosen())

    def _arranged(self, history: FrameHistory) -> NDArray[np.intp]:
        """Experts in order; in front of each group -1 - its number."""
        facts, frame = history.facts, history.latest
        assert facts is not None and frame is not None
        numbers = np.arange(len(self._tiers))
        key = {"heat": -history.heat, "misses": -frame.misses, "layer": numbers}[self.sort]
        groups = {
            "none": np.zeros(len(numbers), np.intp),
            "layer": numbers // facts.experts,
            "tier": np.asarray(_TIER_ORDER)[self._tiers],
        }[self.group]
        order = np.lexsort((numbers, key, groups))
        if self.group == "none":
            return order
        found, starts = np.unique(groups[order], return_index=True)
        return np.insert(order, starts, -1 - found)

    def _row(self, history: FrameHistory, expert: int) -> Line:
        facts, frame = history.facts, history.latest
        assert facts is not None and frame is not None
        uses, misses, tier = int(frame.uses[expert]), int(frame.misses[expert]), int(self._tiers[expert])
        hottest = float(history.heat.max()) or 1.0
        full = round(_BAR * float(history.heat[expert]) / hottest)
        bar = ("#" if self.ascii else "━") * full
        return [
            self.piece(f"{expert // facts.experts:>5} {expert % facts.experts:>6}  ", "text"),
            self.piece(f"{TIERS[tier]:<8} ", _HUES[tier]),
            self.piece(f"{bar:<{_BAR}} ", "text"),
            self.piece(f"{uses:>6} ", "text"),
            self.piece(f"{misses:>6} ", "missed" if misses else "dim"),
            self.piece(f"{percent(misses / uses) if uses else '':>5} ", "dim"),
            self.piece(f"{ago(history.now - float(history.used_at[expert])):>6}", "dim"),
        ]

    def _head(self, history: FrameHistory, group: int, width: int) -> Line:
        facts, frame = history.facts, history.latest
        assert facts is not None and frame is not None
        if self.group == "tier":
            tier = _TIER_ORDER.index(group)
            return self.title(width, TIERS[tier], f"{int(np.count_nonzero(self._tiers == tier))} experts")
        part = slice(group * facts.experts, (group + 1) * facts.experts)
        held = int(np.count_nonzero(frame.state[part] == RESIDENT))
        uses, misses = int(frame.uses[part].sum()), int(frame.misses[part].sum())
        hit = f"{self.dot}hit {percent(1 - misses / uses)}" if uses else ""
        return self.title(width, f"layer {group}", f"{held} of {facts.experts} resident{hit}")


def _next(value: Choice, values: tuple[Choice, ...]) -> Choice:
    return values[(values.index(value) + 1) % len(values)]
