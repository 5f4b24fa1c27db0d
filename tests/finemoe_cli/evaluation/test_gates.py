"""Gates: reading them, and judging by them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finemoe_cli.evaluation.gates import Gate, judge, metric_names, parse_gates
from finemoe_cli.evaluation.metrics import metrics_of
from offload.errors import ConfigError

DOCUMENT = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("space", ["", " "])
def test_written(space):
    assert parse_gates([f"hit_rate{space}<{space}0.6", "ttft_s.p90>=2", "decode.stall_s>1e-3"]) == [
        Gate(f"hit_rate{space}<{space}0.6", "hit_rate", "<", 0.6),
        Gate("ttft_s.p90>=2", "ttft_s.p90", ">=", 2.0),
        Gate("decode.stall_s>1e-3", "decode.stall_s", ">", 0.001),
    ]


@pytest.mark.parametrize(
    "text", ["", "hit_rate", "hit_rate<", "hit_rate=0.6", "hit_rate<much", "hit_rate<nan", "<1"]
)
def test_not_written(text):
    with pytest.raises(ConfigError, match="is not a condition"):
        parse_gates([text])


def test_an_unknown_metric_is_a_usage_error():
    with pytest.raises(ConfigError, match="there is no metric 'hit_rates'") as error:
        parse_gates(["hit_rates<1"])
    assert error.value.hint == "did you mean 'hit_rate'?"


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_exactly_one_of_two_opposite_gates_fails(value, limit):
    for one, other in (("<", ">="), (">", "<=")):
        assert Gate("", "", one, limit).fails(value) != Gate("", "", other, limit).fails(value)


def test_what_was_not_measured_fails():
    (verdict,) = judge(parse_gates(["hit_rate<0.6"]), [{"name": "a", **metrics_of([])}])
    assert (verdict.combination, verdict.value, verdict.failed) == ("a", None, True)


def test_every_metric_is_documented():
    words = set(re.findall(r"[a-z0-9_]+", DOCUMENT))
    counts = (Path(__file__).parents[3] / "docs" / "telemetry.md").read_text(encoding="utf-8")
    words |= set(re.findall(r"[a-z0-9_]+", counts))
    assert [name for name in metric_names() if not set(name.split(".")) <= words] == []
