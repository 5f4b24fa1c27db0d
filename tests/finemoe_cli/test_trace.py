"""``finemoe trace`` as users run it."""

from __future__ import annotations

import csv
import json
import re
import signal
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from finemoe_cli import trace_export
from finemoe_cli.commands import trace as command
from finemoe_cli.datasets.sample import load_sample
from finemoe_cli.output import Output
from offload.errors import ConfigError
from offload.telemetry.counters import Phase
from offload.trace.file import Trace, TraceHeader, TraceWriter
from offload.trace.records import TraceModel
from offload.trace.rows import COLUMNS, request_rows
from offload.trace.statistics import ExpertShare, LayerRouting, RoutingStatistics, routing_statistics
from tests.support.checkpoints import tiny_checkpoint
from tests.support.tokenizers import CHATML, CHATML_TOKENS, tiny_tokenizer
from tests.support.traces import random_model, random_request

ROOT = Path(__file__).parents[2]
MODEL = random_model(layers=4, experts=6, top_k=2)
REQUESTS = [random_request(MODEL, seed, name=f"r/{seed}", prompt=3, decoded=5) for seed in range(3)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")
    return tiny_tokenizer(folder, special=CHATML_TOKENS, eos="<|endoftext|>", template=CHATML)


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"id": "one", "turns": ["Hello", "And then?"]}, {"id": "two", "prompt": "Why?", "system": "Be brief."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "[1, 2]\n")
    return path


@pytest.fixture
def recorded(tmp_path) -> Path:
    path = tmp_path / "made.trace"
    header = TraceHeader(
        created="2026-01-02T03:04:05+00:00", policy="demand", slots=24, kernels="fast", dataset="sample"
    )
    Trace.write(path, MODEL, header, REQUESTS)
    return path


def record(finemoe, model: Path, *more: str):
    return finemoe("trace", "record", "--model", str(model), "--kernels", "reference", *more)


def test_record(finemoe, tiny, prompts, tmp_path):
    path = tmp_path / "t.trace"
    arguments = ("--prompts", str(prompts), "-n", "3", "-o", str(path), "--budget", "50%", "--json", "--residuals")
    done = record(finemoe, tiny, *arguments)
    assert done.err.splitlines()[0] == (
        f"warning: 1 row of {prompts} was skipped; row 3: it is a list, neither an object nor a string"
    )
    assert re.fullmatch(
        r"3 requests, \d+ prompt tokens and 6 decoded ones in \d+ s, [\d.]+ KiB", done.err.splitlines()[-1]
    )
    made = done.json
    assert made.pop("seconds") >= 0
    with Trace.open(path) as trace:
        assert made == {
            "path": str(path),
            "requests": 3,
            "prompt_tokens": sum(entry.prompt_tokens for entry in trace.entries),
            "decoded_tokens": 6,
            "bytes": path.stat().st_size,
        }
        assert (trace.warning, trace.model.name) == ("", "tiny")
        header = trace.header
        assert (header.slots, header.policy, header.profile) == (12, "auto", "balanced")
        assert (header.dataset, header.residuals) == ("prompts.jsonl", True)
        assert trace[2].passes[1].residual is not None


def test_ctrl_c_keeps_what_is_complete(finemoe, tiny, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello\n" * 1000)
    path = tmp_path / "t.trace"
    arguments = ("--model", str(tiny), "--kernels", "reference", "--prompts", str(prompts), "-n", "20")
    process = finemoe.start("trace", "record", *arguments, "-o", str(path))
    while True:
        assert process.poll() is None
        time.sleep(0.05)
        if path.exists() and path.stat().st_size > 0:
            try:
                with Trace.open(path) as trace:
                    seen = len(trace)
            except Exception:
                continue  # It has just been begun.
            if seen >= 2:
                break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith(b"interrupted\n")
    assert b"Traceback" not in err
    with Trace.open(path) as trace:
        assert trace.warning == ""
        assert seen <= len(trace) < 1000
        for request in trace:
            assert len(request.passes) > 0
    assert out == f"{path}\n".encode()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--prompts", "a.txt", "--dataset", "sample"], 2, "both --prompts and --dataset are given"),
        (["--dataset", "lmsys"], 2, "there is no dataset 'lmsys'"),
        (["--prompts", "nothing.txt"], 1, "cannot read nothing.txt: No such file or directory"),
        (["--limit", "0"], 2, "invalid value for '--limit'"),
        (["-m", "no-such-model"], 3, ""),
    ],
)
def test_wrong_usage(finemoe, tiny, tmp_path, arguments, code, said):
    path = tmp_path / "t.trace"
    done = finemoe("trace", "record", "-m", str(tiny), *arguments, "-o", str(path))
    assert done.code == code
    assert done.error.startswith(said)
    assert not path.exists()


