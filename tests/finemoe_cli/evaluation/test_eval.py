"""``finemoe eval`` as users run it."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from finemoe_cli.evaluation.engines import as_error
from finemoe_cli.evaluation.metrics import COUNTS
from finemoe_cli.exit_codes import exit_code_of
from tests.finemoe_cli.evaluation.conftest import answers, begun_again, cut, rows_of
from tests.support.reference import plain_losses

TEXT = "The cat sät on the mat. " * 28
COMBINATIONS = ["demand@50%", "finemoe@50%"]


@pytest.fixture(scope="module")
def run(command, arguments, tmp_path_factory) -> tuple[Path, dict, str]:
    """A run of two policies, of which one learns: its folder, summary and stderr."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = command(*arguments, "--policy", "demand,finemoe", "--budget", "50%", "--out", str(folder))
    assert done.code == 0, done.err
    return folder, done.json, done.err


def test_every_combination_answers_every_conversation(run):
    folder, summary, _ = run
    rows = rows_of(folder)
    assert [one["name"] for one in summary["combinations"]] == COMBINATIONS
    of_each = [[(r["number"], r["turn"]) for r in rows if r["combination"] == name] for name in COMBINATIONS]
    assert of_each[0] and all(sorted(one) == sorted(of_each[0]) for one in of_each)
    assert {row["number"] for row in rows} == {0, 1, 2, 3}
    assert summary["complete"] is True
    assert summary == json.loads((folder / "summary.json").read_text()) | {"gates": []}


def test_they_take_turns_by_conversation(run):
    folder, summary, _ = run
    (sitting,) = summary["sittings"]
    assert sitting["groups"] == [COMBINATIONS]
    order = [(row["number"], row["combination"]) for row in rows_of(folder)]
    assert [number for number, _ in order] == sorted(number for number, _ in order)
    firsts = [next(name for n, name in order if n == number) for number in range(4)]
    assert firsts == 2 * COMBINATIONS


def test_neither_policy_nor_budget_changes_the_text(run):
    folder, _, _ = run
    said = answers(folder)
    talks = {(conversation, turn) for _, conversation, turn in said}
    for talk in talks:
        assert len({tuple(said[name, *talk]) for name in COMBINATIONS}) == 1


def test_the_summary_is_what_the_rows_say(run):
    folder, summary, _ = run
    for one in summary["combinations"]:
        rows = [row for row in rows_of(folder) if row["combination"] == one["name"] and "error" not in row]
        times = [np.array(row["token_times_s"]) for row in rows]
        wanted = {
            "ttft_s": [t[0] for t in times],
            "tpot_s": [(t[-1] - t[0]) / (len(t) - 1) for t in times if len(t) > 1],
            "itl_s": np.concatenate([np.diff(t) for t in times]),
            "e2e_s": [t[-1] for t in times],
        }
        for name, values in wanted.items():
            assert one[name]["count"] == len(values)
            assert one[name]["mean"] == pytest.approx(np.mean(values), abs=2e-6)
            for key, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99)):
                assert one[name][key] == pytest.approx(np.quantile(values, share), abs=2e-6)
        tokens = sum(len(row["token_ids"]) for row in rows)
        assert one["tokens_per_s"] == pytest.approx(tokens / sum(t[-1] for t in times), rel=1e-3)
        for phase in ("prefill", "decode"):
            for count in COUNTS:
                assert one[phase][count] == pytest.approx(sum(row[phase][count] for row in rows))
            selections = sum(row[phase]["selections"] for row in rows)
            hits = sum(row[phase]["resident"] + row[phase]["prefetched"] for row in rows)
            assert one[phase]["hit_rate"] == hits / selections
        assert one["decode"]["selections"] == 3 * 2 * sum(len(row["token_ids"]) - 1 for row in rows)
        for phase in ("prefill", "decode"):
            for count in ("selections", "resident", "prefetched", "late", "missed", "stall_s"):
                layers = [layer[count] for layer in one["layers"][phase]]
                assert len(layers) == 3
                assert sum(layers) == pytest.approx(one[phase][count], abs=1e-4)
        for count in ("tokens", "selections", "resident", "prefetched", "late", "missed", "stall_s"):
            assert sum(p[count] for p in one["positions"]) == pytest.approx(one["decode"][count], abs=1e-4)
        assert [p["number"] for p in one["progress"]] == sorted({row["number"] for row in rows})
        assert one["energy_j"] is None
        memory = one["memory"]
        assert 0 < memory["peak_bytes"] <= memory["budget_bytes"]


