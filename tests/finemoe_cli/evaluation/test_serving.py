"""``finemoe eval --online`` with several seeds and with arrivals, killed, and come to its end."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from offload import Sampling
from tests.finemoe_cli.conftest import Result
from tests.finemoe_cli.evaluation.conftest import answers, begun_again, cut, rows_of
from tests.finemoe_cli.evaluation.test_resume import broken_off
from tests.support.engines import open_engine

TALKS = [{"id": f"talk-{n}", "turns": [f"What is {n}?", "And then?"][: 1 + n % 2]} for n in range(6)]
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{40 + 0.004 * n * n:010.7f},100,20\n" for n in range(6)
)
NAMES = ["finemoe@50%#1", "finemoe@50%#4"]
TOKENS = 20


@dataclass(frozen=True)
class Run:
    """A run that was killed and then came to its end.

    Attributes:
        killed: The exit code of its first sitting.
        learnt: What was there to begin with that policies had learned from a history.
    """

    folder: Path
    killed: int
    learnt: list[str]
    last: Result


@pytest.fixture(scope="module")
def run(command, tiny, tmp_path_factory) -> Run:
    root = tmp_path_factory.mktemp("serving")
    (root / "talks.json").write_text(json.dumps(TALKS))
    (root / "arrivals.csv").write_text(TRACE)
    folder = root / "run"
    options = (
        *("--data", str(root / "talks.json"), "--arrivals", str(root / "arrivals.csv"), "--arrival-scale", "2"),
        *("--model", str(tiny), "--kernels", "reference", "--context", "400", "--lanes", "1", "-n", str(TOKENS)),
        *("--policy", "finemoe", "--budget", "50%", "--seed", "1,4", "--online", "--temperature", "1"),
        "--check-exact",
        *("--out", str(folder)),
    )
    killed, _ = broken_off(command, signal.SIGKILL, 5, folder, *options)
    learnt = sorted(path.name for path in (folder / "learnt").iterdir())
    return Run(folder, killed, learnt, command("eval", "--resume", str(folder), "--json"))


def test_it_came_to_its_end(run):
    assert run.killed == -signal.SIGKILL
    assert run.last.code == 0, run.last.err
    summary = run.last.json
    assert [one["name"] for one in summary["combinations"]] == NAMES
    assert [one["seed"] for one in summary["combinations"]] == [1, 4]
    assert (summary["complete"], len(summary["sittings"])) == (True, 2)
    for name in NAMES:
        held = [(row["number"], row["turn"]) for row in rows_of(run.folder) if row["combination"] == name]
        assert held == sorted(held)
        assert len(held) == 9 and {number for number, _ in held} == set(range(6))


def test_policies_begin_with_nothing(run):
    summary = run.last.json
    assert (summary["data"]["history"], summary["data"]["test"]) == (0, 6)
    assert run.learnt == ["engines"]
    for one in summary["combinations"]:
        assert [place["number"] for place in one["progress"]] == list(range(6))


def test_the_resident_model_says_the_same(run):
    exact = run.last.json["exact"]
    rows = rows_of(run.folder)
    assert exact == {
        "exact": True,
        "requests": 18,
        "passes": sum(row["completion_tokens"] for row in rows),
        "different": 0,
        "first_difference": None,
        "combinations": dict.fromkeys(NAMES, True),
    }
    assert f"exact: the logits of {exact['passes']} forward passes are those of the resident model" in run.last.err
    assert all(len(row["logits"]) == row["completion_tokens"] for row in rows)


def test_broken_off_while_it_is_held_again(command, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    cut(folder / "exact.jsonl", 7)
    begun_again(folder)
    done = command("eval", "--resume", str(folder), "--json")
    assert done.code == 0, done.err
    assert done.json["exact"] == run.last.json["exact"]
    assert done.json["sittings"][-1]["groups"] == []  # Nothing else was done.
    assert rows_of(folder) == rows_of(run.folder)


def test_a_bit_that_is_not_the_same_is_told(command, run):
    path = run.folder / "requests.jsonl"
    before = path.read_text()
    rows = [json.loads(line) for line in before.splitlines()]
    wrong = [row for row in rows if row["combination"] == NAMES[1]][-1]
    wrong["logits"][7] = "0" * 16
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        done = command("eval", "--resume", str(run.folder), "--json", "-q")
    finally:
        path.write_text(before)
    assert done.code == 5
    assert done.json["exact"]["combinations"] == {NAMES[0]: True, NAMES[1]: False}
    assert (done.json["exact"]["exact"], done.json["exact"]["different"]) == (False, 1)
    where = f"first in turn {wrong['turn']} of {wrong['conversation']}, forward pass 8"
    assert done.err == f"error: the logits of {NAMES[1]} are not those of the resident model: {where}\n"


def test_a_seed_has_its_own_draw_and_its_own_answers(run, tiny):
    """The answers are those of an engine that is asked without ``finemoe eval``."""
    found = answers(run.folder)
    orders = [[row["conversation"] for row in rows_of(run.folder) if row["combination"] == n] for n in NAMES]
    assert orders[0] != orders[1]
    turns = {talk["id"]: talk["turns"] for talk in TALKS}
    differ = False
    with open_engine(tiny, 1.0, "reference", context=400) as engine:
        for name, seed in zip(NAMES, (1, 4), strict=True):
            for talk in sorted(turns):
                messages: list[dict[str, str]] = []
                engine.forget()
                for turn, text in enumerate(turns[talk], 1):
                    messages.append({"role": "user", "content": text})
                    said = engine.chat(messages, Sampling(max_new_tokens=TOKENS, temperature=1, seed=seed))
                    assert found[name, talk, turn] == list(said.token_ids)
                    differ |= found[NAMES[0], talk, turn] != found[NAMES[1], talk, turn]
                    messages.append({"role": "assistant", "content": said.text})
    assert differ


def test_the_queue_of_each_engine_goes_on_where_it_was(run):
    for name in NAMES:
        rows = [row for row in rows_of(run.folder) if row["combination"] == name]
        free = 0.0
        for row in rows:
            arrival = 2 * 0.004 * row["number"] ** 2 if row["turn"] == 1 else free
            assert row["arrival_s"] == pytest.approx(arrival, abs=1e-5)
            assert row["queue_s"] == pytest.approx(max(free - arrival, 0), abs=1e-5)
            assert row["ttft_s"] == pytest.approx(row["token_times_s"][0], abs=2e-6)
            assert row["ttft_s"] > row["queue_s"]
            assert row["e2e_s"] == pytest.approx(row["queue_s"] + row["service_s"], abs=2e-6)
            assert all(after >= before for before, after in pairwise(row["token_times_s"]))
            free = row["arrival_s"] + row["e2e_s"]
        one = next(one for one in run.last.json["combinations"] if one["name"] == name)
        assert one["makespan_s"] == pytest.approx(free)
        assert one["busy_s"] == pytest.approx(sum(row["service_s"] for row in rows))
        assert one["tokens_per_s"] == pytest.approx(sum(row["completion_tokens"] for row in rows) / free)
        assert one["queue_s"]["count"] == 9 and one["queue_s"]["mean"] > 0


def test_seeds_are_put_together(run):
    (both,) = run.last.json["over_seeds"]
    assert (both["group"], both["seeds"]) == ("finemoe@50%", [1, 4])
    rates = [one["decode"]["hit_rate"] for one in run.last.json["combinations"]]
    found = both["metrics"]["hit_rate"]
    assert found["mean"] == pytest.approx(sum(rates) / 2)
    assert (found["count"], found["min"], found["max"]) == (2, min(rates), max(rates))
    assert found["std"] == pytest.approx((max(rates) - min(rates)) / 2**0.5)


def test_seeds_are_not_compared_with_each_other(command, run):
    folder = run.folder
    done = command("eval", "compare", *(f"{folder}:{name}" for name in NAMES), "--json")
    assert (done.code, done.error) == (2, f"{folder} and {folder} answered different conversations")


def test_other_arrivals_are_refused(command, run):
    path = run.folder.parent / "arrivals.csv"
    path.write_text(TRACE.replace("18:15:40.0", "18:15:40.1", 1))
    try:
        done = command("eval", "--resume", str(run.folder), "-q")
    finally:
        path.write_text(TRACE)
    assert (done.code, done.error) == (2, f"the run in {run.folder} was begun with other arrivals")
