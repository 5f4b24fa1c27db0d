"""What rows come to, against numpy and against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finemoe_cli.evaluation.metrics import COUNTS, intervals, metrics_of, phase_metrics, quantile, spread
from offload.telemetry.counters import PhaseCounts

SECONDS = st.floats(0, 1e4, allow_nan=False)


@given(st.lists(SECONDS, min_size=1), st.floats(0, 1))
def test_quantiles_are_numpys(values, share):
    assert quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-9, abs=1e-9)


def test_nothing_to_measure_is_null():
    assert spread([None, None]) == {"count": 0, "mean": None, "median": None, "p90": None, "p99": None}
    assert spread([None, 2.0, 4.0])["mean"] == 3


def test_intervals():
    assert intervals([0.5, 0.75, 1.75]) == [0.25, 1.0]
    assert intervals([0.5]) == intervals([]) == []


def test_every_count_of_the_engine_is_added_up():
    assert set(COUNTS) | {"hit_rate", "covered_rate"} == set(PhaseCounts().to_dict())
    one = PhaseCounts(10, 4, 3, 2, 1, 100, 50, 10, 0.5, 7)
    two = PhaseCounts(30, 30, 0, 0, 0, 0, 0, 0, 0.0, 0)
    found = phase_metrics([one.to_dict(), two.to_dict()], tokens=5)
    assert {name: found[name] for name in COUNTS} == {
        name: getattr(one, name) + getattr(two, name) for name in COUNTS
    }
    assert (found["hit_rate"], found["covered_rate"]) == (37 / 40, 39 / 40)
    assert (found["late_rate"], found["missed_rate"]) == (2 / 40, 1 / 40)
    assert (found["bytes_per_token"], found["stall_per_token_s"]) == (30, 0.1)


def test_of_no_request_nothing_is_said():
    found = metrics_of([{"combination": "a", "number": 0, "error": "no"}])
    assert (found["requests"], found["errors"], found["tokens_per_s"]) == (0, 1, None)
    assert found["decode"]["hit_rate"] is None and found["memory"]["peak_bytes"] is None
