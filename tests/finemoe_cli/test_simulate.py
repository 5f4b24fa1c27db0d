"""``finemoe simulate`` as users run it."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finemoe_cli import simulation, simulation_history
from finemoe_cli.commands import simulate as command
from finemoe_cli.simulation_arguments import simulated_policies
from finemoe_cli.simulation_history import learn
from finemoe_cli.simulation_report import METRICS
from offload.errors import ConfigError, StorageError, TraceError
from offload.policy import probe_fitting
from offload.policy.knowledge import Knowledge
from offload.policy.probe_fitting import TooLittle
from offload.telemetry.routing import Read
from offload.trace.file import Trace, TraceHeader
from offload.trace.records import TracePass, TraceRequest
from tests.finemoe_cli.conftest import Finemoe
from tests.finemoe_cli.figures.reading import texts
from tests.support.routing import synthetic_model, synthetic_requests

ROOT = Path(__file__).parents[2]
MODEL = synthetic_model(layers=4, experts=12, top_k=2)
TOTAL = MODEL.layers * MODEL.experts


def named(requests: list[TraceRequest]) -> list[TraceRequest]:
    return [replace(request, name=f"c{number}/1") for number, request in enumerate(requests)]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten conversations, with enough tokens to learn from seven of them."""
    path = tmp_path_factory.mktemp("traces") / "made.trace"
    requests = named(list(synthetic_requests(MODEL, requests=10, prompt=7, tokens=44)))
    Trace.write(path, MODEL, TraceHeader(created="2026-01-02T03:04:05+00:00"), requests)
    return path


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five conversations without residuals, and with recorded times."""
    path = tmp_path_factory.mktemp("traces") / "short.trace"
    requests = [
        replace(request, passes=[timed(one, number) for number, one in enumerate(request.passes)])
        for request in named(list(synthetic_requests(MODEL, requests=5, prompt=5, tokens=8)))
    ]
    Trace.write(path, MODEL, TraceHeader(lanes=2), requests)
    return path


def timed(one: TracePass, number: int) -> TracePass:
    reads = tuple(Read(expert, True, 0.005 * (1 + expert % 2)) for expert in range(8))
    return replace(one, residual=None, shared=None, seconds=0.02, reads=reads)


@pytest.fixture
def simulate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """The command in this process, with folders of its own; what it prints as JSON."""
    monkeypatch.setenv("FINEMOE_CACHE_DIR", str(tmp_path / "cache"))

    def run(*files: Path, **given: Any) -> Any:
        given = {"orders": 1, "link": "1.5", "budget": "30%", "jobs": 1} | given
        command.simulate(list(files), as_json=True, **given)
        return json.loads(capsys.readouterr().out)

    return run


def test_the_numbers_fit_together(finemoe: Finemoe, trace: Path, tmp_path: Path) -> None:
    table, figure = tmp_path / "runs.csv", tmp_path / "picture.svg"
    names = ("demand", "mixtral-offloading", "finemoe", "auto", "belady", "oracle")
    arguments = ["simulate", str(trace), "--policy", ",".join(names), "--budget", "30%,24", "--link", "0.5,2"]
    arguments += ["--orders", "2", "--jobs", "2", "--seed", "1"]
    first = finemoe(*arguments, "--json", "--csv", str(table), "--figure", str(figure))
    assert first.code == 0, first.err
    told = first.json
    assert (told["model"], told["history_requests"], told["requests"]) == ("synthetic", 7, 3)
    assert told["tokens"] == 3 * 44 and told["unit"] == "layers" and told["prefill"] is False
    assert told["learnt"]["probes"] and told["learnt"]["maps"] > 0 and told["learnt"]["past"]
    assert [(one["link"], one["read"]) for one in told["links"]] == [("0.5", 0.5), ("2", 2.0)]
    rows = {(row["policy"], row["budget"], row["link"]): row for row in told["rows"]}
    assert len(rows) == len(told["rows"]) == len(names) * 4
    for row in rows.values():
        value = {name: row[name]["median"] for name in METRICS}
        for name in METRICS:
            if value[name] is not None:
                assert row[name]["min"] <= value[name] <= row[name]["max"]
        selections = MODEL.layers * MODEL.top_k
        assert value["covered_rate"] == pytest.approx(1 - value["missed_per_token"] / selections, abs=0.05)
        assert value["tpot"] == pytest.approx(MODEL.layers + value["stall_per_token"], abs=0.2)
        assert 0 <= value["hit_rate"] <= value["covered_rate"] <= 1
        assert value["ttft"] is None
    for budget in ("30%", "24"):
        slow, fast = (rows["demand", budget, link] for link in ("2", "0.5"))
        assert slow["hit_rate"] == fast["hit_rate"]
        assert slow["stall_per_token"]["median"] > fast["stall_per_token"]["median"]
        assert slow["stall_vs_demand"] == {"median": 1, "min": 1, "max": 1}
        assert (slow["gap_closed"]["median"], rows["belady", budget, "2"]["gap_closed"]["median"]) == (0, 1)
        for name in names:
            assert rows[name, budget, "2"]["slots"] == max(2 * MODEL.top_k, rows[name, budget, "2"]["slots"])
            assert (
                rows["oracle", budget, "2"]["stall_per_token"]["median"]
                <= (rows[name, budget, "2"]["stall_per_token"]["median"])
            )
        gap = rows["auto", budget, "0.5"]["gap_closed"]
        assert gap == rows["auto", budget, "2"]["gap_closed"] and gap["max"] <= 1
        assert rows["mixtral-offloading", budget, "2"]["gap_closed"]["median"] is None
    lines = list(csv.DictReader(table.open(encoding="utf-8")))
    assert {name: float(lines[0][name]) >= 0 for name in METRICS if lines[0][name]}
    alone = [line for line in lines if line["demand_only"] == "1"]
    assert {line["policy"] for line in alone} == {"auto", "finemoe"}
    assert len(lines) == 2 * (len(names) * 4 + len(alone) // 2)
    assert all(float(line["wasted_rate"] or 0) == 0 for line in alone)
    check_figure(figure, names)
    text = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")
    fields = {*told, *told["rows"][0], *told["links"][0], *told["learnt"], *told["rows"][0]["hit_rate"], *lines[0]}
    assert [name for name in sorted(fields) if f"`{name}`" not in text] == []

    fewer = [*arguments[:2], "--policy", "finemoe,auto", "--budget", "30%", "--link", "0.5,2", "--orders", "2"]
    picture = tmp_path / "picture.png"
    again = finemoe(*fewer, "--jobs", "1", "--seed", "1", "--json", "--figure", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(again.json["rows"]) == 4
    for row in again.json["rows"]:
        assert row == rows[row["policy"], row["budget"], row["link"]]


def check_figure(path: Path, names: tuple[str, ...]) -> None:
    found = texts(path.read_bytes())
    assert {*names, "30%", "24", "Hit rate: 0.5 layers an expert"} <= set(found)


def test_the_table_is_narrow_and_has_every_policy(finemoe: Finemoe, short: Path) -> None:
    done = finemoe("simulate", str(short), "--orders", "2", "--budget", "50%", "--link", "1.5")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "50% of the experts, an expert takes 1.5 layers to move"
    assert [line.split()[0] for line in lines[2:]] == simulated_policies()
    assert max(map(len, lines)) <= 100
    assert "no predictors were fitted: the trace holds no residuals to fit predictors from" in done.err
    assert re.search(r"promoe: no trained predictors", done.err)
    assert re.search(r"1[0-9] of \d+ simulations, \d+ s left", done.err)


def test_recorded_times_are_told_in_milliseconds(finemoe: Finemoe, short: Path) -> None:
    done = finemoe("simulate", str(short), "--calibrated", "--orders", "1", "--budget", "50%", "--policy", "lfu")
    assert done.code == 0, done.err
    title, header, row = done.out.splitlines()
    assert title == "50% of the experts, a layer takes 5.00 ms, an expert 7.50 ms to move (2 lanes); times in ms"
    tpot, ttft = row.split()[-2:]
    assert header.split()[-2:] == ["TPOT", "TTFT"]
    assert float(tpot) > 20 and float(ttft) > 20
    assert "reads: 320 recorded reads of decoded tokens" in done.err


def test_what_was_learnt_is_learnt_once(trace: Path, tmp_path: Path) -> None:
    stages: list[str] = []

    def told(history: list[tuple[int, int]]) -> Knowledge:
        stages.clear()
        with Trace.open(trace) as opened:
            known, note = learn([opened], history, tmp_path, lambda stage, done, total: stages.append(stage))
        assert note == "" and known.probes is not None and known.past is not None and len(known.maps) > 200
        return known

    history = [(0, number) for number in range(7)]
    first = told(history)
    assert {"fit", "learn"} <= set(stages)
    again = told(history)
    assert set(stages) == {"hash"}
    assert_same_knowledge(first, again)
    told(history[:-1])
    assert "fit" in stages and len(list(tmp_path.iterdir())) == 2
    next(tmp_path.rglob("probes.safetensors")).write_bytes(b"nothing")
    told(history[:-1])
    assert_same_knowledge(first, told(history))


def test_another_way_of_fitting_is_another_history() -> None:
    fitting = {getattr(value, "__module__", "") for value in vars(probe_fitting).values()}
    needed = {name for name in fitting if isinstance(name, str) and name.startswith("offload.policy.")}
    assert {"offload.policy.low_rank", "offload.policy.probe_fitting"} <= needed
    assert needed <= {module.__name__ for module in simulation_history._SOURCES}


def assert_same_knowledge(one: Knowledge, other: Knowledge) -> None:
    assert one.probes is not None and other.probes is not None and one.past is not None and other.past is not None
    for name, array in one.probes.arrays().items():
        assert np.array_equal(array, other.probes.arrays()[name])
    assert np.array_equal(one.past, other.past)
    assert np.array_equal(np.sort(one.maps.ids), np.sort(other.maps.ids))


def test_old_histories_make_room(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation_history, "KEPT", 2)
    monkeypatch.setattr(simulation_history, "fit_probes", too_few)
    with Trace.open(trace) as opened:
        for count in (1, 2, 3):
            _, note = learn([opened], [(0, number) for number in range(count)], tmp_path, lambda *of: None)
            assert note == "no predictors were fitted: too few"
    assert len(list(tmp_path.iterdir())) == 2


def too_few(*of: object) -> None:
    raise TooLittle("too few")


def test_untrained_and_trained_are_different(simulate: Callable[..., Any], trace: Path) -> None:
    told = [simulate(trace, policy="promoe,auto", history=history) for history in (True, False)]
    trained, untrained = ({row["policy"]: row for row in one["rows"]} for one in told)
    assert told[0]["learnt"]["probes"] and told[0]["history_requests"] == 7
    assert told[1]["learnt"] == {"probes": False, "probe_bytes": 0, "maps": 0, "past": False}
    assert told[1]["history_requests"] == 0 and told[1]["requests"] == told[0]["requests"]
    for name in ("promoe", "auto"):
        assert trained[name]["hit_rate"] != untrained[name]["hit_rate"]
        assert trained[name]["slots"] < untrained[name]["slots"]


def test_options_reach_the_policy_and_demand_only_all(simulate: Callable[..., Any], trace: Path) -> None:
    names = "promoe,mixtral-offloading"
    near, far = (
        simulate(trace, policy=names, history=False, option=[f"promoe.stride={stride}"])["rows"]
        for stride in (1, 3)
    )
    assert near[0]["hit_rate"] != far[0]["hit_rate"] and near[1] == far[1]
    alone = simulate(trace, policy=names, history=False, demand_only=True)
    for row in alone["rows"]:
        assert row["gap_closed"]["median"] is not None and row["wasted_rate"]["median"] is None
        assert row["hit_rate"]["median"] == row["covered_rate"]["median"]


# What cannot be


def test_orders_that_replay_others_are_simulated(simulate: Callable[..., Any], short: Path) -> None:
    told = simulate(short, policy="demand", history=False, split="1:99", replay=1, orders=4)
    assert told["requests"] == 1
    rate = told["rows"][0]["hit_rate"]
    assert rate["min"] < rate["max"], "each order has a conversation of its own"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policy": "fastest"}, "unknown policy 'fastest'"),
        ({"policy": "demand,,lfu"}, "--policy 'demand,,lfu' has an empty place"),
        ({"budget": "110%"}, "'110%' is not a budget"),
        ({"budget": "lots"}, "'lots' is not a budget"),
        ({"budget": "0"}, "'0' is not a budget"),
        ({"link": "fast"}, "'fast' is not a link"),
        ({"link": "0"}, "'0' is not a link"),
        ({"link": "nan"}, "'nan' is not a link"),
        ({"link": "1", "calibrated": True}, "both --link and --calibrated are given"),
        ({"split": "1:0"}, "'1:0' is not a split"),
        ({"option": ["promoe.stride"]}, "'promoe.stride' is not an option"),
        ({"policy": "lfu", "option": ["promoe.stride=2"]}, "option 'promoe.stride=2' is of a policy that is not"),
        ({"option": ["promoe.steps=2"]}, "policy promoe has no option 'steps'"),
        ({"option": ["promoe.stride=9"]}, "policy option stride is 9"),
        ({"option": ["belady.stride=1"]}, "policy belady has no options"),
        ({"option": ["finemoe.capacity=0"]}, "policy option capacity is 0"),
        ({"option": ["auto.nonesuch=1"]}, "policy auto has no option 'nonesuch'"),
        ({"figure": Path("picture.gif")}, "picture.gif is no name of a figure"),
        ({"csv": Path("nowhere/runs.csv")}, "there is no folder"),
    ],
    ids=str,
)
def test_wrong_usage_is_said_before_anything_runs(
    short: Path, given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "run_grid", None)
    monkeypatch.setattr(simulation_history, "learn", None)
    with pytest.raises(ConfigError) as raised:
        command.simulate([short], quiet=True, **given)
    assert raised.value.message.startswith(message)
    assert raised.value.hint


def test_what_cannot_be_written_is_said_before_anything_runs(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation_history, "learn", None)
    for target, reason in ((Path("/proc/runs.csv"), "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(StorageError, match=f"the results cannot be written to {target}: {reason}") as raised:
            command.simulate([short], quiet=True, csv=target, force=True)
        assert raised.value.hint


def test_wrong_usage_is_one_line_and_exit_code_2(finemoe: Finemoe, short: Path) -> None:
    done = finemoe("simulate", str(short), "--policy", "fastest")
    assert (done.error, done.code) == ("unknown policy 'fastest'", 2)


def test_traces_that_cannot_be_used(
    finemoe: Finemoe, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.trace"
    Trace.write(other, replace(MODEL, fingerprint="ab"), TraceHeader(), [])
    empty = tmp_path / "empty.trace"
    Trace.write(empty, MODEL, TraceHeader(), [])
    cut = tmp_path / "cut.trace"
    cut.write_bytes(short.read_bytes()[: short.stat().st_size // 2])
    with Trace.open(short) as whole:
        first = whole.entries[0].offset
    begun = tmp_path / "begun.trace"
    begun.write_bytes(short.read_bytes()[: first + 9])
    stub = tmp_path / "stub.trace"
    stub.write_bytes(short.read_bytes()[:100])
    for files, message in (
        ((tmp_path / "none.trace",), "cannot be read: No such file"),
        ((short, other), "was recorded with other weights of synthetic, or with another model"),
        ((empty,), "there is no decoded token in the trace"),
        ((begun,), "it has 0 requests that are complete"),
        ((stub,), "is cut off before its first request"),
    ):
        with pytest.raises(TraceError, match=message):
            command.simulate(list(files), history=False, quiet=True)
    assert finemoe("simulate", str(empty)).code == 1
    command.simulate([cut], history=False, policy="demand", orders=1, link="1", budget="50%", jobs=1)
    assert "was not finished" in capsys.readouterr().err


def test_files_are_not_replaced_unasked(simulate: Callable[..., Any], short: Path, tmp_path: Path) -> None:
    target = tmp_path / "runs.csv"
    target.write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        simulate(short, policy="demand", csv=target)
    assert target.read_text() == "mine"
    simulate(short, policy="demand", csv=target, force=True)
    assert target.read_text().startswith("policy,budget,")


def test_interrupted_it_leaves_nobody_behind(finemoe: Finemoe, trace: Path) -> None:
    process = finemoe.start("simulate", str(trace), "--no-history", "--orders", "40", "--jobs", "2")
    deadline = time.monotonic() + 60
    while len(children := children_of(process.pid)) < 3:  # two workers, and what Python has beside them
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for each in (process.pid, *children):  # as a terminal does
        os.kill(each, signal.SIGINT)
    assert process.stderr is not None
    told = process.stderr.read().decode()
    assert process.wait(30) == 130
    assert "Traceback" not in told and "interrupted" in told
    while any(parent_of(child) is not None for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children_of(process: int) -> list[int]:
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [number for number in numbers if parent_of(number) == process]


def parent_of(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
