"""What a pull checks on this machine, before it asks a hub for anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from offload.errors import PullError, StorageError
from offload.models.hub import HubModel, fetch_model
from offload.models.record import RECORD_NAME, FolderRecord, HubFile, HubRecord, read_record, write_record
from offload.models.spec import spec_from_config

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
    monkeypatch.setattr("offload.models.hub.shutil.disk_usage", lambda folder: usage)
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
