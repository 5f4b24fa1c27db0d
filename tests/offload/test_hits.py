"""Hit rates by share: curves, and measuring them from what routers chose."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.hits import DEMO, PUBLISHED, SHARES, HitCurve, known_curve, lru_hits, measured_curve
from offload.models.demo import DEMO_NAME
from offload.models.spec import read_spec
from tests.offload.test_forecast import PUBLISHED as MODELS
from tests.offload.test_forecast import QWEN3, sizes_of


def test_the_published_curve_goes_through_its_points_above_two_working_sets():
    spec = sizes_of(QWEN3).spec
    curve = known_curve(spec)
    for share, hits in PUBLISHED:
        if share >= 2 * spec.top_k / spec.num_experts:
            assert curve.at(share) == pytest.approx(hits, abs=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_nothing_below_a_working_set_and_never_falls(name):
    spec = sizes_of(name).spec
    curve = known_curve(spec)
    rates = [curve.at(slots / spec.total_experts) for slots in range(spec.total_experts + 1)]
    assert set(rates[: spec.num_layers * spec.top_k + 1]) == {0.0}
    assert rates == sorted(rates)
    assert rates[-1] == 1.0


def test_the_demo_has_a_curve_of_its_own(demo_model: Path):
    curve = known_curve(read_spec(demo_model))
    assert curve.points == DEMO and DEMO_NAME in curve.source
    assert curve.at(0.25) == 0.48 and curve.at(0.06) == 0.0


def test_an_lru_cache_by_hand():
    # a b | a c | b a: with two places, the first two steps fill it and c pushes b out.
    assert lru_hits([[1], [2], [1], [3], [2], [1]], 2) == 0.0
    # Two that take turns with a third that comes once: full from the third step on.
    assert lru_hits([[1], [2], [9], [2], [9], [2], [9]], 2) == pytest.approx(4 / 5)
    # It never gets full: the second half counts.
    assert lru_hits([[1], [2], [1], [2]], 5) == 1.0
    assert lru_hits([], 5) == 0.0


@given(st.lists(st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True), min_size=40, max_size=60))
def test_a_curve_has_all_shares_and_is_a_rate(tokens):
    answer = [[chosen, chosen] for chosen in tokens]
    points = measured_curve([answer], 8, 16)
    assert [share for share, _ in points] == [0.0, *SHARES, 1.0]
    assert all(0 <= hits <= 1 for _, hits in points)
    assert HitCurve(points, "here").at(1.0) == 1.0


def test_tokens_that_repeat_themselves_hit_from_their_own_number_on():
    answer = [[[0, 1], [2, 3]]] * 20
    curve = HitCurve(measured_curve([answer, answer], 8, 16), "here")
    assert curve.at(0.25) == 1.0, "four of sixteen"
    assert curve.at(0.125) == 0.0, "two are pushed out before they come again"
