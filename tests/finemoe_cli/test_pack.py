"""``finemoe pack`` as users run it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from finemoe_cli.commands import pack as command
from finemoe_cli.output import Output
from offload.models.spec import read_spec
from offload.store.open_store import find_pack, pack_in
from offload.store.safetensors_index import CheckpointIndex
from profiles.paths import packs_dir
from tests.support.checkpoints import tiny_checkpoint
from tests.support.tokenizers import CHATML, CHATML_TOKENS, tiny_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("made") / "tiny")


@pytest.fixture
def model(made, tmp_path) -> Path:
    """A tiny model, to be packed."""
    return shutil.copytree(made, tmp_path / "tiny")


def test_the_path_on_stdout_the_rest_on_stderr(finemoe, model):
    done = finemoe("pack", str(model))
    path = model / "experts.finemoe"
    assert (done.code, done.out) == (0, f"{path}\n")
    assert done.err.splitlines() == ["packing the experts ...", "packed 24 experts, 296 KiB"]
    again = finemoe("pack", str(model), "--quiet")
    assert (again.code, again.out, again.err) == (0, f"{path}\n", "")
    assert finemoe("pack", str(model)).err == "tiny is packed already\n"


def test_json(finemoe, model, tmp_path):
    result = finemoe("pack", str(model), "--output", str(tmp_path / "pack"), "--json", "--quiet").json
    assert result.pop("seconds") >= 0
    assert result == {
        "model": "tiny",
        "path": str(tmp_path / "pack"),
        "outcome": "written",
        "precision": "bf16",
        "experts": 24,
        "kept": 0,
        "bytes": 8192 + 24 * 12288,
        "error": {},
    }


def test_into_a_folder_under_the_name_that_is_looked_for(finemoe, model, tmp_path):
    (tmp_path / "other").mkdir()
    finemoe("pack", str(model), "-o", str(tmp_path / "other"))
    assert (tmp_path / "other" / "experts.finemoe").stat().st_size == 8192 + 24 * 12288


def test_the_configured_model_is_packed_if_none_is_named(finemoe, model):
    finemoe("config", "set", "model", str(model))
    assert finemoe("pack").out == f"{model / 'experts.finemoe'}\n"


def test_a_model_folder_that_cannot_be_written(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FINEMOE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != model)
    spec, index = read_spec(model), CheckpointIndex.open(model)
    path = command._place(spec, index, "bf16", Output())
    assert path == pack_in(packs_dir(), spec, index)
    assert capsys.readouterr().err == f"{model} cannot be written; the pack goes into the cache\n"
    path.touch()
    assert find_pack(spec, index, packs_dir()) == path


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nope"], 3, "no model or folder called 'nope'"),
        (["{model}", "--output", "{model}/config.json"], 1, "config.json exists and is not a pack of finemoe"),
        (["{model}", "--output", "/nonexistent/pack"], 1, "cannot be written to /nonexistent/pack: No such file"),
        (["{model}/tokenizer"], 3, "no model or folder called"),
        (["{model}", "--bits", "5"], 2, "--bits is 5"),
        (
            ["{model}", "--bits", "8"],
            1,
            "down_proj.weight of tiny has the shape [64, 48]; finemoe quantises multiples",
        ),
    ],
)
def test_what_cannot_be_packed(finemoe, model, arguments, code, said):
    before = {path: path.read_bytes() for path in model.iterdir()}
    done = finemoe("pack", *(argument.format(model=model) for argument in arguments))
    assert done.code == code
    assert said in done.error
    assert {path: path.read_bytes() for path in model.iterdir()} == before


def test_a_checkpoint_that_lacks_a_shard(finemoe, tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    done = finemoe("pack", str(folder))
    assert done.code == 1
    assert done.error.endswith("lacks the shard model-00002-of-00003.safetensors")


def _interrupted(running, part: Path) -> tuple[int, bytes]:
    """Its exit code and what it says, interrupted as soon as `part` has grown to some records."""
    while not (part.exists() and part.stat().st_size > 1 << 20) and running.poll() is None:
        time.sleep(0.001)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    return running.returncode, said


def test_ctrl_c_is_one_line_and_the_next_run_goes_on(finemoe, tmp_path):
    folder = tiny_checkpoint(tmp_path / "large", experts=64, expert_size=256, hidden=128, layers=4)
    code, said = 0, b""
    while code == 0:  # it may be done before the signal comes; then it has to begin again
        (folder / "experts.finemoe").unlink(missing_ok=True)
        code, said = _interrupted(finemoe.start("pack", str(folder)), folder / ".experts.finemoe.part")
    assert code == 130
    assert said.decode().splitlines()[-1] == "interrupted"
    assert not (folder / "experts.finemoe").exists()
    result = finemoe("pack", str(folder), "--json", "--quiet").json
    assert (result["outcome"], result["kept"] > 0) == ("written", True)


@pytest.fixture(scope="module")
def even(tmp_path_factory) -> Path:
    """A model whose matrices are made of whole tiles."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("made") / "even", shared=64)
    return tiny_tokenizer(folder, special=CHATML_TOKENS, eos="<|endoftext|>", template=CHATML)


