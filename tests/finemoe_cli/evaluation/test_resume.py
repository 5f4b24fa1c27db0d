"""Runs that are broken off, and go on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.finemoe_cli.evaluation.conftest import answers, rows_of


@pytest.fixture(scope="module")
def whole(command, tiny, tmp_path_factory) -> tuple[Path, tuple[str, ...]]:
    """A run that was not broken off, and its options."""
    root = tmp_path_factory.mktemp("resumed")
    talks = [{"id": f"talk-{n}", "turns": [f"What is {n}?", "And then?"][: 1 + n % 2]} for n in range(12)]
    (root / "talks.json").write_text(json.dumps(talks))
    of_engine = ("--model", str(tiny), "--kernels", "reference", "--context", "400", "--policy", "demand")
    options = ("--data", str(root / "talks.json"), *of_engine, "--budget", "50%", "-n", "50", "--split", "1:5")
    done = command("eval", *options, "--out", str(root / "whole"), "-q")
    assert done.code == 0, done.err
    return root / "whole", options


def broken_off(command, how: signal.Signals, rows: int, folder: Path, *options: str) -> tuple[int, str]:
    """Begin or go on, and send the signal as soon as there are so many rows. Returns exit code and stderr."""
    process = command.start("eval", *options)
    path = folder / "requests.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < rows:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    return process.returncode, err.decode()


def test_broken_off_twice_it_comes_to_the_same(command, whole, tmp_path):
    reference, options = whole
    folder = tmp_path / "run"
    code, err = broken_off(command, signal.SIGINT, 2, folder, *options, "--out", str(folder))
    assert (code, err.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in err
    assert json.loads((folder / "summary.json").read_text())["complete"] is False
    first = (folder / "requests.jsonl").read_bytes()
    code, _ = broken_off(command, signal.SIGKILL, first.count(b"\n") + 2, folder, "--resume", str(folder))
    assert code == -signal.SIGKILL
    second = (folder / "requests.jsonl").read_bytes()
    # Power goes in the middle of a row.
    (folder / "requests.jsonl").write_bytes(second + b'{"combination": "dem')
    assert len(rows_of(reference)) > second.count(b"\n")
    done = command("eval", *options, "--out", str(folder), "--json")
    assert done.code == 0, done.err
    assert answers(folder) == answers(reference)
    assert done.json["complete"] is True
    rows = rows_of(folder)
    assert len(rows) == len(rows_of(reference))
    assert [row["sitting"] for row in rows] == sorted(row["sitting"] for row in rows)
    assert {row["sitting"] for row in rows} == {1, 2, 3}
    # What was finished is not touched; of a conversation that was not, the first turn may have been there.
    unfinished = {row["number"] for row in rows if row["sitting"] == 3}
    kept = [json.loads(line) for line in second.splitlines()]
    assert [row for row in kept if row["number"] not in unfinished] == [row for row in rows if row["sitting"] < 3]


def test_a_complete_run_is_only_shown(command, whole):
    folder, _ = whole
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = command("eval", "--resume", str(folder), "--json")
    assert (done.code, done.json["complete"]) == (0, True)
    assert "every conversation was held already\n" in done.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("-n", "51"), "--max-new-tokens is 51, and the run in {} was begun with 50"),
        (("--seed", "1"), "--seed is 1, and the run in {} was begun with 0"),
        (("--turns", "1"), "--turns is 1, and the run in {} was begun without it"),
        (("--out", "elsewhere"), "both --resume and --out are given"),
    ],
)
def test_another_option_is_refused(command, whole, more, said):
    folder, _ = whole
    done = command("eval", "--resume", str(folder), *more)
    assert done.code == 2
    assert done.error == said.format(folder)


def test_other_prompts_and_settings_are_refused(command, whole, tmp_path):
    folder, options = whole
    talks = Path(options[1])
    text = talks.read_text()
    talks.write_text(text.replace("And then", "And so"))
    try:
        done = command("eval", "--resume", str(folder), "-q")
    finally:
        talks.write_text(text)
    assert (done.code, done.error) == (2, f"the run in {folder} was begun with other prompts")
    environment = {"FINEMOE_REPETITION_PENALTY": "1.5"}
    done = command("eval", "--resume", str(folder), "-q", env=environment)
    assert (done.code, done.error) == (2, f"the run in {folder} was begun with other settings of sampling")


def test_there_must_be_a_run(command, tmp_path):
    done = command("eval", "--resume", str(tmp_path))
    assert (done.code, done.error) == (3, f"there is no run in {tmp_path}")


def test_gates_of_a_complete_run(command, whole):
    folder, _ = whole
    resume = ("eval", "--resume", str(folder), "-q", "--json")
    done = command(*resume, "--fail-if", "errors>0", "--fail-if", "hit_rate<=0")
    assert (done.code, [verdict["failed"] for verdict in done.json["gates"]]) == (0, [False, False])
    done = command(*resume, "--fail-if", "requests<1", "--fail-if", "decode.selections>=1")
    assert done.code == 5
    selections = done.json["combinations"][0]["decode"]["selections"]
    assert done.json["gates"][1] == {
        "gate": "decode.selections>=1",
        "combination": "demand@50%",
        "value": selections,
        "failed": True,
    }
    assert done.err == f"error: decode.selections>=1: of demand@50% it is {selections}\n"
    done = command(*resume, "--fail-if", "speed<1")
    assert (done.code, done.error) == (2, "there is no metric 'speed'")


def test_a_run_compared_with_itself(command, whole):
    folder, _ = whole
    done = command("eval", "compare", str(folder), f"{folder}:demand@50%", "--json")
    assert done.code == 0, done.err
    (comparison,) = done.json["comparisons"]
    assert comparison["a"] == comparison["b"] == {"run": str(folder), "combination": "demand@50%"}
    assert (comparison["conversations"], comparison["same_answers"]) == (10, 1)
    assert all(one["difference"] == one["low"] == one["high"] == 0 for one in comparison["differences"])
    done = command("eval", "compare", str(folder), str(folder))
    assert done.code == 0
    assert done.out.splitlines()[0].endswith("10 conversations, 100 % of the answers alike")
    assert command("eval", "compare", str(folder)).code == 2
