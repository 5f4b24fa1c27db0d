"""``finemoe plot`` as users run it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from finemoe_cli.commands import plot as module
from finemoe_cli.evaluation.folder import FORMAT
from finemoe_cli.evaluation.report import draw_page
from finemoe_cli.figures import FIGURES
from offload.errors import ConfigError, DamagedFile, FinemoeError, NotFound, StorageError, TraceError
from offload.trace.file import Trace, TraceHeader
from tests.finemoe_cli.evaluation.conftest import arguments, command, prompts, rows_of, tiny
from tests.finemoe_cli.figures.reading import texts
from tests.support.routing import synthetic_model, synthetic_requests

__all__ = ["arguments", "command", "prompts", "tiny"]

DOCUMENT = (Path(__file__).parents[2] / "docs" / "figures.md").read_text(encoding="utf-8")
OF_RUN = [name for name in FIGURES if name != "distance"]


@pytest.fixture(scope="module")
def run(command, arguments, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = command(*arguments, "--policy", "demand,finemoe", "--budget", "50%", "--out", str(folder))
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    model = synthetic_model(layers=4, experts=12, top_k=2)
    path = tmp_path_factory.mktemp("traces") / "made.trace"
    Trace.write(path, model, TraceHeader(), synthetic_requests(model, requests=10, tokens=44))
    return path


def test_a_run_ends_with_a_page(run):
    page = (run / "report.html").read_text()
    assert re.findall(r'<figure id="([^"]+)"', page) == OF_RUN
    assert "finemoe@50%" in page


def test_a_page_that_is_missing_is_made(run, command, tmp_path):
    """As when it was interrupted; a run that is complete is not held again for it."""
    other = shutil.copytree(run, tmp_path / "other")
    (other / "report.html").unlink()
    done = command("eval", "--resume", str(other), "-q")
    assert done.code == 0, done.err
    assert (other / "report.html").read_bytes() == (run / "report.html").read_bytes()
    (other / "routing.npz").write_bytes(b"")
    with pytest.raises(StorageError, match=r"could not be drawn: .*routing.npz is damaged"):
        draw_page(other)


def test_all_that_a_run_has_something_for(command, run):
    done = command("plot", str(run), "--format", "svg,png,pdf", "--json")
    assert done.code == 0, done.err
    assert done.err == "distance is left out: no trace was given: finemoe trace record --residuals makes one\n"
    told = done.json
    assert [one["name"] for one in told["figures"]] == OF_RUN
    assert [one["name"] for one in told["left_out"]] == ["distance"]
    assert told["out"] == str(run / "figures")
    wanted = {f"{name}.{kind}" for name in OF_RUN for kind in ("svg", "png", "pdf", "csv")}
    assert {path.name for path in (run / "figures").iterdir()} == wanted
    assert {Path(path).name for one in told["figures"] for path in one["files"]} == wanted
    for name in {*told, *told["figures"][0], *told["left_out"][0]}:
        assert f"`{name}`" in DOCUMENT
    timeline = list(csv.DictReader((run / "figures" / "timeline.csv").open()))
    requests = {
        (row["combination"], f"{row['conversation']}/{row['turn']}"): row
        for row in rows_of(run)
        if "error" not in row
    }
    title = next(one["title"] for one in told["figures"] if one["name"] == "timeline")
    for name in ("demand@50%", "finemoe@50%"):
        shown = [float(line["end_s"]) for line in timeline if line["combination"] == name]
        assert shown == requests[name, title.removeprefix("Request ")]["token_times_s"]


def test_what_is_there_is_not_replaced(run, tmp_path):
    folder = tmp_path / "figures"
    module.plot([run], figure="entropy", out=folder, quiet=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"entropy.svg is there already"):
        module.plot([run], figure="latency,entropy", out=folder, quiet=True)
    assert not (folder / "latency.svg").exists()
    module.plot([run], figure="entropy", out=folder, force=True, quiet=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_trace(command, trace, tmp_path):
    done = command("plot", str(trace), "--out", str(tmp_path / "figures"))
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == [
        "maps",
        "entropy",
        "entropy-steps",
        "distance",
    ]
    assert "policies is left out: no run with an answered request was given" in done.err
    assert "fitted probes" in texts((tmp_path / "figures" / "distance.svg").read_bytes())


def test_every_data_set(run, trace, tmp_path):
    """Two runs and a trace: a panel each; runs of the same data are told apart by their folders."""
    other = shutil.copytree(run, tmp_path / "other")
    module.plot([run, other, trace], figure="entropy", out=tmp_path / "f", quiet=True)
    lines = csv.DictReader((tmp_path / "f" / "entropy.csv").open())
    assert {line["data"] for line in lines} == {"prompts, run", "prompts, other", "made, made.trace"}


def test_a_run_that_was_killed(run, tmp_path, capsys):
    """In the middle of a row, with neither summary nor tables."""
    killed = shutil.copytree(run, tmp_path / "killed")
    for path in killed.iterdir():
        if path.name not in ("run.json", "requests.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    content = (killed / "requests.jsonl").read_bytes()
    (killed / "requests.jsonl").write_bytes(content[:-40])
    module.plot([killed], out=tmp_path / "figures")
    assert "maps is left out: no source has recorded what the routers chose\n" in capsys.readouterr().err
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"policies", "latency", "layers", "timeline"}


@pytest.mark.parametrize(
    ("sources", "options", "kind", "said"),
    [
        (["nowhere"], {}, NotFound, "there is nothing at nowhere"),
        (["."], {}, ConfigError, ". is not the folder of a run"),
        (["{run}/run.json"], {}, TraceError, "{run}/run.json is not a trace"),
        (["{run}"], {"figure": "entropi"}, ConfigError, "there is no figure 'entropi'"),
        (["{run}"], {"figure": ","}, ConfigError, "--figure names nothing"),
        (["{run}"], {"formats": "gif"}, ConfigError, "there is no format 'gif'"),
        (["{run}"], {"figure": "timeline", "request": "x/9"}, NotFound, "{run} has no answered request 'x/9'"),
        (["{run}"], {"figure": "distance"}, FinemoeError, "there is nothing to draw"),
    ],
    ids=str,
)
def test_what_cannot_be_done(run, tmp_path, sources, options, kind, said):
    paths = [Path(one.format(run=run)) for one in sources]
    with pytest.raises(kind) as raised:
        module.plot(paths, out=tmp_path / "figures", quiet=True, **options)
    assert raised.value.message == said.format(run=run)
    assert raised.value.hint
    assert not (tmp_path / "figures").exists()


def test_an_error_is_one_line_and_an_exit_code(command, run):
    done = command("plot", str(run), "--figure", "entropi")
    assert (done.code, done.error) == (2, "there is no figure 'entropi'")
    assert done.err.splitlines()[-1] == "hint: did you mean 'entropy'?"


def test_a_folder_that_cannot_be_written(run):
    with pytest.raises(StorageError, match="cannot write to"):
        module.plot([run], figure="entropy", out=run / "run.json" / "x", quiet=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("routing.npz", b"PK\x03\x04 and then nothing"),
        ("run.json", b"{"),
        ("run.json", json.dumps({"format": FORMAT, "config": {"combinations": [{}]}}).encode()),
        ("requests.jsonl", b"hm\n{}\n"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_damaged_files_are_told_in_a_line(run, tmp_path, name, content):
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / name).write_bytes(content)
    with pytest.raises(DamagedFile) as raised:
        module.plot([damaged], out=tmp_path / "figures", quiet=True)
    assert name in raised.value.message and "damaged" in raised.value.message
