"""Which rows were skipped is said, row by row."""

from __future__ import annotations

import pytest

from finemoe_cli.datasets.skipped import TOLD, tell_skipped
from finemoe_cli.output import Output

ROWS = [f"row {number}: it is blank" for number in range(1, 101)]


def told(capsys: pytest.CaptureFixture[str], rows: int) -> list[str]:
    tell_skipped(Output(), "mine.jsonl", ROWS[:rows], rows, "summary.json")
    return capsys.readouterr().err.splitlines()


def test_none(capsys):
    assert told(capsys, 0) == []


def test_one(capsys):
    assert told(capsys, 1) == ["warning: 1 row of mine.jsonl was skipped; row 1: it is blank"]


def test_some(capsys):
    assert told(capsys, 2) == ["warning: 2 rows of mine.jsonl were skipped", *ROWS[:2]]


def test_many(capsys):
    lines = told(capsys, 1234)
    assert lines[0] == "warning: 1,234 rows of mine.jsonl were skipped"
    assert lines[1:-1] == ROWS[:TOLD]
    assert lines[-1] == "and 1,224 more, see summary.json"
