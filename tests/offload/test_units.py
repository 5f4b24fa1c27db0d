"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.errors import ConfigError
from offload.units import GIB, MIB, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [("900MiB", 900 * MIB), ("1.5 GB", 1_500_000_000), ("2g", 2 * GIB), ("1048576", MIB), (" 0.5 KiB ", 512)],
)
def test_sizes_are_understood(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "1 parsec", "-1MiB", "1e3", "9" * 400, "9" * 400 + "TiB"])
def test_what_is_no_size_is_said_in_one_line(text):
    with pytest.raises(ConfigError, match="is not a size") as raised:
        parse_bytes(text)
    assert len(raised.value.message) < 460 and raised.value.hint


@given(st.integers(0, 1 << 60))
def test_a_size_that_is_shown_is_read_again_to_three_digits(count):
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.006)
