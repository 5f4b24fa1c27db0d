"""What an expert's past says: the recursion, the compiled one beside it, and weights fitted from a process."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.policy.kernels import auto as kernels
from offload.policy.past import DECAY, DECAYS, FADE, HORIZON, LATER, RECENCIES, ROOTS, SOON, Past

FEATURES = len(DECAYS) + len(ROOTS) + len(RECENCIES) + 1
HISTORIES = st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=3), max_size=40)


@settings(deadline=None)
@given(history=HISTORIES, rate=st.floats(0.01, 0.5))
def test_frequencies_and_recencies_are_sums_over_the_past(history: list[set[int]], rate: float) -> None:
    past = Past(6, rate)
    for used in history:
        past.see(np.array(sorted(used), np.int64))
    tokens = len(history)
    for expert in range(6):
        ages = np.array([tokens - 1 - t for t, used in enumerate(history) if expert in used])
        for decay, found in zip(DECAYS, past.frequency[:, expert], strict=True):
            assert found == pytest.approx(rate * decay**tokens + ((1 - decay) * decay**ages).sum(), rel=1e-4)
        for span, found in zip(RECENCIES, past.recency[:, expert], strict=True):
            blank = rate / (1 - (1 - rate) * np.exp(-1 / span))
            expected = np.exp(-ages.min() / span) if len(ages) else blank * np.exp(-tokens / span)
            assert found == pytest.approx(expected, rel=1e-4)


@settings(deadline=None)
@given(history=HISTORIES, rate=st.floats(0.01, 0.5))
def test_the_kernels_see_and_recall_the_same(history: list[set[int]], rate: float) -> None:
    past, first, experts = Past(18, rate), 6, 6
    frequency, recency = past.frequency.copy(), past.recency.copy()
    for used in history:
        chosen = np.array([sorted(used)], np.int32)
        kernels.see(frequency, recency, DECAY, FADE, chosen, first, experts)
        kept = past.frequency.copy(), past.recency.copy()
        past.see(first + chosen[0].astype(np.int64))
        for now, before in zip((past.frequency, past.recency), kept, strict=True):
            now[:, :first], now[:, first + experts :] = before[:, :first], before[:, first + experts :]
    assert np.allclose(frequency, past.frequency, rtol=1e-4)  # of the layer; the other layers' are as they were
    assert np.allclose(recency, past.recency, rtol=1e-4)
    odds, far, topic = np.zeros(18, np.float32), np.zeros(18, np.float32), np.linspace(0, 1, 18, dtype=np.float32)
    later = LATER.copy()
    later[-1] = 0.3
    kernels.recall(frequency, recency, np.array(ROOTS, np.int64), SOON, later, topic, odds, far)
    p = np.clip(SOON @ past.features(), 0.003, 0.997)
    assert np.allclose(odds, np.log(p / (1 - p)), atol=1e-3)
    assert np.allclose(far, np.clip(LATER[:-1] @ past.features() + 0.3 * topic, 0, 1), atol=1e-4)


def test_several_tokens_at_once_are_several_tokens() -> None:
    chosen = np.random.default_rng(0).permuted(np.tile(np.arange(6, dtype=np.int32), (9, 1)), axis=1)[:, :2]
    together, apart = Past(6, 0.3), Past(6, 0.3)
    kernels.see(together.frequency, together.recency, DECAY, FADE, chosen, 0, 6)
    for row in chosen:
        kernels.see(apart.frequency, apart.recency, DECAY, FADE, row[None], 0, 6)
    assert np.array_equal(together.frequency, apart.frequency)
    assert np.array_equal(together.recency, apart.recency)


@pytest.mark.parametrize("rate", [1 / 15, 1 / 8])
def test_the_beginning_is_no_surprise(rate: float) -> None:
    """Nothing is known: experts are as likely as by chance."""
    assert np.allclose(SOON @ Past(3, rate).features(), rate, atol=0.6 * rate)


def test_there_is_a_weight_for_every_feature() -> None:
    assert SOON.shape == (FEATURES,)
    assert LATER.shape == (FEATURES + 1,)  # and for the topic, of which nothing is known
    assert LATER[-1] == 0
    assert Past(4, 0.1).features().shape == (FEATURES, 4)


def test_fitting_finds_how_likely_the_next_use_is() -> None:
    """Half of the experts come often, half seldom, each token by chance alone."""
    random, tokens = np.random.default_rng(1), 2000
    chosen = np.where(random.random(tokens) < 0.9, random.integers(0, 6, tokens), random.integers(6, 12, tokens))
    soon, later, odds = Past.fit(chosen[:, None, None], np.zeros(tokens, bool), 12)
    assert (soon.shape, later.shape) == ((FEATURES,), (FEATURES + 1,))
    assert odds.shape == (tokens, 12)
    p = 1 / (1 + np.exp(-odds[400:]))
    assert p[:, :6].mean() == pytest.approx(0.15, abs=0.02)
    assert p[:, 6:].mean() == pytest.approx(0.1 / 6, abs=0.01)
    assert np.abs(p[:, :6] - 0.15).mean() < 0.04  # nothing more is to be known, and it does not think so


def test_fitting_finds_bursts() -> None:
    """What was used in the last token is used again in nine cases of ten."""
    random, tokens = np.random.default_rng(1), 2000
    chosen = [0]
    for _ in range(tokens - 1):
        chosen.append(chosen[-1] if random.random() < 0.9 else int(random.integers(0, 12)))
    rows = np.array(chosen)
    _, _, odds = Past.fit(rows[:, None, None], np.zeros(tokens, bool), 12)
    p = 1 / (1 + np.exp(-odds[1:]))
    again = np.zeros(p.shape, bool)
    np.put_along_axis(again, rows[:-1, None], True, axis=1)
    assert p[again].mean() == pytest.approx(0.9 + 0.1 / 12, abs=0.03)
    assert p[~again].mean() == pytest.approx(0.1 / 12, abs=0.01)


def test_fitting_finds_how_far_the_next_use_is() -> None:
    """Every expert is used each eighth token: the one used last comes latest."""
    tokens = 1600
    chosen = (np.arange(tokens) % 8)[:, None, None]
    soon, later, _ = Past.fit(chosen, np.zeros(tokens, bool), 8)
    past = Past(8, 1 / 8)
    for token in range(400):
        past.see(chosen[token, 0])
    waits = np.array([(expert - 400) % 8 + 1 for expert in range(8)])  # tokens until each one's turn
    features = past.features()
    assert np.argmax(soon @ features) == np.argmin(waits)
    rest = waits > 1
    expected = np.exp(-(waits[rest] - 2) / HORIZON)
    assert np.allclose((later[:-1] @ features)[rest], expected, atol=0.08)


def test_fitting_finds_what_the_topic_says() -> None:
    """What the topic names is used by every other token, at random, whatever was before."""
    random, tokens = np.random.default_rng(3), 3000
    topic = np.zeros((tokens, 12), np.float32)
    named = random.integers(0, 12, tokens // 50)[np.arange(tokens) // 50]
    topic[np.arange(tokens), named] = 1
    chosen = np.where(random.random(tokens) < 0.5, named, random.integers(0, 12, tokens))[:, None, None]
    nobody = np.zeros(tokens, bool)
    *_, blind = Past.fit(chosen, nobody, 12)[:2]
    *_, told = Past.fit(chosen, nobody, 12, topic, np.arange(tokens) > 1500)[:2]
    assert blind[-1] == 0
    assert told[-1] > 0.2


def test_prompts_count_as_past_and_not_as_what_is_to_be_foretold() -> None:
    """Prompts use the upper half, answers the lower: nothing of the upper half is ever used next."""
    random = np.random.default_rng(2)
    observed = np.arange(2000) % 100 < 50
    rows = np.array([random.permutation(6)[:2] + 6 * prompt for prompt in observed])[:, None, :]
    _, _, odds = Past.fit(rows, observed, 12)
    p = 1 / (1 + np.exp(-odds))
    deep = (np.arange(2000) % 100 > 70) & (np.arange(2000) > 200)  # tokens well within an answer
    assert 0.25 < p[deep][:, :6].mean() < 0.4
    assert p[deep][:, 6:].mean() < 0.08
