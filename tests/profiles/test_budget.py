from __future__ import annotations

import pytest

from offload.errors import ConfigError
from profiles.budget import Budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("900MiB", Budget(total_bytes=900 << 20)),
        ("1.5 GiB", Budget(total_bytes=3 << 29)),
        ("0", Budget(total_bytes=0)),
        ("25%", Budget(experts_fraction=0.25)),
        ("12.5 %", Budget(experts_fraction=0.125)),
        ("100%", Budget(experts_fraction=1.0)),
        ("minimum", Budget(experts_fraction=0.0)),
    ],
)
def test_a_size_a_share_or_the_minimum(text, budget):
    assert Budget.parse(text) == budget
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize("text", ["", "much", "-5", "900 MiBs", "0%", "101%", "%", "nan", "inf", "9" * 400])
def test_anything_else_is_refused_with_the_three_forms(text):
    with pytest.raises(ConfigError) as caught:
        Budget.parse(text)
    assert "minimum" in caught.value.hint
