"""Reading a user's own file of prompts, row by row, whatever its form. What fits in no form is skipped and told."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from finemoe_cli.datasets.conversation import Conversation
from finemoe_cli.datasets.errors import BadRow, DatasetError
from finemoe_cli.datasets.parquet_rows import parquet
from finemoe_cli.datasets.rows import conversation_of
from finemoe_cli.datasets.text_rows import Rows, decoded, json_array, json_lines, lines

PROBLEMS_KEPT = 100
"""So many problems are described; further ones are only counted."""

_HOW = "see docs/datasets.md for the forms of rows that are read"


@dataclass(frozen=True)
class RowProblem:
    """A row that was skipped."""

    row: int
    """Which one, from 1: the line of a text file, the element of an array, the row of a table."""
    reason: str
    """Why, in words that follow "row 7: "."""

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason}"


@dataclass(frozen=True)
class ReadResult:
    """What a file of prompts has."""

    conversations: tuple[Conversation, ...]
    """At least one, in the file's order."""
    skipped: tuple[RowProblem, ...]
    """The first `PROBLEMS_KEPT` rows that were skipped."""
    skipped_rows: int
    """How many rows were skipped in all, up to where reading ended."""


def read_prompts(path: Path, limit: int | None = None) -> ReadResult:
    """Read the prompts of a file; its name says what it is.

    ``.txt`` has one prompt a line; ``.json``, ``.jsonl`` and ``.ndjson`` an array of rows, or else one row a line;
    ``.parquet`` a table. `conversation_of` says what rows there are. Text is UTF-8, or what a byte order mark says.
    The file is not read further than the limit needs, and besides the conversations no more of a text is in memory
    than one row and some hundred KiB.

    Args:
        limit: Read so many conversations, at least 1; ``None`` for all.

    Raises:
        DatasetError: The file cannot be read, its name says nothing, or no row of it can be used.
    """
    if limit is not None and limit < 1:
        raise DatasetError(f"{limit} conversations cannot be read", "1 at least")
    conversations: list[Conversation] = []
    problems: list[RowProblem] = []
    skipped_rows = 0
    try:
        with closing(_rows(path)) as rows:
            for number, row in rows:
                try:
                    conversations.append(_usable(row, number))
                except BadRow as problem:
                    skipped_rows += 1
                    if len(problems) < PROBLEMS_KEPT:
                        problems.append(RowProblem(number, problem.message))
                if len(conversations) == limit:
                    break
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    if not conversations and not problems:
        raise DatasetError(f"{path} has no prompts", _HOW)
    if not conversations:
        rows_read = "the only row" if skipped_rows == 1 else f"none of the {skipped_rows} rows"
        cannot = "cannot be used" if skipped_rows == 1 else "can be used"
        raise DatasetError(
            f"{rows_read} of {path} {cannot}: {problems[0]}",
            _HOW,
        )
    return ReadResult(tuple(conversations), tuple(problems), skipped_rows)


def _usable(row: object, number: int) -> Conversation:
    if isinstance(row, BadRow):
        raise row
    return conversation_of(row, number)


def _rows(path: Path) -> Generator[tuple[int, object], None, None]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from parquet(path)
        return
    if suffix not in (".txt", ".json", ".jsonl", ".ndjson"):
        raise DatasetError(
            f"the name of {path} does not say what it is", "it has to end in .txt, .jsonl, .json or .parquet"
        )
    with path.open("rb") as file:
        pieces = decoded(file)
        yield from lines(pieces) if suffix == ".txt" else _json(pieces)


def _json(pieces: Iterator[str]) -> Rows:
    """An array if the text begins as one, else JSON Lines."""
    begun = []
    for piece in pieces:
        begun.append(piece)
        if piece.strip():
            break
    first = begun[-1].lstrip()[:1] if begun else ""
    return (json_array if first == "[" else json_lines)(chain(begun, pieces))
