"""The x axis of layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui.panes.axis import LayerAxis


@given(layers=st.integers(1, 200), width=st.integers(1, 200))
def test_every_layer_has_a_place_and_all_fit(layers: int, width: int) -> None:
    axis = LayerAxis.fit(layers, width)
    assert axis.width <= width
    assert axis.groups * axis.group >= layers > (axis.groups - 1) * axis.group
    assert len(axis.ruler()) <= axis.width
    grouped = axis.grouped(np.ones((3, layers), np.int64))
    assert grouped.shape == (3, axis.groups, axis.group)
    assert grouped.sum() == 3 * layers


@pytest.mark.parametrize(
    ("layers", "width", "group", "cell", "ruler"),
    [
        (24, 30, 1, 1, "0   4   8   12  16  20"),
        (24, 60, 1, 2, "0   2   4   6   8   10  12  14  16  18  20  22"),
        (48, 30, 2, 1, "0   8   16  24  32  40"),
        (4, 60, 1, 4, "0   1   2   3"),
    ],
)
def test_fit(layers: int, width: int, group: int, cell: int, ruler: str) -> None:
    axis = LayerAxis.fit(layers, width)
    assert (axis.group, axis.cell) == (group, cell)
    assert axis.ruler() == ruler


@given(layers=st.integers(1, 130), width=st.integers(8, 200))
def test_numbers_on_the_ruler_stand_over_their_layers(layers: int, width: int) -> None:
    axis = LayerAxis.fit(layers, width)
    ruler = axis.ruler()
    at = 0
    for word in ruler.split():
        at = ruler.index(word, at)
        assert at == int(word) // axis.group * axis.cell
        at += len(word)
