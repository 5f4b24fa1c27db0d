"""Figures as SVG: panels of lines over a few places, legible in grey.

Every series has a hue, a marker and a dash of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10
from xml.sax.saxutils import escape

_HUES = (
    "#0f4fae", "#8a93a6", "#d99f1a", "#14a882", "#9b2fa0", "#c02a08",
    "#5d6b82", "#4aa3df", "#7a4a12", "#111418", "#6b8e23",
)  # fmt: skip
_DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3")
_MARKERS = ("circle", "square", "diamond", "triangle", "cross", "plus")
_PANEL_WIDTH, _PANEL_HEIGHT, _GAP = 300, 230, 26
_LEFT, _TOP, _BOTTOM = 44, 30, 34
_FONT = "font-family='DejaVu Sans, Helvetica, Arial, sans-serif'"
_INK, _RULE = "#20242c", "#d9dde5"


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `values` has one for each place of the panel; None leaves a hole."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: lines over `places`, from 0 to the largest value at least."""

    title: str
    places: Sequence[str]
    series: Sequence[Series]


def lines_svg(title: str, panels: Sequence[Panel], known: Sequence[str] = (), *, columns: int = 3) -> str:
    """A figure of panels side by side, with one legend for all below them.

    Args:
        known: All names of series that there may be; each then looks the same in every figure.
        columns: Panels in a row, at most.
    """
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    looks = {name: _Look.number(place) for place, name in enumerate(dict.fromkeys([*known, *names]))}
    across = min(columns, len(panels))
    down = -(-len(panels) // across)
    width = across * (_PANEL_WIDTH + _GAP) + _GAP
    per_row = max(1, (width - 2 * _GAP) // 170)
    legend_rows = -(-len(names) // per_row)
    height = 40 + down * (_PANEL_HEIGHT + _GAP) + legend_rows * 20 + 14
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
        f"viewBox='0 0 {width} {height}' role='img' aria-label='{escape(title, {chr(39): '&apos;'})}'>",
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
        _text(_GAP, 26, title, size=15, weight="bold"),
    ]
    for number, panel in enumerate(panels):
        x = _GAP + number % across * (_PANEL_WIDTH + _GAP)
        y = 40 + number // across * (_PANEL_HEIGHT + _GAP)
        parts.append(f"<g transform='translate({x} {y})'>{_panel(panel, looks)}</g>")
    top = 40 + down * (_PANEL_HEIGHT + _GAP) + 6
    for place, name in enumerate(names):
        x, y = _GAP + place % per_row * 170, top + place // per_row * 20
        look = looks[name]
        parts.append(look.line(((x, y), (x + 28, y))) + look.marker(x + 14, y) + _text(x + 34, y + 4, name))
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True, slots=True)
class _Look:
    hue: str
    dash: str
    shape: str

    @classmethod
    def number(cls, place: int) -> _Look:
        return cls(_HUES[place % len(_HUES)], _DASHES[place % len(_DASHES)], _MARKERS[place % len(_MARKERS)])

    def line(self, points: Sequence[tuple[float, float]]) -> str:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = f" stroke-dasharray='{self.dash}'" if self.dash else ""
        return f"<polyline points='{path}' fill='none' stroke='{self.hue}' stroke-width='1.8'{dash}/>"

    def marker(self, x: float, y: float) -> str:
        r = 3.6
        fill = f"fill='{self.hue}'"
        stroke = f"fill='none' stroke='{self.hue}' stroke-width='2'"
        match self.shape:
            case "circle":
                return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{r}' {fill}/>"
            case "square":
                return f"<rect x='{x - r:.1f}' y='{y - r:.1f}' width='{2 * r}' height='{2 * r}' {fill}/>"
            case "diamond":
                return f"<path d='M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z' {fill}/>"
            case "triangle":
                return f"<path d='M{x:.1f} {y - 4.5:.1f}l4.5 8h-9z' {fill}/>"
            case "cross":
                return f"<path d='M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}' {stroke}/>"
            case _:
                return f"<path d='M{x - 4.5:.1f} {y:.1f}h9m-4.5 -4.5v9' {stroke}/>"


def _panel(panel: Panel, looks: dict[str, _Look]) -> str:
    known = [value for series in panel.series for value in series.values if value is not None]
    step = _step(max([*known, 1e-9]))
    most = step * max(1, -(-max([*known, step]) // step))
    bottom, right = _PANEL_HEIGHT - _BOTTOM, _PANEL_WIDTH - 8
    count = len(panel.places)

    def at(place: int, value: float) -> tuple[float, float]:
        x = _LEFT + (right - _LEFT) * (place + 0.5) / count
        return x, bottom - (bottom - _TOP) * value / most

    parts = [_text(0, 14, panel.title, size=12, weight="bold")]
    for tick in range(round(most / step) + 1):
        y = at(0, tick * step)[1]
        parts.append(f"<path d='M{_LEFT} {y:.1f}H{right}' stroke='{_RULE if tick else _INK}' stroke-width='1'/>")
        parts.append(_text(_LEFT - 6, y + 4, f"{tick * step:g}", anchor="end"))
    for place, label in enumerate(panel.places):
        parts.append(_text(at(place, 0)[0], bottom + 17, label, anchor="middle"))
    for series in panel.series:
        look = looks[series.name]
        points = [at(place, value) for place, value in enumerate(series.values) if value is not None]
        parts.append(look.line(points) if len(points) > 1 else "")
        parts += [look.marker(x, y) for x, y in points]
    return "".join(parts)


def _step(most: float) -> float:
    """A round distance of four to eight rules up to `most`."""
    power = 10.0 ** floor(log10(most / 8))
    return next(power * times for times in (1, 2, 5, 10) if power * times * 8 >= most)


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' {_FONT} font-size='{size}' font-weight='{weight}' fill='{_INK}' "
        f"text-anchor='{anchor}'>{escape(text)}</text>"
    )