def test_each_row_has_its_times(run):
    for row in rows_of(run[0]):
        if "error" in row:
            continue
        times = row["token_times_s"]
        assert len(times) == len(row["token_ids"]) == row["completion_tokens"] > 0
        assert times[0] > 0 and all(before <= after for before, after in pairwise(times))
        assert row["itl_s"] == pytest.approx(np.diff(times), abs=1e-6)
        assert row["ttft_s"] == pytest.approx(times[0], abs=1e-6)
        assert row["e2e_s"] == pytest.approx(times[-1], abs=1e-6)
        assert row["reused_tokens"] == 0 or row["turn"] > 1


def test_where_prompts_come_from_and_what_was_left_out(run, prompts):
    folder, summary, err = run
    assert summary["data"]["source"] == "file"
    assert summary["data"]["path"] == str(prompts)
    assert summary["data"]["skipped"] == ["row 6: the prompt is empty"]
    assert (summary["data"]["history"], summary["data"]["test"]) == (1, 4)
    assert f"warning: 1 row of {prompts} was skipped; row 6: the prompt is empty\n" in err
    assert f"prompts: file {prompts}; 1 conversation to learn from, 4 to test with\n" in err
    errors = [row for row in rows_of(folder) if "error" in row]
    assert {(row["combination"], row["conversation"], row["turn"]) for row in errors} == {
        (name, "long", 2) for name in COMBINATIONS
    }
    assert all(row["error"].startswith("the prompt has ") for row in errors)
    assert "demand@50%, long, turn 2: the prompt has " in err


def test_it_says_what_it_was_measured_with(run):
    _, summary, _ = run
    (sitting,) = summary["sittings"]
    assert {"python", "finemoe", "torch", "transformers"} <= {k for k, v in sitting["versions"].items() if v}
    assert sitting["machine"]["cpus"] > 0
    assert summary["config"]["sampling"]["temperature"] == 0
    assert summary["config"]["asked"]["seed"] == "0"
    assert set(summary["engines"]) == set(COMBINATIONS)
    assert {path.name for path in run[0].iterdir()} - {".lock"} == {
        "combinations.csv",
        "engines.log",
        "layers.csv",
        "positions.csv",
        "progress.csv",
        "report.html",
        "report.md",
        "requests.csv",
        "requests.jsonl",
        "routing.npz",
        "run.json",
        "summary.json",
    }
    assert "finemoe eval --dataset=sample" in (run[0] / "report.md").read_text()


@pytest.fixture(scope="module")
def one_by_one(command, arguments, tmp_path_factory) -> tuple[Path, dict]:
    """A run whose engines are not open at the same time, with a text: its folder and summary."""
    root = tmp_path_factory.mktemp("again")
    (root / "text.txt").write_text(TEXT, encoding="utf-8-sig")
    more = ("--policy", "demand", "--budget", "50%,minimum", "--side-by-side", "1", "--out", str(root / "run"))
    done = command(*arguments, *more, "--perplexity", str(root / "text.txt"))
    assert done.code == 0, done.err
    return root / "run", done.json


def test_perplexity_is_the_same_at_every_budget(one_by_one, tiny):
    """And what plain transformers says, with the same windows."""
    folder, summary = one_by_one
    half, least = (one["perplexity"] for one in summary["combinations"])
    assert half.keys() == least.keys() and half["windows"] == 3
    assert {name: half[name] for name in half if name != "peak_bytes"} == {
        name: least[name] for name in least if name != "peak_bytes"
    }
    for one in summary["combinations"]:
        assert one["perplexity"]["peak_bytes"] <= one["memory"]["budget_bytes"]
    ids = AutoTokenizer.from_pretrained(tiny)(TEXT)["input_ids"]
    assert half["tokens"] == len(ids) - 1
    windows = [ids[begin : begin + 400] for begin in (0, 200, 400)]
    losses = plain_losses(tiny, windows)
    nll = sum(losses[0]) + sum(losses[1][199:]) + sum(losses[2][199:])
    assert sum(map(len, windows)) - 2 * 200 == len(ids)
    assert half["nll_per_token"] == pytest.approx(nll / (len(ids) - 1), rel=1e-6)
    assert half["perplexity"] == pytest.approx(np.exp(half["nll_per_token"]))
    assert half["bits_per_byte"] == pytest.approx(nll / np.log(2) / len(TEXT.encode()), rel=1e-6)
    assert summary["config"]["perplexity"]["size_bytes"] == len(TEXT.encode())
    assert not (folder / "perplexity.tokens").exists()


