"""How far an evaluation is, said where there is no terminal."""

from __future__ import annotations

import pytest

from finemoe_cli.evaluation import sitting
from finemoe_cli.output import Output


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands; ``clock[0]`` is the time."""
    now = [100.0]
    monkeypatch.setattr(sitting.time, "monotonic", lambda: now[0])
    return now


def test_the_time_that_is_left_counts_from_where_the_stage_began(clock, capsys):
    tell = sitting._progress(Output(), None)
    tell("history", 0, 4)
    for done in (1, 2, 3):
        clock[0] += 30
        tell("history", done, 4)
    clock[0] += 500  # fitting, opening engines, warming up
    tell("evaluate", 0, 20)
    for done in range(1, 21):
        clock[0] += 10
        tell("evaluate", done, 20)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [f"learning from the history: {done} of 4, {left} left" for done, left in
                         ((1, "1:30"), (2, "1:00"), (3, "0:30"))]  # fmt: skip
    assert lines[3:] == [f"evaluating: {done} of 20, {(20 - done) // 6}:{(20 - done) % 6}0 left" for done in
                         range(2, 20, 2)]  # fmt: skip


def test_a_stage_that_comes_again_begins_anew(clock, capsys):
    tell = sitting._progress(Output(), None)
    for pace in (10, 20):
        for done in range(2):
            tell("history", done, 2)
            clock[0] += pace
    assert capsys.readouterr().err.splitlines() == [
        "learning from the history: 1 of 2, 0:10 left",
        "learning from the history: 1 of 2, 0:20 left",
    ]
