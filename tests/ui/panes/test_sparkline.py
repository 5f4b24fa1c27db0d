"""Graphs: scales that only grow, bars by eighths, ticks of marks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.style import Style

from tests.support.synthetic import SyntheticEngine
from ui.panes.history import FrameHistory
from ui.panes.pane import Look
from ui.panes.sparkline import Scale, bars, graph, mark_columns, round_up, time_step


@given(st.floats(1e-6, 1e15))
def test_a_round_number_is_one_two_or_five_and_not_far(value: float) -> None:
    top = round_up(value)
    assert value <= top <= value * 2.5 + 1e-12
    assert f"{top:.6e}"[0] in "125"
    assert set(f"{top:.6e}"[2:8]) == {"0"}


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=30))
def test_a_scale_only_grows_and_has_room(values: list[float]) -> None:
    scale, tops = Scale(10.0), []
    for value in values:
        tops.append(scale.include(np.array([value, np.nan])))
        assert tops[-1] >= value
    assert tops == sorted(tops)


def test_a_scale_begins_anew_with_another_engine() -> None:
    scale = Scale(10.0)
    assert scale.include(np.array([900.0]), generation=1) == 1000
    assert scale.include(np.array([3.0]), generation=1) == 1000
    assert scale.include(np.array([3.0]), generation=2) == 10


def test_bars_by_eighths() -> None:
    values = np.array([0, 0.001, 4, 8, 12, 16, 99, np.nan])
    assert bars(values, 2, 16.0, Look.COLOUR) == ["    ▄██ ", " ▁▄████ "]
    assert bars(values, 1, 16.0, Look.ASCII) == [" .:=*## "]


@given(st.lists(st.floats(0, 200), min_size=1, max_size=20), st.integers(1, 4))
def test_bars_are_monotone_and_fill_their_rows(values: list[float], rows: int) -> None:
    lines = bars(np.array(values), rows, 100.0, Look.COLOUR)
    assert [len(line) for line in lines] == [len(values)] * rows
    heights = [sum(" ▁▂▃▄▅▆▇█".index(line[column]) for line in lines) for column in range(len(values))]
    order = np.argsort(values)
    assert sorted(heights) == [heights[column] for column in order]
    assert all((height > 0) == (value > 0) for height, value in zip(heights, values, strict=True))


def test_a_graph_has_ticks_and_a_floor() -> None:
    plain, floor, mark = Style(), Style(dim=True), Style(bold=True)
    lines = graph(np.array([0.0, 0.0, 8.0]), 2, 8.0, Look.COLOUR, plain, floor, mark, {1})
    assert ["".join(piece.text for piece in line) for line in lines] == [" ╎█", "▁╎█"]
    assert [piece.style for piece in lines[1]] == [floor, mark, plain]


def test_marks_are_where_their_time_is() -> None:
    engine, history = SyntheticEngine(2, 4, 1, slots=4), FrameHistory()
    for _ in range(40):
        engine.rest(0.25)
        history.add(engine.frame())
    engine.set_slots(3, "low")
    moment = engine.time
    for _ in range(12):
        engine.rest(0.25)
        history.add(engine.frame())
    (column,) = mark_columns(history, 8, 1.0)
    edges = history.edges(8, 1.0)
    assert edges[column] <= moment < edges[column + 1]
    assert mark_columns(history, 2, 1.0) == set()


def test_steps_of_time_are_round() -> None:
    assert [time_step(columns, 50) for columns in (200, 60, 28, 4)] == [0.5, 1.0, 2.0, 20.0]
    assert time_step(1, 600) == pytest.approx(60.0)
