"""``finemoe bench``, as a user runs it."""

from __future__ import annotations

import csv
import json

import pytest

from finemoe_cli.bench.engines import measure
from finemoe_cli.bench.measure import measure_disk
from finemoe_cli.bench.plan import Configuration, Workload
from offload.config import EngineConfig
from offload.errors import EngineBroken
from tests.support.checkpoints import tiny_checkpoint
from tests.support.tokenizers import CHATML, CHATML_TOKENS, tiny_tokenizer


def test_a_shape_that_is_not_known_is_refused_in_one_line(finemoe, tmp_path):
    done = finemoe("bench", "make-model", "gpt-4", str(tmp_path / "out"))
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: there is no shape 'gpt-4'\nhint: choose one of qwen1.5-moe-a2.7b, qwen3-30b-a3b\n"


def test_more_layers_than_the_model_has_are_refused(finemoe, tmp_path):
    done = finemoe("bench", "make-model", "qwen3-30b-a3b", str(tmp_path / "out"), "--layers", "49")
    assert done.code == 2
    assert "layers is 49" in done.err and "1 to 48" in done.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_said_in_one_line(finemoe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = finemoe("bench", "make-model", "qwen3-30b-a3b", str(tmp_path / "file" / "out"), "--layers", "1")
    assert done.code == 1
    assert done.err.startswith("error: the model cannot be written to ") and done.err.count("\n") == 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("bench") / "tiny", layers=2, experts=8)
    return tiny_tokenizer(folder, special=CHATML_TOKENS, eos="<|im_end|>", template=CHATML)


SHORT = ("-p", "24", "-n", "12", "-r", "2", "--context", "256", "--policy", "demand")


def test_a_model_is_measured_at_each_budget(finemoe, tiny):
    done = finemoe("bench", str(tiny), *SHORT, "--budget", "50%,100%", "--json")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert data["model"] == "tiny" and data["extent"] == ""
    assert data["workload"] == {"prompt": 24, "generate": 12, "repeats": 2, "seed": 0, "cold": False}
    assert set(data["versions"]) >= {"finemoe", "torch", "python"}
    rows = data["rows"]
    assert [(row["test"], row["budget"]) for row in rows] == [
        ("pp24", "50%"), ("tg12", "50%"), ("pp24", "100%"), ("tg12", "100%"),
    ]  # fmt: skip
    for row in rows:
        assert row["tokens_per_s"] > 0 and row["tokens_per_s_sd"] >= 0
        assert row["stall_s"] + row["compute_s"] > 0
        assert row["disk_bytes_per_s"] > 0 and row["peak_bytes"] > 0 and row["minor_faults"] >= 0
        assert (row["policy"], row["precision"], row["repeats"]) == ("demand", "bf16", 2)
    half, whole = rows[1], rows[3]
    assert half["slots"] == 8 and whole["slots"] == 16
    assert half["hit_rate"] < whole["hit_rate"] == 1.0
    assert whole["mib_per_token"] == 0 < half["mib_per_token"]
    assert half["token_p50_s"] <= half["token_p99_s"]


def test_cold_repeats_find_nothing_resident(finemoe, tiny):
    done = finemoe("bench", str(tiny), "-p", "24", "-n", "0", "-r", "2", "--budget", "100%", "--context", "64",
                   "--policy", "demand", "--cold", "--format", "csv")  # fmt: skip
    assert done.code == 0, done.err
    (row,) = csv.DictReader(done.out.splitlines())
    # With every expert in memory, a second prompt in the same process would find most.
    assert (row["test"], row["repeats"], row["hit_rate"]) == ("pp24", "2", "0.0")


def test_a_table_names_what_was_measured(finemoe, tiny):
    done = finemoe("bench", str(tiny), "-p", "0", "-n", "4", "-r", "1", "--context", "128")
    assert done.code == 0, done.err
    assert "tiny, qwen2_moe" in done.out and "finemoe 0.1.0" in done.out
    (row,) = [line for line in done.out.splitlines() if line.startswith("tg4")]
    assert row.split()[1:3] == ["auto", "balanced"]
    assert done.err == "measuring auto@balanced, bf16\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["no-such-model"], 3, "no model or folder called 'no-such-model'"),
        (["TINY", "-p", "0", "-n", "0"], 2, "nothing to measure"),
        (["TINY", "-p", "600", "--context", "512"], 2, "the tests take 601 positions"),
        (["TINY", "--budget", "1MiB"], 4, "budget"),
        (["sweep-what"], 3, "no model or folder"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(finemoe, tiny, words, code, said):
    done = finemoe("bench", *(str(tiny) if word == "TINY" else word for word in words), "-q")
    assert (done.code, done.out) == (code, "")
    assert said in done.err and done.err.count("\n") <= 2


def test_a_worker_that_is_killed_is_said_in_one_line(finemoe, tiny, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(EngineBroken, match="measuring demand@25%, bf16 failed: the engine ended with status 1"):
        measure(
            Configuration("demand", "25%", "bf16", EngineConfig(model=tiny)),
            Workload(prompt=4, generate=0, repeats=1, seed=0, cold=False),
            lambda stage, done, total: None,
        )


def test_the_disk_is_measured_with_experts_as_they_are_kept(finemoe, tmp_path):
    model = tiny_checkpoint(tmp_path / "model", layers=2, hidden=128, expert_size=64, shared=64)
    assert finemoe("pack", str(model), "--bits", "8", "-q").code == 0
    plain, quantised = (
        measure_disk(EngineConfig(model=model, precision=precision, experts_fraction=1.0), (1,)).record_bytes
        for precision in ("bf16", "int8")
    )
    assert 0.4 * plain < quantised < 0.8 * plain
