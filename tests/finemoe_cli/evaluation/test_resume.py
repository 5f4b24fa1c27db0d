"""Runs that are broken off, and go on."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from finemoe_cli.evaluation.routing import read_routing, routing_of
from offload import Sampling
from offload.trace.recorder import Recorder, trace_model
from tests.finemoe_cli.conftest import Result
from tests.finemoe_cli.evaluation.conftest import answers, rows_of
from tests.support.engines import open_engine

TALKS = [{"id": f"talk-{n}", "turns": [f"What is {n}?", "And then?"][: 1 + n % 2]} for n in range(12)]
TOKENS = 50


@dataclass(frozen=True)
class BrokenOff:
    """A run that was interrupted, then killed, and then came to its end.

    Attributes:
        options: It was begun with.
        interrupted: Exit code and stderr of the first sitting.
        first / second: Rows as the first and the second sitting left them.
        killed: Exit code of the second.
        last: How the third ended.
    """

    folder: Path
    options: tuple[str, ...]
    interrupted: tuple[int, str]
    first: bytes
    first_summary: dict
    killed: int
    second: bytes
    last: Result


@pytest.fixture(scope="module")
def run(command, tiny, tmp_path_factory) -> BrokenOff:
    root = tmp_path_factory.mktemp("resumed")
    (root / "talks.json").write_text(json.dumps(TALKS))
    of_engine = ("--model", str(tiny), "--kernels", "reference", "--context", "400", "--policy", "demand")
    options = (
        "--data",
        str(root / "talks.json"),
        *of_engine,
        "--budget",
        "50%",
        "-n",
        str(TOKENS),
        "--split",
        "1:5",
    )
    folder = root / "run"
    path = folder / "requests.jsonl"
    interrupted = broken_off(command, signal.SIGINT, 2, folder, *options, "--out", str(folder))
    first, summary = path.read_bytes(), json.loads((folder / "summary.json").read_text())
    killed, _ = broken_off(command, signal.SIGKILL, first.count(b"\n") + 2, folder, "--resume", str(folder))
    second = path.read_bytes()
    path.write_bytes(second + b'{"combination": "dem')  # Power went in the middle of a row.
    last = command("eval", *options, "--out", str(folder), "--json")
    return BrokenOff(folder, options, interrupted, first, summary, killed, second, last)


def test_broken_off_twice_it_comes_to_the_same(run, tiny):
    """To what an engine answers that is asked without ``finemoe eval``."""
    assert run.last.code == 0, run.last.err
    found = {key[1:]: tokens for key, tokens in answers(run.folder).items()}
    assert len(found) > len({talk for talk, _ in found}) == 10
    wanted, seen = {}, {}
    with open_engine(tiny, 1.0, "reference", context=400) as engine:
        recorder = Recorder(trace_model(engine))
        engine.observe(recorder)
        for talk in TALKS:
            messages: list[dict[str, str]] = []
            engine.forget()
            for turn, text in enumerate(talk["turns"], 1):
                messages.append({"role": "user", "content": str(text)})
                said = engine.chat(messages, Sampling(max_new_tokens=TOKENS, temperature=0))
                wanted[talk["id"], turn] = list(said.token_ids)
                seen[f"{talk['id']}/{turn}"] = recorder.take(f"{talk['id']}/{turn}")
                messages.append({"role": "assistant", "content": said.text})
    assert found == {key: tokens for key, tokens in wanted.items() if key in found}
    # And its routing is that of this engine's requests, in the order of the conversations.
    routing = read_routing(run.folder)
    assert routing is not None and not (run.folder / "routing").exists()
    held = dict.fromkeys((row["number"], row["turn"], row["conversation"]) for row in rows_of(run.folder))
    assert routing.names.tolist() == [f"{talk}/{turn}" for _, turn, talk in sorted(held)]
    alone = routing_of((seen[name] for name in routing.names.tolist()), layers=3, experts=8, top_k=2)
    assert alone is not None and routing.to_bytes() == alone.to_bytes()


def test_what_is_finished_stays(run):
    code, err = run.interrupted
    assert (code, err.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in err
    assert run.first_summary["complete"] is False
    assert run.killed == -signal.SIGKILL
    rows = rows_of(run.folder)
    assert run.first.count(b"\n") < run.second.count(b"\n") < len(rows)
    assert [row["sitting"] for row in rows] == sorted(row["sitting"] for row in rows)
    assert {row["sitting"] for row in rows} == {1, 2, 3}
    # Of a conversation that was not finished, the first turn may have been there.
    unfinished = {row["number"] for row in rows if row["sitting"] == 3}
    kept = [json.loads(line) for line in run.second.splitlines()]
    assert [row for row in kept if row["number"] not in unfinished] == [row for row in rows if row["sitting"] < 3]
    assert run.last.json["complete"] is True
    assert len(run.last.json["sittings"]) == 3


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


def test_a_complete_run_is_only_shown(command, run):
    folder = run.folder
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
def test_another_option_is_refused(command, run, more, said):
    folder = run.folder
    done = command("eval", "--resume", str(folder), *more)
    assert done.code == 2
    assert done.error == said.format(folder)


def test_other_prompts_and_settings_are_refused(command, run, tmp_path):
    folder = run.folder
    talks = Path(run.options[1])
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


def test_a_run_that_measured_nothing_binds_nobody(command, run, tmp_path):
    folder = tmp_path / "run"
    options = [*run.options, "--limit", "3", "--out", str(folder)]
    options[options.index("-n") + 1] = "2"
    small = [*options, "--budget", "1KiB"]
    failed = command("eval", *small)
    assert failed.code == 4
    assert json.loads((folder / "run.json").read_text())["config"]["asked"]["budget"] == "1KiB"
    again = command("eval", "--resume", str(folder), "--budget", "2KiB")
    assert (again.code, again.error[:25]) == (4, "a budget of 2.00 KiB is too"[:25])
    assert json.loads((folder / "run.json").read_text())["config"]["sampling"]["max_new_tokens"] == 2
    done = command("eval", *options, "--json")
    assert done.code == 0, done.err
    assert "nothing was measured in that folder yet: it begins anew\n" in done.err
    assert [one["budget"] for one in done.json["combinations"]] == ["50%"]
    assert len(done.json["sittings"]) == 1
    refused = command("eval", *small)
    assert (refused.code, refused.error) == (2, f"--budget is 1KiB, and the run in {folder} was begun with 50%")


def test_there_must_be_a_run(command, tmp_path):
    done = command("eval", "--resume", str(tmp_path))
    assert (done.code, done.error) == (3, f"there is no run in {tmp_path}")


def test_gates_of_a_complete_run(command, run):
    folder = run.folder
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


def test_a_run_compared_with_itself(command, run):
    folder = run.folder
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


def test_figures_that_cannot_be_drawn_take_nothing_from_what_was_measured(run, command, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    (folder / "report.html").unlink()
    (folder / "routing.npz").write_bytes(b"damaged")
    done = command("eval", "--resume", str(folder), "--json", "--fail-if", "requests<1")
    assert done.code == 0, done.err
    assert done.json["complete"] and [gate["failed"] for gate in done.json["gates"]] == [False]
    assert re.search(
        r"^warning: the figures of .* could not be drawn: .*; all else is kept; try finemoe plot$", done.err, re.M
    )
