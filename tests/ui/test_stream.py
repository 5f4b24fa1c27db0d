from __future__ import annotations

import io

import pytest

from ui.stream import StreamPrinter
from ui.text import without_controls


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "attack",
    [
        "\x1b[2J\x1b[31mred",
        "\x1b]0;title\x07",
        "\x1b]52;c;aGk=\x1b\\",
        "\x9b31m",
        "a\rb",
        "a\x08b",
        "\x00\x7f\x85",
    ],
)
def test_no_control_character_is_left(attack):
    safe = without_controls(attack)
    assert all(character.isprintable() for character in safe)


def test_text_stays_as_it_is():
    text = "Grüße, 世界! 👩‍🚀\n\tif x < 3:\n"
    assert without_controls(text) == text


def test_an_escape_split_between_two_pieces_does_not_get_through():
    stream = Terminal()
    printer = StreamPrinter(stream)
    for piece in ("a\x1b", "[31", "mb"):
        printer.write(piece)
    printer.end()
    assert stream.getvalue() == "a[31mb\n"


def test_a_pipe_gets_the_text_itself():
    stream = io.StringIO()
    printer = StreamPrinter(stream)
    printer.write("\x1b[31m")
    printer.end()
    assert stream.getvalue() == "\x1b[31m\n"


def test_one_newline_at_the_end():
    for pieces, shown in ((["a", "b"], "ab\n"), (["a\n"], "a\n"), ([], ""), ([""], "")):
        stream = io.StringIO()
        printer = StreamPrinter(stream)
        for piece in pieces:
            printer.write(piece)
        printer.end()
        assert stream.getvalue() == shown


def test_what_comes_before_the_first_piece_comes_once():
    stream = io.StringIO()
    printer = StreamPrinter(stream, before_first=lambda: stream.write("> "))
    printer.write("a")
    printer.write("b")
    assert stream.getvalue() == "> ab"