@pytest.mark.parametrize("dataset", [None, "sample"])
def test_without_a_file_it_is_the_sample(dataset):
    assert command._conversations(None, dataset, 2, Output()) == load_sample(2)


def test_what_cannot_be_written_is_said_before_the_model_is_opened(finemoe, tiny, recorded, tmp_path):
    assert record(finemoe, tiny, "-o", str(recorded)).error == f"{recorded} is there already"
    place = tmp_path / "no" / "t.trace"
    done = record(finemoe, tiny, "-o", str(place))
    assert (done.code, done.error) == (1, f"the trace cannot be written to {place}: No such file or directory")


def test_what_another_records_is_not_replaced(finemoe, tiny, tmp_path):
    path = tmp_path / "t.trace"
    with TraceWriter.create(path, MODEL, TraceHeader()) as writer:
        done = record(finemoe, tiny, "--force", "-o", str(path))
        assert (done.code, done.error) == (1, f"another process is recording {path}")
        assert "hint: wait until it is finished" in done.err
        writer.append(REQUESTS[0])
    with Trace.open(path) as trace:
        assert len(trace) == 1


def test_what_was_learnt_and_cannot_be_used_is_told(finemoe, tiny, prompts, tmp_path):
    """Of another version: left as it is, and answered without."""
    more = ["-n", "2", "--limit", "1", "--prompts", str(prompts), "--force", "-o", str(tmp_path / "t.trace")]
    assert record(finemoe, tiny, *more).code == 0
    (past,) = Path(finemoe.environment["FINEMOE_DATA_DIR"]).glob("knowledge/*/past.safetensors")
    save_file(load_file(past), past, {"kind": "finemoe past", "version": "2"})
    before = past.read_bytes()
    done = record(finemoe, tiny, *more)
    assert done.code == 0
    assert f"warning: {past} has version 2 of the format, and this finemoe knows 1" in done.err.splitlines()
    assert past.read_bytes() == before


def test_info(finemoe, recorded):
    done = finemoe("trace", "info", str(recorded))
    assert (done.code, done.err) == (0, "")
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in done.out.splitlines() if line[:1] != " ")
    assert rows["model"] == "tiny, 4 layers of 6 experts, top 2"
    assert rows["tokens"] == "9 of prompts, 15 decoded"
    assert rows["kept"] == "routers, probabilities"
    found = finemoe("trace", "info", str(recorded), "--json").json
    expected = routing_statistics(MODEL, REQUESTS)
    assert found["routing"]["entropy"] == expected.entropy
    assert len(found["routing"]["layers"]) == 4
    assert (found["requests"], found["prompt_tokens"], found["decoded_tokens"]) == (3, 9, 15)
    assert found["bytes"] == recorded.stat().st_size
    assert finemoe("trace", "info", str(recorded), "--json", "--no-routing").json == found | {"routing": None}


def test_a_trace_that_was_cut_off(finemoe, recorded, tmp_path):
    with Trace.open(recorded) as trace:
        end = trace.entries[2].offset
    recorded.write_bytes(recorded.read_bytes()[: end + 9])
    done = finemoe("trace", "info", str(recorded), "--json")
    assert done.err == f"warning: {recorded} was not finished; it has 2 requests that are complete\n"
    assert done.json["warning"] == done.err.removeprefix("warning: ").rstrip()
    recorded.write_bytes(recorded.read_bytes()[: end - 9])
    with Trace.open(recorded) as trace:
        first = trace.entries[0].offset
    recorded.write_bytes(recorded.read_bytes()[: first + 9])
    nothing = f"{recorded} was not finished; it has 0 requests that are complete"
    done = finemoe("trace", "info", str(recorded))
    assert (done.code, done.error) == (1, nothing)
    assert "hint: record it again" in done.err
    recorded.write_bytes(recorded.read_bytes()[:50])
    assert finemoe("trace", "info", str(recorded)).error == f"{recorded} is cut off before its first request"
    assert finemoe("trace", "export", str(recorded), "-o", str(tmp_path / "x")).code == 1
    assert not (tmp_path / "x").exists()


def test_every_field_of_info_is_defined(recorded):
    text = (ROOT / "docs" / "traces.md").read_text(encoding="utf-8")
    names = {
        "path",
        "bytes",
        "warning",
        "model",
        "recorded",
        "requests",
        "prompt_tokens",
        "decoded_tokens",
        "routing",
    }
    names |= {"routers", "seconds"}
    for kind in (TraceModel, TraceHeader, RoutingStatistics, LayerRouting, ExpertShare):
        names |= {field.name for field in fields(kind)}
    assert [name for name in sorted({*names, *COLUMNS}) if f"`{name}`" not in text] == []


