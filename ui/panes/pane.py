"""What all panes share: the palette, the three looks, a title line, and drawing line by line.

A pane draws itself anew only when it is shown something, resized or restyled: `Pane.draw` makes all of its lines,
and Textual's Line API takes them from there, only those that are others than before.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import zip_longest
from typing import ClassVar

from rich.console import RenderableType
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from ui.panes.history import FrameHistory

Line = list[Segment]


class Look(Enum):
    """What a terminal can show: colours, or shapes in their place, or plain ASCII."""

    COLOUR = "colour"
    SHAPES = "shapes"
    ASCII = "ascii"


KINDS = ("resident", "prefetched", "late", "missed")
"""Names, and component classes, of `offload.telemetry.counters.Kind`, in its order. One hue each, the same
everywhere: an expert on its way has that of ``late``, one fetched ahead and not used yet that of ``prefetched``."""

GLYPHS = {
    Look.COLOUR: ("█", "█", "█", "█"),
    Look.SHAPES: ("█", "▓", "▒", "░"),
    Look.ASCII: ("#", "+", "~", "x"),
}
"""What fills an area of each kind."""

WAITING = "waiting for the engine"


class Pane(Widget):
    """Base of the panes.

    Hues are after Okabe and Ito's colours that the colour-blind can tell apart: blue, green, amber and vermilion,
    which differ in lightness too.

    Args:
        ascii: Draw with ASCII characters only.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"pane--{kind}" for kind in KINDS),
        "pane--absent",
        "pane--title",
        "pane--rule",
        "pane--text",
        "pane--value",
        "pane--dim",
        "pane--warn",
        "pane--mark",
        "pane--dense",
        "pane--kv",
        "pane--work",
        "pane--base",
        "pane--free",
    }

    DEFAULT_CSS = """
    Pane {
        height: auto;
        & > .pane--resident { color: #3f8cf0; }
        & > .pane--prefetched { color: #45dfb0; }
        & > .pane--late { color: #ffd75e; }
        & > .pane--missed { color: #f4502c; }
        & > .pane--absent { color: #8a93a6; }
        & > .pane--title { color: $text; text-style: bold; }
        & > .pane--rule { color: $foreground 18%; }
        & > .pane--text { color: $foreground 75%; }
        & > .pane--value { color: $foreground; text-style: bold; }
        & > .pane--dim { color: $foreground 50%; }
        & > .pane--warn { color: #f4502c; text-style: bold; }
        & > .pane--mark { color: #e08ae0; }
        & > .pane--dense { color: #a98be8; }
        & > .pane--kv { color: #d98bc4; }
        & > .pane--work { color: #8fa0b8; }
        & > .pane--base { color: #5d6b82; }
        & > .pane--free { color: $foreground 18%; }
        &:light > .pane--resident { color: #0f4fae; }
        &:light > .pane--prefetched { color: #14a882; }
        &:light > .pane--late { color: #d99f1a; }
        &:light > .pane--missed { color: #c02a08; }
        &:light > .pane--absent { color: #8a93a6; }
        &:light > .pane--rule { color: $foreground 25%; }
        &:light > .pane--dim { color: $foreground 60%; }
        &:light > .pane--warn { color: #b82a0c; }
        &:light > .pane--mark { color: #9b2fa0; }
        &:light > .pane--dense { color: #7a55cc; }
        &:light > .pane--kv { color: #b4559a; }
        &:light > .pane--work { color: #6d7f99; }
        &:light > .pane--base { color: #a3adbd; }
        &:light > .pane--free { color: $foreground 20%; }
    }
    """

    def __init__(
        self, *, ascii: bool = False, id: str | None = None, name: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(id=id, name=name, classes=classes)
        self.ascii = ascii
        self.history: FrameHistory | None = None
        self._lines: list[Strip] | None = None
        self._drawn_lines: list[Line] = []
        self._lines_size = Size(0, 0)
        self._seen = False
        self._styles: dict[str, Style] = {}

    def show(self, history: FrameHistory) -> None:
        """Draws what the history says now."""
        self.history = history
        self.redraw()

    def redraw(self) -> None:
        """Draws again what there is: at once if the last lines were seen, else when somebody looks."""
        strips, size = self._lines, self.content_size
        if strips is None or not self._seen or self._lines_size != size:
            self._lines = None
            self.refresh()
            return
        old = self._drawn_lines
        self._drawn_lines = new = self._draw(size)
        changed = [number for number, (was, line) in enumerate(zip_longest(old, new)) if was != line]
        if changed:
            self._seen = False
            self._lines = strips = strips[: len(new)] + [Strip.blank(0)] * (len(new) - len(strips))
            background = self.rich_style
            for number in changed:
                if number < len(new):
                    strips[number] = _strip(new[number], size.width, background)
            self.refresh(*(Region(0, number, size.width, 1) for number in changed))

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """All lines, at most ``height`` of them; each is cut and filled to ``width``."""
        raise NotImplementedError

    def lines_wanted(self, width: int) -> int:
        """How many lines it likes to have where its height is automatic."""
        raise NotImplementedError

    @property
    def look(self) -> Look:
        if self.ascii:
            return Look.ASCII
        return Look.SHAPES if self.app.no_color else Look.COLOUR

    # Pieces of a line

    def style(self, name: str) -> Style:
        """The style of a component class, named without its prefix."""
        style = self._styles.get(name)
        if style is None:
            style = self._styles[name] = self.get_component_rich_style(f"pane--{name}")
        return style

    def piece(self, text: str, name: str = "text") -> Segment:
        return Segment(text, self.style(name))

    def title(self, width: int, name: str, right: str = "", right_style: str = "dim") -> Line:
        """``name ───────── right``."""
        right = right[: max(0, width - len(name) - 3)]
        rule = width - len(name) - len(right) - 1 - bool(right)
        character = "-" if self.look is Look.ASCII else "─"
        line = [self.piece(name, "title"), Segment(" "), self.piece(character * max(0, rule), "rule")]
        return [*line, Segment(" "), self.piece(right, right_style)] if right else line

    def fields(self, width: int, *parts: tuple[str, str]) -> Line:
        """Labels with values: ``TTFT 0.84 s  p95 141 ms``. What is empty or does not fit is left out."""
        line: Line = []
        used = 0
        for label, value in parts:
            wanted = len(value) + (len(label) + 1 if label else 0) + (2 if line else 0)
            if value and used + wanted <= width:
                line += [Segment("  ")] if line else []
                line += [self.piece(f"{label} ", "dim")] if label else []
                line.append(self.piece(value, "value"))
                used += wanted
        return line

    @property
    def dot(self) -> str:
        return " | " if self.look is Look.ASCII else " · "

    # Textual

    def render_line(self, y: int) -> Strip:
        lines = self._drawn()
        return lines[y] if y < len(lines) else Strip.blank(self.content_size.width, self.rich_style)

    def render(self) -> RenderableType:
        return ""

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return self.lines_wanted(width)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._lines = None
        self._styles = {}

    def _drawn(self) -> list[Strip]:
        size = self.content_size
        self._seen = True
        if self._lines is None or self._lines_size != size:
            self._drawn_lines, self._lines_size = self._draw(size), size
            background = self.rich_style
            self._lines = [_strip(line, size.width, background) for line in self._drawn_lines]
        return self._lines

    def _draw(self, size: Size) -> list[Line]:
        return list(self.draw(size.width, size.height)) if size.width > 0 and size.height > 0 else []


def _strip(line: Line, width: int, background: Style) -> Strip:
    """A line on a background, cut and filled to a width. Strips are dear, so it is made as one."""
    pieces = list(Segment.simplify(Segment.apply_style(line, background)))
    missing = width - sum(piece.cell_length for piece in pieces)
    if missing > 0:
        pieces.append(Segment(" " * missing, background))
    strip = Strip(pieces, width - min(missing, 0))
    return strip if missing >= 0 else strip.crop(0, width)


def percent(rate: float | None, digits: int = 0) -> str:
    """``92 %``; empty for None."""
    return "" if rate is None else f"{rate * 100:.{digits}f} %"


def byte_rate(value: float) -> str:
    """``112 MB/s``, in decimal units as disks and links are sold."""
    if value >= 999.5e6:
        return f"{value / 1e9:.2f} GB/s"
    if value >= 999.5e3:
        return f"{value / 1e6:.0f} MB/s" if value >= 9.95e6 else f"{value / 1e6:.1f} MB/s"
    return f"{value / 1e3:.0f} kB/s" if value >= 1 else "0 MB/s"


def milliseconds(value: float | None) -> str:
    """``141 ms``; empty for None."""
    if value is None:
        return ""
    return f"{value:.0f} ms" if value >= 9.95 else f"{value:.1f} ms"