def test_quantised_beside_the_other(finemoe, even, tmp_path):
    model = shutil.copytree(even, tmp_path / "even")
    finemoe("pack", str(model), "--quiet")
    done = finemoe("pack", str(model), "--bits", "8")
    path = model / "experts.int8.finemoe"
    assert (done.code, done.out) == (0, f"{path}\n")
    told = done.err.splitlines()
    assert told[1].startswith("packed 24 experts and all other weights as int8, ")
    assert told[2].startswith("error of the weights: experts 0.")
    assert (model / "experts.finemoe").exists()
    again = finemoe("pack", str(model), "-b", "8")
    assert again.err.splitlines()[0] == "even is packed as int8 already"
    result = finemoe("pack", str(model), "--bits", "4", "--json", "--quiet").json
    assert (result["precision"], result["outcome"], result["path"]) == (
        "int4",
        "written",
        str(model / "experts.int4.finemoe"),
    )
    assert result["error"].keys() == {"experts", "attention", "shared_experts", "embedding", "head"}
    assert all(0.01 < error < 0.2 for error in result["error"].values())
    shown = finemoe("models", "show", str(model), "--json").json["quantised"]
    assert shown["int4"] == {
        "path": result["path"],
        "bytes": result["bytes"],
        "error": result["error"],
        "problem": None,
    }
    assert "packed as int8" in finemoe("models", "show", str(model)).out
    assert "72 packed experts by checksum" in finemoe("models", "verify", str(model)).out
    path.write_bytes(path.read_bytes()[:-1])
    assert "is truncated" in finemoe("models", "show", str(model)).out
    broken = finemoe("models", "verify", str(model))
    assert broken.code == 1
    assert "experts.int8.finemoe is truncated" in broken.out


def test_run_as_it_was_packed(finemoe, even, tmp_path):
    model = shutil.copytree(even, tmp_path / "even")
    ask = ("run", "--model", str(model), "--kernels", "reference", "--context", "200", "-n", "3", "--json", "a")
    done = finemoe(*ask, "--precision", "int8")
    assert (done.code, done.error) == (3, "even is not packed as int8")
    assert "finemoe pack --bits 8 even" in done.err
    finemoe("pack", str(model), "--bits", "8", "--quiet")
    answers = {}
    for precision in ("bf16", "int8"):
        done = finemoe(*ask, "--precision", precision)
        assert (done.code, done.err) == (0, done.err)
        answers[precision] = done.json
        assert done.json["precision"] == precision
    assert answers["int8"]["memory"]["dense_bytes"] < 0.6 * answers["bf16"]["memory"]["dense_bytes"]
    assert finemoe(*ask, "--precision", "int2").code == 2