def test_statistics_against_a_loop():
    found = routing_statistics(MODEL, REQUESTS, top=3)
    entropies, margins, masses, repeats, uses = [], [], [], [], {}
    for request in REQUESTS:
        before: list[set[int]] = []
        for each in request.passes:
            if each.phase != Phase.DECODE:
                continue
            chosen = [set(each.chosen[layer, 0].tolist()) for layer in range(4)]
            repeats += [len(a & b) / 2 for a, b in zip(before, chosen, strict=False)]
            before = chosen
            for layer in range(4):
                p = each.probabilities[layer, 0].astype(np.float64)
                entropies.append(-(p * np.log(p)).sum())
                masses.append(p[list(chosen[layer])].sum())
                margins.append(float(each.margins[layer, 0]))
                for expert in chosen[layer]:
                    uses[layer, expert] = uses.get((layer, expert), 0) + 1
    assert found.tokens == 15
    assert found.entropy == pytest.approx(np.mean(entropies), rel=1e-5)
    assert found.persistence == pytest.approx(np.mean(repeats))
    assert found.margin == pytest.approx(np.mean(margins))
    assert found.chosen_mass == pytest.approx(np.mean(masses), rel=1e-5)
    assert found.used == len(uses)
    falling = np.cumsum(sorted(uses.values(), reverse=True))
    assert found.half_of_uses == (int((falling < falling[-1] / 2).sum()) + 1) / 24
    most = sorted(uses, key=lambda key: (-uses[key], key))[:3]
    assert found.top == tuple(ExpertShare(layer, expert, uses[layer, expert] / 30) for layer, expert in most)


def test_statistics_of_nothing():
    found = routing_statistics(MODEL, [random_request(MODEL, decoded=0)])
    assert (found.tokens, found.entropy, found.top, found.layers) == (0, None, (), ())
    assert routing_statistics(MODEL, [random_request(MODEL, decoded=1)]).persistence is None


def test_csv(finemoe, recorded, tmp_path):
    path = tmp_path / "t.csv"
    done = finemoe("trace", "export", str(recorded), "--format", "csv", "--out", str(path))
    assert (done.code, done.out) == (0, f"{path}\n")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 3 * (3 + 5) * 4 * 2
    assert done.err.splitlines()[-1].startswith(f"{len(rows)} rows, ")
    wanted = iter(rows)
    for request in REQUESTS:
        for number, each in enumerate(request.passes):
            reads = {read.expert: read for read in each.reads}
            for token, token_id in enumerate(each.token_ids.tolist()):
                for layer in range(4):
                    for rank, expert in enumerate(each.chosen[layer, token].tolist()):
                        row = next(wanted)
                        read = reads.get(layer * 6 + expert)
                        assert row["request"] == request.name
                        assert row["phase"] == each.phase.name.lower()
                        assert [int(row[name]) for name in COLUMNS[1:8] if name != "phase"] == [
                            number,
                            each.position + token,
                            token_id,
                            layer,
                            rank,
                            expert,
                        ]
                        assert np.float16(row["probability"]) == each.probabilities[layer, token, expert]
                        assert np.float16(row["margin"]) == each.margins[layer, token]
                        assert row["read"] == ("" if read is None else "demand" if read.demand else "ahead")
                        assert row["read_s"] == ("" if read is None else str(read.seconds))
    assert finemoe("trace", "export", str(recorded), "-o", str(path)).error == f"{path} is there already"


def test_parquet(finemoe, recorded, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    done = finemoe("trace", "export", str(recorded), "--format", "parquet", "--out", str(path))
    assert done.code == 0, done.err
    table = parquet.read_table(path)
    assert tuple(table.column_names) == COLUMNS
    start = 0
    for request in REQUESTS:
        columns = request_rows(request, 6)
        count = len(columns["rank"])
        for name in COLUMNS:
            values = [None if value != value else value for value in columns[name].tolist()]
            assert table[name][start : start + count].to_pylist() == values, name
        start += count
    assert start == table.num_rows


def test_without_pyarrow(recorded, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with (
        Trace.open(recorded) as trace,
        pytest.raises(ConfigError, match="pyarrow, which writes Parquet, is not installed"),
    ):
        trace_export.export(trace, "parquet", tmp_path / "t.parquet", lambda done: None)
    assert [path.name for path in tmp_path.iterdir()] == [recorded.name]
