"""Drawing with ASCII only, for terminals and fonts that have nothing else."""

from __future__ import annotations

from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_NAMED = {
    "─━┄┅┈┉═╌╍╴╶╸╺▁▔⎯–—−": "-",
    "│┃┆┇┊┋║╎╏▏▎▍▌▐▕▊▋▉": "|",
    "┌┍┎┏┐┑┒┓└┕┖┗┘┙┚┛├┤┬┴┼╔╗╚╝╠╣╦╩╬╭╮╯╰╞╡╪┠┨┯┷┿╂▛▜▙▟▖▗▘▝▚▞": "+",
    "█▇▆▓": "#",
    "▅▄▀▒": "=",
    "▃▂░": ".",
    "•▪‣⭑◦·∙●◉": "*",
    "○◌◯": "o",
    "…": ".",
    "“”": '"',
    "‘’": "'",
    "→▶▸❯›»": ">",
    "←◀◂❮‹«": "<",
    "↑▲▴": "^",
    "↓▼▾": "v",
    "✓✔": "+",
    "×✗✘": "x",
    "↵⏎": "<",
    "⌄⌃": "v",
    "\u00a0": " ",
}
_TABLE = {ord(character): plain for characters, plain in _NAMED.items() for character in characters}
_BRAILLE_ORDER = " .:+*#"


@lru_cache(4096)
def as_ascii(text: str, keep_letters: bool = False) -> str:
    """``text`` in as many cells, of ASCII only; with ``keep_letters`` letters of all scripts stay."""
    if text.isascii():
        return text
    return "".join(_one(character, keep_letters) for character in text.translate(_TABLE))


def _one(character: str, keep_letters: bool) -> str:
    if character.isascii() or (keep_letters and character.isalnum()):
        return character
    code = ord(character)
    if 0x2800 <= code < 0x2900:  # Braille: by how many dots it has.
        return _BRAILLE_ORDER[min((code & 0xFF).bit_count(), len(_BRAILLE_ORDER) - 1)]
    return "?" * cell_len(character)


class AsciiFilter(LineFilter):
    """Puts ASCII in the place of everything else, last of all, so that nothing that draws has to care."""

    def __init__(self, *, keep_letters: bool) -> None:
        super().__init__()
        self._keep_letters = keep_letters

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments, in as many cells."""
        return [Segment(as_ascii(text, self._keep_letters), style, control) for text, style, control in segments]