def test_broken_off_in_a_text(command, one_by_one, tmp_path):
    folder, summary = one_by_one
    shutil.copytree(folder, tmp_path / "run")
    cut(tmp_path / "run" / "perplexity.jsonl", 4)
    begun_again(tmp_path / "run")
    done = command("eval", "--resume", str(tmp_path / "run"), "--json")
    assert done.code == 0, done.err
    assert done.json["sittings"][-1]["groups"] == [["demand@minimum"]]
    for one, before in zip(done.json["combinations"], summary["combinations"], strict=True):
        before["perplexity"]["peak_bytes"] = one["perplexity"]["peak_bytes"]
        assert one == before
    assert rows_of(tmp_path / "run") == rows_of(folder)


def test_the_same_seed_gives_the_same(run, one_by_one):
    """Also where engines are not open at the same time: each has a cache of its own."""
    again, summary = one_by_one
    assert summary["sittings"][0]["groups"] == [["demand@50%"], ["demand@minimum"]]

    half, least = summary["combinations"]
    assert half["memory"]["slots"] == 12 > least["memory"]["slots"]
    assert half["decode"]["missed"] < least["decode"]["missed"]
    said = answers(again)
    assert all(said["demand@minimum", *key[1:]] == said[key] for key in said)

    def counted(folder: Path) -> dict:
        return {
            (row["combination"], row["conversation"], row["turn"]): (
                row.get("token_ids"),
                [row[phase][c] for phase in ("prefill", "decode") for c in COUNTS if c != "stall_s"]
                if "error" not in row
                else row["error"],
            )
            for row in rows_of(folder)
            if row["combination"] == "demand@50%"
        }

    assert counted(again) == counted(run[0])


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--profile", "low", "--budget", "25%"], 2, "both --profile and --budget are given"),
        (["--policy", "demand,nope"], 2, "--policy is 'nope'"),
        (["--policy", "demand,"], 2, "--policy 'demand,' has an empty place"),
        (["--policy", "demand,demand"], 2, "a policy is measured twice with one budget"),
        (["--profile", "nope"], 3, "no profile called 'nope'"),
        (["--split", "1"], 2, "'1' is not a split"),
        (["--dataset", "nope.jsonl"], 2, "there is no dataset 'nope.jsonl'"),
        (["--model", "nope"], 3, ""),
        (["-n", "0"], 2, "--max-new-tokens is '0'"),
        (["--seed", "1,1"], 2, "--seed is '1,1', which names a seed twice"),
        (["--online", "--split", "1:1"], 2, "both --online and --split are given"),
        (["--arrivals", "poisson:-1"], 2, "'-1' is not a rate of arrivals"),
        (["--perplexity", "nope.txt"], 2, "cannot read "),
    ],
)
def test_wrong_usage(finemoe, tiny, more, code, said, tmp_path):
    done = finemoe("eval", "--model", str(tiny), "--out", str(tmp_path / "run"), *more)
    assert done.code == code
    assert done.error.startswith(said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["BudgetTooSmall", "BudgetTooLarge", "ContextOverflow", "ExpertReadError"])
def test_an_engines_error_is_the_commands(kind):
    error = as_error({"error": kind, "message": "a budget of 9 MiB is too small", "hint": "the smallest is 504MiB"})
    assert (error.message, error.hint) == ("a budget of 9 MiB is too small", "the smallest is 504MiB")
    assert exit_code_of(error) == {"B": 4, "C": 2, "E": 1}[kind[0]]


def test_all_prompts_fail(finemoe, tiny, tmp_path):
    (tmp_path / "p.txt").write_text("x" * 500 + "\n" + "y" * 500 + "\n")
    arguments = ("--data", str(tmp_path / "p.txt"), "--kernels", "reference", "--context", "200")
    done = finemoe("eval", "-m", str(tiny), *arguments, "--out", str(tmp_path / "run"), "--policy", "demand")
    assert done.code == 1
    assert done.err.splitlines()[-2] == "error: no prompt could be answered"
    # Also what the engine was to be warmed up with; told once, whichever of the two it is.
    history, test = (line for line in done.err.splitlines() if "the prompt has" in line)
    assert re.match(r"warning: history, row-[12]: the prompt has ", history)
    assert re.match(r"warning: demand@balanced, row-[12], turn 1: the prompt has ", test)
