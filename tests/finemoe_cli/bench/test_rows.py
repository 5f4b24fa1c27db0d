"""From samples to rows, by hand."""

from __future__ import annotations

import csv
import io

import pytest

from finemoe_cli.bench.plan import Configuration, Workload, configurations, prompts
from finemoe_cli.bench.rows import COLUMNS, HEADERS, as_csv, as_markdown, cells_of, percentile, rows_of
from finemoe_cli.bench.samples import Measured, Opened, Sample
from offload.config import EngineConfig
from offload.errors import ConfigError
from offload.units import MIB

OPENED = Opened(
    device="cpu", kernels="fast", policy="demand", threads=2, lanes=2, direct=True, store="safetensors",
    load_s=3.0, budget_bytes=1 << 30, slots=30, slot_bytes=4 * MIB, record_bytes=4 * MIB,
    experts=120,
)  # fmt: skip


def sample(seconds, *, tokens=10, hits=60, stall=0.5, intervals=()):
    return Sample(
        tokens=tokens, seconds=seconds, selections=100, hits=hits, nbytes=40 * MIB, stall_s=stall, major_faults=5,
        minor_faults=20, intervals=list(intervals),
    )  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    one = Configuration("demand", "25%", "bf16", EngineConfig(model=tmp_path, experts_fraction=0.25))
    measured = Measured(
        OPENED,
        prompts=[sample(2.0, tokens=100)],
        answers=[sample(1.0, intervals=[0.1] * 9 + [0.2]), sample(2.0, hits=40, intervals=[0.2] * 10)],
        peak_bytes=123 * MIB,
        disk_rates=[1e9, 3e9],
    )
    return rows_of(one, Workload(prompt=100, generate=11, repeats=2, seed=0, cold=False), measured)


def test_a_row_is_what_its_samples_come_to(rows):
    prompt, answer = rows
    assert (prompt.test, answer.test) == ("pp100", "tg11")
    assert (prompt.tokens_per_s, prompt.tokens_per_s_sd) == (50.0, 0.0)
    assert (prompt.token_p50_s, prompt.token_p99_s) == (None, None)
    # 10 tokens in one second and in two: 10 and 5 a second.
    assert answer.tokens_per_s == 7.5
    assert answer.tokens_per_s_sd == pytest.approx(3.5355, abs=1e-4)
    assert answer.hit_rate == 0.5
    assert answer.mib_per_token == 4.0
    assert answer.stall_s == pytest.approx(0.05) and answer.compute_s == pytest.approx(0.10)
    assert (answer.token_p50_s, answer.token_p99_s) == (0.2, 0.2)
    assert (answer.major_faults, answer.minor_faults) == (0.5, 2.0)
    assert (answer.share, answer.slots, answer.repeats) == (0.25, 30, 2)
    # At 1 and at 3 GB/s, a gigabyte takes 1 s and a third of one, two thirds in the mean.
    assert answer.disk_bytes_per_s == pytest.approx(1.5e9)


def test_percentiles_are_of_what_was_measured():
    assert percentile([], 0.5) is None
    assert percentile([1.0], 0.99) == 1.0
    hundred = [float(n) for n in range(1, 101)]
    assert [percentile(hundred, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]


def test_all_forms_have_all_rows(rows):
    table = as_markdown([("model", "tiny"), ("machine", "this")], rows).splitlines()
    assert table[:2] == ["model: tiny  ", "machine: this  "]
    assert table[3].count("|") == table[4].count("|") == table[5].count("|") == len(HEADERS) + 1
    assert table[5].startswith("| pp100 | demand | 25% | 25% | 50.0 ± 0.00 | 60.0% | ")
    header, *lines = csv.reader(io.StringIO(as_csv({"model": "tiny"}, rows)))
    assert header == ["model", *COLUMNS]
    assert len(lines) == 2 and all(len(line) == len(header) for line in lines)
    by_name = dict(zip(header, lines[1], strict=True))
    assert float(by_name["tokens_per_s"]) == 7.5 and by_name["test"] == "tg11"
    assert len(cells_of(rows[0])) == len(HEADERS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": 0, "generate": 0},
        {"generate": 1},
        {"prompt": -1},
        {"generate": -2},
        {"repeats": 0},
        {"seed": -1},
    ],
)
def test_tests_that_measure_nothing_are_refused(wrong):
    with pytest.raises(ConfigError):
        Workload(**{"prompt": 4, "generate": 4, "repeats": 1, "seed": 0, "cold": False} | wrong)


ASKED = dict.fromkeys(("model", "profile", "budget", "policy", "precision", "context", "kernels"))
SHORT = Workload(prompt=16, generate=0, repeats=1, seed=0, cold=False)


def test_every_policy_is_measured_with_every_budget_and_nothing_learnt_before(tmp_path):
    found = configurations(ASKED | {"policy": "demand,auto", "budget": "25%,900MiB"}, tmp_path, SHORT)
    assert [(one.policy, one.budget) for one in found] == [
        ("demand", "25%"), ("auto", "25%"), ("demand", "900MiB"), ("auto", "900MiB"),
    ]  # fmt: skip
    assert [one.engine.experts_fraction for one in found] == [0.25, 0.25, None, None]
    assert {one.engine.knowledge for one in found} == {None}
    assert [one.budget for one in configurations(ASKED, tmp_path, SHORT)] == ["balanced"]


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"budget": "25%", "profile": "low"}, "both --profile and --budget"),
        ({"budget": "25%,"}, "empty place"),
        ({"budget": "25%,25%"}, "measured twice"),
        ({"precision": "int3"}, "precision"),
        ({"context": "16"}, "context is 16"),
        ({"policy": "magic"}, "magic"),
    ],
)
def test_configurations_that_cannot_be_are_refused(tmp_path, asked, what):
    with pytest.raises(ConfigError, match=what):
        configurations(ASKED | asked, tmp_path, SHORT)


def test_questions_are_always_the_same():
    assert prompts(5) == prompts(5) and len(set(prompts(5))) == 5
    assert all(len(text) < 200 for text in prompts(5))
