"""What is asked of a hub and what is done with the answers, against one on the loopback address."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from offload.errors import (
    ChecksumMismatch,
    CorruptCheckpoint,
    ModelNotFound,
    PullError,
    StorageError,
    UnsupportedModel,
)
from offload.models.hub import HubModel, describe
from offload.models.hub_fetch import fetch_model
from offload.models.record import RECORD_NAME, FolderRecord, HubFile, HubRecord, read_record, write_record
from offload.models.spec import spec_from_config
from tests.support.checkpoints import tiny_checkpoint
from tests.support.hub_server import hub_server

REPO = "somebody/tiny-moe"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
PUBLISHED = json.loads((Path(__file__).parents[1] / "published_models.json").read_text())


@pytest.fixture
def model():
    entry = PUBLISHED["Qwen1.5-MoE-A2.7B"]
    weights = (HubFile("model.safetensors", entry["total_size"], "sha256:" + "0" * 64),)
    config = HubFile("config.json", 1000, "git:" + "0" * 40)
    spec = spec_from_config(Path("owner/name"), entry["config"])
    return HubModel("owner/name", None, "a" * 40, spec, weights, (config,), entry["total_size"])


def test_a_full_disk_is_said_with_numbers_before_anything_is_fetched(model, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 30)
    monkeypatch.setattr("offload.models.hub_fetch.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(StorageError, match=r"needs 26\.7 GiB more, and .* has 1\.00 GiB free") as caught:
        fetch_model(model, tmp_path / "models" / "owner--name")
    assert "free 25.7 GiB" in caught.value.hint


def test_a_folder_that_is_something_else_is_left_alone(model, tmp_path):
    target = tmp_path / "owner--name"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(PullError, match="is no copy of owner/name"):
        fetch_model(model, target)
    assert [path.name for path in target.iterdir()] == ["mine.txt"]


def test_records_are_read_as_they_were_written(tmp_path):
    assert read_record(tmp_path) is None
    files = {"a": HubFile("a", 3, "git:" + "1" * 40)}
    for record in (HubRecord("o/n", "v1", "b" * 40, "2026-01-01T00:00:00+00:00", files), FolderRecord(tmp_path)):
        write_record(tmp_path, record)
        assert read_record(tmp_path) == record
    for damage in ("", "{", "[]", '{"format": 2}', '{"format": 1, "source": "hub"}'):
        (tmp_path / RECORD_NAME).write_text(damage)
        assert read_record(tmp_path) is None


def test_a_copy_is_complete_with_every_file_in_its_size(tmp_path):
    files = {name: HubFile(name, 3, "git:" + "1" * 40) for name in "ab"}
    record = HubRecord("o/n", None, "b" * 40, "2026-01-01T00:00:00+00:00", files)
    (tmp_path / "a").write_text("123")
    assert not record.is_complete(tmp_path)
    (tmp_path / "b").write_text("12")
    assert not record.is_complete(tmp_path)
    (tmp_path / "b").write_text("123")
    assert record.is_complete(tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("hub") / "tiny", shards=3, expert_size=128)
    (folder / "consolidated.pt").write_bytes(b"not for finemoe")
    return folder


@pytest.fixture
def hub(checkpoint, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_server() as server:
        # What HF_ENDPOINT sets when huggingface_hub is imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        server.add(REPO, checkpoint)
        yield server


def fetched(hub):
    """The shards that were asked for, other than for their headers."""
    return [name for name in SHARDS if any(request.start != 0 for request in hub.asked(name))]


def test_a_connection_that_breaks_is_taken_up_again(hub, checkpoint, tmp_path):
    hub.cut_after = 20_000
    assert fetch_model(describe(REPO), tmp_path / "copy")
    first, second = [request for request in hub.asked(SHARDS[0]) if request.start != 0]
    assert 0 < second.start <= first.sent
    assert (tmp_path / "copy" / SHARDS[0]).read_bytes() == (checkpoint / SHARDS[0]).read_bytes()


def test_a_hub_that_is_overloaded_for_a_moment_is_asked_again(hub, tmp_path):
    model = describe(REPO)
    hub.failing = 0
    done = []

    def fail_once(stage, at, total):
        if not done:
            hub.failing = 1
        done.append(at)

    assert fetch_model(model, tmp_path / "copy", fail_once)
    assert [request.status for request in hub.requests].count(503) == 1
    assert done[-1] == model.download_bytes
    assert done == sorted(done)


def test_a_new_commit_replaces_the_old_one_and_fetches_only_what_changed(hub, checkpoint, tmp_path):
    target = tmp_path / "copy"
    fetch_model(describe(REPO), target)
    newer = shutil.copytree(checkpoint, tmp_path / "newer")
    data = bytearray((newer / SHARDS[2]).read_bytes())
    data[-1] ^= 1
    (newer / SHARDS[2]).write_bytes(data)
    hub.add(REPO, newer, commit="b" * 40)
    hub.forget()
    assert fetch_model(describe(REPO), target)
    assert fetched(hub) == [SHARDS[2]]
    assert (target / SHARDS[2]).read_bytes() == data
    assert not fetch_model(describe(REPO), target)
    assert fetch_model(describe(REPO, "a" * 40), target), "a commit that is named is the one that is had"
    assert (target / SHARDS[2]).read_bytes() == (checkpoint / SHARDS[2]).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".copy.lock", "copy", "newer"]


def test_a_file_that_arrives_changed_is_thrown_away(hub, tmp_path):
    hub.repos[REPO].broken.add(SHARDS[2])
    with pytest.raises(ChecksumMismatch, match=SHARDS[2]):
        fetch_model(describe(REPO), tmp_path / "copy")
    hub.repos[REPO].broken.clear()
    hub.forget()
    assert fetch_model(describe(REPO), tmp_path / "copy")
    assert fetched(hub) == [SHARDS[2]]


def test_what_cannot_be_run_is_refused_before_a_weight_is_fetched(hub, checkpoint, tmp_path):
    def altered(name, **changes):
        folder = shutil.copytree(checkpoint, tmp_path / name)
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        hub.add(f"somebody/{name}", folder)
        return folder

    altered("llama", model_type="llama")
    altered("single-precision", dtype="float32")
    (altered("broken") / "config.json").write_text("{")
    for path in altered("pickles").glob("*.safetensors*"):
        path.unlink()
    (altered("lacking") / SHARDS[1]).unlink()
    (altered("empty") / "config.json").unlink()
    for name, error, said in (
        ("llama", UnsupportedModel, "type 'llama'"),
        ("single-precision", UnsupportedModel, "float32"),
        ("broken", CorruptCheckpoint, "cannot be read"),
        ("pickles", UnsupportedModel, r"only as pickle \(consolidated.pt\)"),
        ("lacking", CorruptCheckpoint, f"lacks the shard {SHARDS[1]}"),
        ("empty", UnsupportedModel, "no config.json"),
    ):
        with pytest.raises(error, match=said) as caught:
            describe(f"somebody/{name}")
        assert caught.value.hint
    asked = {request.file for request in hub.requests if request.file}
    assert asked <= {"config.json", "model.safetensors.index.json"}


def test_weights_that_are_not_bfloat16_are_found_in_the_first_header(hub, tmp_path):
    folder = tiny_checkpoint(tmp_path / "single")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b'"BF16"', b'"F16" '))
    hub.add("somebody/half", folder)
    model = describe("somebody/half")
    with pytest.raises(UnsupportedModel, match="keeps its weights as F16"):
        fetch_model(model, tmp_path / "copy")
    assert all(request.start == 0 for request in hub.asked("model.safetensors"))


def test_a_gated_model_is_for_those_with_access(hub, checkpoint, tmp_path, monkeypatch):
    gated = hub.add("somebody/gated", checkpoint)
    gated.gated, gated.token = True, "hf_right"
    for token in (None, "hf_wrong"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(PullError, match="is gated"):
            describe("somebody/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert fetch_model(describe("somebody/gated"), tmp_path / "copy")
    assert {request.token for request in hub.asked(SHARDS[0])} == {"hf_right"}


def test_what_is_not_on_the_hub(hub):
    with pytest.raises(ModelNotFound, match="no model 'somebody/nothing', or it is private"):
        describe("somebody/nothing")
    with pytest.raises(ModelNotFound, match="has no revision 'v9'"):
        describe(REPO, "v9")
    with pytest.raises(ModelNotFound, match="cannot be the name of a hub repository"):
        describe("somebody/--")
