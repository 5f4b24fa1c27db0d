"""Rows of text files, read piece by piece: lines, JSON Lines, and the elements of a JSON array.

Every function here is a generator of numbered rows, counted from 1, and holds no more of the file than one piece
and one row, which may have `LONGEST_ROW` characters. A row that cannot be read is a `BadRow` in its place.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO

from finemoe_cli.datasets.errors import BadRow
from finemoe_cli.datasets.rows import require_unicode

Rows = Iterator[tuple[int, object]]
"""Numbers, and what is there: a value of JSON, or the `BadRow` that says why there is none."""

LONGEST_ROW = 4 * 2**20
"""Characters; some ten times what any model's context holds."""

_PIECE_BYTES = 256 * 1024
_SPACE = " \t\r\n"
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins like the next one
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_TOO_LONG = f"it is longer than {LONGEST_ROW:,} characters"
_ARRAY_ENDS = "nothing after it was read"


def _mark(error: UnicodeError) -> tuple[str, int]:
    """In the place of bytes that are no text, half of a surrogate pair, by which their row is known."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udc80", error.end


codecs.register_error("finemoe.mark", _mark)


def decoded(file: BinaryIO) -> Iterator[str]:
    """The text of a file, in pieces of at most 256 KiB: UTF-8, or what its byte order mark says.

    Bytes that are no text become a lone surrogate; `require_unicode` finds it.
    """
    head = file.read(4)
    mark, encoding = next((known for known in _ENCODINGS if head.startswith(known[0])), (b"", "utf-8"))
    decoder = codecs.getincrementaldecoder(encoding)("finemoe.mark")
    data = head[len(mark) :] + file.read(_PIECE_BYTES - len(head))
    while data:
        yield decoder.decode(data)
        data = file.read(_PIECE_BYTES)
    yield decoder.decode(b"", final=True)


def lines(pieces: Iterator[str]) -> Rows:
    """Lines that are not blank, without what ends them, numbered as in an editor."""
    for number, line in _split(pieces):
        if isinstance(line, str) and "\0" in line:
            yield number, BadRow("it has a NUL character, so it is no text")
        else:
            yield number, line


def json_lines(pieces: Iterator[str]) -> Rows:
    """Values of JSON, one on each line that is not blank."""
    for number, line in _split(pieces):
        try:
            yield number, _loaded(line) if isinstance(line, str) else line
        except BadRow as problem:
            yield number, problem


def json_array(pieces: Iterator[str]) -> Rows:
    """The elements of one array. One that is not JSON is the last: where the next begins cannot be known then."""
    window = _Window(pieces)
    assert window.next_mark() == "["
    window.skip_mark()
    number = 0
    if window.next_mark() != "]":
        while True:
            number += 1
            try:
                text, value = window.next_value()
            except BadRow as problem:
                yield number, problem
                return
            yield number, _checked(text, value)
            if window.next_mark() != ",":
                break
            window.skip_mark()
    if window.next_mark() != "]":
        yield number + 1, BadRow(f"a comma or the end of the array is missing before it; {_ARRAY_ENDS}")
        return
    window.skip_mark()
    if window.next_mark():
        yield number + 1, BadRow(f"it stands behind the end of the array; {_ARRAY_ENDS}")


def _split(pieces: Iterator[str]) -> Rows:
    """Lines that are not blank, each without what ends it, or a `BadRow`."""
    number, length = 1, 0
    parts: list[str] = []
    for piece in pieces:
        # Not splitlines: it also splits at characters that may stand in a prompt, such as U+2028.
        *ends, rest = piece.split("\n")
        for end in ends:
            yield from _line(number, parts, length, end)
            number, length, parts = number + 1, 0, []
        length += len(rest)
        if length <= LONGEST_ROW:
            parts.append(rest)
        else:
            parts.clear()
    yield from _line(number, parts, length, "")


def _line(number: int, parts: list[str], length: int, end: str) -> Rows:
    if length + len(end) > LONGEST_ROW:
        yield number, BadRow(_TOO_LONG)
        return
    line = ("".join(parts) + end).removesuffix("\r")
    if not line.strip():
        return
    try:
        require_unicode(line, "it")
        yield number, line
    except BadRow as problem:
        yield number, problem


def _loaded(line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise BadRow(f"it is not JSON: {error.msg}, at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list in a list in a list ...
        raise BadRow(f"it is not JSON that can be read: {error}") from None


def _checked(text: str, value: object) -> object:
    if len(text) > LONGEST_ROW:
        return BadRow(_TOO_LONG)
    try:
        require_unicode(text, "it")
    except BadRow as problem:
        return problem
    return value


class _Window:
    """The part of an array's text that has been read and not been used: at most one row and one piece."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self._place = 0
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode

    def next_mark(self) -> str:
        """The next character that is not white space, which stays where it is; empty at the end of the file."""
        while True:
            while self._place < len(self._text):
                if self._text[self._place] not in _SPACE:
                    return self._text[self._place]
                self._place += 1
            if self._ended:
                return ""
            self._grow(1)

    def skip_mark(self) -> None:
        """Go past the character that `next_mark` gave."""
        self._place += 1

    def next_value(self) -> tuple[str, object]:
        """The next value, as it is written and as it is.

        Raises:
            BadRow: There is none, it is too long, or the file ends within it.
        """
        self.next_mark()
        while True:
            try:
                value, end = self._decode(self._text, self._place)
                if not isinstance(value, int | float) or self._number_ends_at(end):
                    text = self._text[self._place : end]
                    self._place = end
                    return text, value
                reason = "Expecting ',' delimiter"
            except json.JSONDecodeError as error:
                reason = error.msg
            except (ValueError, RecursionError) as error:
                raise BadRow(f"it is not JSON that can be read: {error}; {_ARRAY_ENDS}") from None
            # What is not whole yet cannot be told from what is wrong. The text doubles each time, so that a long
            # row is not parsed again for every piece.
            have = len(self._text) - self._place
            if self._ended:
                raise BadRow(f"it is not JSON, or the file breaks off within it: {reason}; {_ARRAY_ENDS}")
            if have > LONGEST_ROW:
                wrong = f"it is not JSON ({reason}), or longer than {LONGEST_ROW:,} characters"
                raise BadRow(f"{wrong}; {_ARRAY_ENDS}")
            self._grow(have)

    def _number_ends_at(self, end: int) -> bool:
        """Whether a number that was read up to ``end`` does not go on in what has not been read: 12|34, 0.|5."""
        return self._text[end : end + 1] in tuple(f",]{_SPACE}") or (self._ended and end == len(self._text))

    def _grow(self, characters: int) -> None:
        parts = [self._text[self._place :]]
        while characters > 0 and not self._ended:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
            else:
                parts.append(piece)
                characters -= len(piece)
        self._text, self._place = "".join(parts), 0
