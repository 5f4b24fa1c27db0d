"""Arrivals, from rates and from files, and the queue that they make, against a queue that is walked through."""

from __future__ import annotations

import json
from itertools import pairwise
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finemoe_cli.evaluation.arrivals import Clock, arrival_times, queued
from finemoe_cli.evaluation.metrics import metrics_of
from offload.errors import ConfigError
from tests.finemoe_cli.evaluation.test_compare import request

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2222670,879,55
"""


def test_at_once_and_none():
    assert arrival_times("at-once", 1, 3, 0) == [0, 0, 0]
    assert arrival_times(None, 1, 3, 0) is None


def test_poisson_is_the_seeds():
    times = arrival_times("poisson:0.5", 1, 2000, 7)
    assert times == arrival_times("poisson:0.5", 1, 2000, 7) != arrival_times("poisson:0.5", 1, 2000, 8)
    assert times[0] == 0 and times == sorted(times)
    gaps = sorted(after - before for before, after in pairwise(times))
    assert sum(gaps) / len(gaps) == pytest.approx(2, rel=0.1)
    assert gaps[len(gaps) // 2] == pytest.approx(2 * log(2), rel=0.1)  # Not evenly spaced: exponential.


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("azure.csv", AZURE),
        ("bom.csv", "\ufeff" + AZURE),
        ("other.csv", "id, Timestamp \n1,2024-05-10 00:00:00.5+00:00\n2,2024-05-10T00:00:05.041677Z\n"),
        ("late.csv", "arrival_s\n4.541677\n0\n\n4.314579\n"),
        ("lines.jsonl", '{"timestamp": 10, "x": 1}\n\n{"timestamp": 14.314579}\n{"timestamp": "14.541677"}\n'),
    ],
)
def test_files(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    count = 2 if name == "other.csv" else 3
    wanted = [0, 4.541677] if count == 2 else [0, 4.314579, 4.541677]
    assert arrival_times(str(path), 1, count, 0) == wanted
    assert arrival_times(str(path), 10, count, 0) == [round(10 * time, 6) for time in wanted]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("few.csv", b"time\n1\n", "few.csv has 1 arrivals, and there are 2 conversations"),
        ("empty.csv", b"", "empty.csv has no column of times"),
        ("columns.csv", b"a,b\n1,2\n", "columns.csv has no column of times"),
        ("word.csv", b"time\n1\nsoon\n", "row 3 of .*word.csv has no time"),
        ("short.csv", b"a,time\n1,2\n3\n", "row 3 of .*short.csv has no time"),
        ("nan.csv", b"time\n1\nnan\n", "row 3 of .*nan.csv has no time"),
        ("null.jsonl", b'{"time": null}\n', "row 1 of .*null.jsonl has no time"),
        ("list.jsonl", b"[1]\n", "row 1 of .*list.jsonl is no JSON object"),
        ("cut.jsonl", b'{"time": \n', "row 1 of .*cut.jsonl is no JSON object"),
        ("bytes.csv", b"time\n\xff\xfe\n", "bytes.csv is not text in UTF-8"),
        ("zero.csv", b"time\n1\0\n", "zero.csv is not text"),
        ("long.csv", b"x" * (2 << 20), "long.csv has a line of more than a million characters"),
    ],
)
def test_files_that_are_none(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said) as raised:
        arrival_times(str(tmp_path / name), 1, 2, 0)
    assert "\n" not in raised.value.message and raised.value.hint


@pytest.mark.parametrize(
    ("arrivals", "scale", "said"),
    [
        ("poisson:0", 1, "'0' is not a rate"),
        ("poisson:fast", 1, "'fast' is not a rate"),
        ("sometimes", 1, "there are no arrivals 'sometimes'"),
        ("at-once", 0, "--arrival-scale is 0"),
        (None, 2, "--arrival-scale is given without --arrivals"),
    ],
)
def test_no_arrivals(arrivals, scale, said):
    with pytest.raises(ConfigError, match=said):
        arrival_times(arrivals, scale, 2, 0)


TALKS = st.lists(
    st.tuples(st.integers(0, 50), st.lists(st.integers(1, 9), min_size=1, max_size=3)), min_size=1, max_size=12
)


@given(TALKS)
def test_a_queue_walked_through_second_by_second(talks):
    """Arrivals and services in whole seconds, against a server that looks every second what it has to do."""
    talks.sort(key=lambda talk: talk[0])
    clock = Clock([float(arrival) for arrival, _ in talks])
    ends = []
    for number, (_, services) in enumerate(talks):
        for turn, service in enumerate(services, 1):
            waited = clock.served(number, turn, float(service))
            ends.append(waited["arrival_s"] + waited["queue_s"] + service)
            assert turn == 1 or waited["queue_s"] == 0

    now, wanted = 0, []
    waiting = [(arrival, list(services)) for arrival, services in talks]
    while waiting:
        arrival, services = waiting[0]
        if arrival > now:
            now += 1
            continue
        now += services.pop(0)
        wanted.append(now)
        if not services:
            waiting.pop(0)
    assert ends == wanted


def test_times_go_from_the_arrival_on():
    clock = Clock([0.0, 0.25])
    rows = []
    for number in range(2):
        row = request("a", number, 0.5, 4)
        rows.append(queued(row, clock.served(number, 1, row["e2e_s"])))
    assert [row["queue_s"] for row in rows] == [0, pytest.approx(0.45)]
    assert rows[1]["ttft_s"] == pytest.approx(0.95)
    assert rows[1]["token_times_s"] == pytest.approx([0.95, 1.05, 1.15])
    assert (rows[1]["service_s"], rows[1]["tpot_s"]) == (pytest.approx(0.7), 0.1)
    found = metrics_of(rows)
    assert found["busy_s"] == pytest.approx(1.4) == pytest.approx(found["makespan_s"])
    assert found["tokens_per_s"] == pytest.approx(6 / 1.4)
    assert found["queue_s"]["mean"] == pytest.approx(0.225)
    assert metrics_of(json.loads(json.dumps(rows[1:])))["makespan_s"] == pytest.approx(1.15)
