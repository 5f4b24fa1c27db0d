"""``finemoe pull`` from a hub on the loopback address, and from folders."""

from __future__ import annotations

import json
import os
import pty
import signal
import time
from pathlib import Path

import pytest

from offload.models.record import RECORD_NAME
from tests.support.checkpoints import tiny_checkpoint
from tests.support.hub_server import hub_server

REPO = "somebody/tiny-moe"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Three shards, a tokenizer's file, and what must never be fetched."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("hub") / "tiny", shards=3, expert_size=128)
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE").write_text("as you like")
    for name in ("pytorch_model.bin", "consolidated.pt", "modeling_tiny.py", "other.safetensors", "README.md"):
        (folder / name).write_bytes(b"\x80\x04not for finemoe")
    return folder


@pytest.fixture
def hub(finemoe, checkpoint):
    with hub_server() as server:
        server.add(REPO, checkpoint)
        finemoe.environment |= {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_XET": "1"}
        finemoe.environment["HF_HOME"] = finemoe.environment["FINEMOE_DATA_DIR"]
        finemoe.environment.pop("HF_TOKEN", None)
        finemoe.environment.pop("HF_HUB_OFFLINE", None)
        yield server


def place_of(finemoe, name="somebody--tiny-moe"):
    return Path(finemoe.environment["FINEMOE_CACHE_DIR"]) / "models" / name


def test_a_repository_is_copied_at_its_commit_and_recorded(finemoe, hub, checkpoint):
    pulled = finemoe("pull", REPO, "--json")
    assert pulled.code == 0, pulled.err
    folder = place_of(finemoe)
    fetched = {path.name for path in folder.iterdir()} - {RECORD_NAME}
    assert fetched == {
        *SHARDS,
        "model.safetensors.index.json",
        "config.json",
        "generation_config.json",
        "chat_template.jinja",
        "LICENSE",
    }
    for name in fetched:
        assert (folder / name).read_bytes() == (checkpoint / name).read_bytes()
    size = sum((folder / name).stat().st_size for name in fetched)
    assert pulled.json == {
        "model": REPO, "path": str(folder), "pulled": True, "commit": "a" * 40, "bytes": size,
    }  # fmt: skip
    record = json.loads((folder / RECORD_NAME).read_text())
    assert (record["repo"], record["revision"], record["commit"]) == (REPO, None, "a" * 40)
    assert set(record["files"]) == fetched
    # Everything was asked for by commit, not by branch, so that no push in the middle can mix two.
    assert all(f"/resolve/{'a' * 40}/" in request.path for request in hub.requests if request.file)

    hub.forget()
    again = finemoe("pull", REPO)
    assert (again.code, again.out) == (0, f"{folder}\n")
    assert "was there already" in again.err
    assert not any(hub.asked(name) for name in SHARDS)


def test_pulled_models_are_listed_shown_found_and_removed(finemoe, hub):
    assert finemoe("pull", REPO, "-q").code == 0
    assert finemoe("pull", REPO, "--name", "mine", "-q").code == 0
    listed = finemoe("models", "list", "--json").json["models"]
    assert [(model["name"], model["model_type"], model["commit"]) for model in listed] == [
        ("mine", "qwen2_moe", "a" * 40),
        (REPO, "qwen2_moe", "a" * 40),
    ]
    shown = finemoe("models", "show", REPO, "--json").json
    assert shown["repo"] == REPO
    assert shown["tensor_bytes"] == shown["dense_bytes"] + shown["experts_bytes"]
    assert shown["packed"] is None
    assert finemoe("models", "verify", REPO).code == 0

    assert finemoe("models", "default", REPO).code == 0
    assert finemoe("config", "get", "model").out == f"{REPO}\n"
    listed = finemoe("models", "list", "--json").json
    assert [model["name"] for model in listed["models"] if model["default"]] == [REPO]

    refused = finemoe("models", "rm", "mine")
    assert (refused.code, refused.error) == (2, refused.error)
    assert "--yes" in refused.err
    assert finemoe("models", "rm", "mine", "--yes").code == 0
    assert not place_of(finemoe, "mine").exists()
    removed = finemoe("models", "rm", REPO, "-y")
    assert "still the configured model" in removed.err
    assert finemoe("models", "list", "--json").json["models"] == []


def test_a_damaged_file_of_a_pulled_model_is_named_and_fetched_again(finemoe, hub):
    assert finemoe("pull", REPO, "-q").code == 0
    shard = place_of(finemoe) / SHARDS[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    verified = finemoe("models", "verify", REPO)
    assert verified.code == 1
    assert SHARDS[1] in verified.out
    hub.forget()
    assert finemoe("pull", REPO, "-q").code == 0
    assert finemoe("models", "verify", REPO).code == 0
    assert [name for name in SHARDS if [r for r in hub.asked(name) if r.start is None]] == [SHARDS[1]]


def test_a_killed_pull_goes_on_where_it_stopped(finemoe, hub, checkpoint):
    size = (checkpoint / SHARDS[1]).stat().st_size
    hub.bytes_per_s = size
    process = finemoe.start("pull", REPO)
    work = place_of(finemoe, ".somebody--tiny-moe.fetching")
    wait_for(lambda: any(part.stat().st_size > size // 4 for part in work.glob(f"{SHARDS[1]}.*.part")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not place_of(finemoe).exists()
    listed = finemoe("models", "list", "--json").json
    assert (listed["models"], listed["partial"]) == ([], [REPO])
    (part,) = work.glob(f"{SHARDS[1]}.*.part")
    had = part.stat().st_size
    assert 0 < had < size

    wait_for(lambda: hub.asked(SHARDS[1]))
    hub.forget()
    hub.bytes_per_s = None
    done = finemoe("pull", REPO)
    assert done.code == 0, done.err
    assert hub.asked(SHARDS[0]) == []
    (resumed,) = hub.asked(SHARDS[1])
    assert (resumed.start, resumed.sent) == (had, size - had)
    for name in SHARDS:
        assert (place_of(finemoe) / name).read_bytes() == (checkpoint / name).read_bytes()
    assert not work.exists()


def test_what_an_interrupted_pull_left_can_be_deleted(finemoe, hub, checkpoint):
    hub.bytes_per_s = (checkpoint / SHARDS[0]).stat().st_size
    process = finemoe.start("pull", REPO)
    work = place_of(finemoe, ".somebody--tiny-moe.fetching")
    wait_for(lambda: any(part.stat().st_size for part in work.glob("*.part")))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.decode().splitlines()[-1]) == (130, "interrupted")
    assert finemoe("models", "rm", REPO, "--yes").code == 0
    assert not work.exists()


def test_deleting_asks_on_a_terminal(finemoe, checkpoint):
    assert finemoe("pull", str(checkpoint), "--name", "mine", "-q").code == 0
    for answer, code, left in (("n", 1, ["mine"]), ("y", 0, [])):
        master, slave = pty.openpty()
        process = finemoe.start("models", "rm", "mine", stdin=slave, stderr=slave)
        os.write(master, f"{answer}\n".encode())
        process.communicate(timeout=30)
        assert b"forget the name mine" in os.read(master, 1 << 16).lower()
        os.close(master)
        os.close(slave)
        assert process.returncode == code
        assert [model["name"] for model in finemoe("models", "list", "--json").json["models"]] == left


def test_what_the_hub_refuses_is_said_in_one_line_with_a_way_out(finemoe, hub, checkpoint):
    hub.add("somebody/gated", checkpoint).gated = True
    refused = finemoe("pull", "somebody/gated")
    assert refused.code == 1
    assert refused.error.startswith("somebody/gated is gated")
    assert "hf auth login" in refused.err and "ask for access" in refused.err
    missing = finemoe("pull", "somebody/nothing")
    assert (missing.code, missing.error) == (3, "the hub has no model 'somebody/nothing', or it is private")
    assert "hf auth login" in missing.err
    offline = finemoe("pull", REPO, env={"HF_HUB_OFFLINE": "1"})
    assert (offline.code, "HF_HUB_OFFLINE is set" in offline.error) == (1, True)
    nowhere = finemoe("pull", REPO, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert (nowhere.code, "cannot be reached" in nowhere.error) == (1, True)
    assert "HF_ENDPOINT" in nowhere.err


def test_a_folder_is_used_in_place_and_only_its_name_goes(finemoe, checkpoint):
    pulled = finemoe("pull", str(checkpoint), "--name", "mine", "--json")
    assert pulled.json == {"model": "mine", "path": str(checkpoint), "pulled": True}
    (listed,) = finemoe("models", "list", "--json").json["models"]
    assert (listed["name"], listed["path"], listed["registered"]) == ("mine", str(checkpoint), True)
    assert finemoe("models", "show", "mine", "--json").json["path"] == str(checkpoint)
    assert finemoe("pull", str(checkpoint), "--name", "mine", "--json").json["pulled"] is False
    assert finemoe("models", "rm", "mine", "--yes").code == 0
    assert (checkpoint / "config.json").is_file()
    assert finemoe("models", "list", "--json").json["models"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["pull", "nothing"], 3, "neither a folder nor a hub repository"),
        (["pull", "./nothing"], 3, "no model folder at"),
        (["pull", "demo", "--name", "x"], 2, "the demo has neither"),
        (["pull", "a/b", "--name", "../x"], 2, "cannot be called '../x'"),
        (["models", "rm", "nothing"], 3, "no model called 'nothing'"),
        (["run", "-m", "a/b", "hi"], 3, "no model or folder called 'a/b'"),
    ],
)
def test_what_cannot_be_meant(finemoe, arguments, code, said):
    refused = finemoe(*arguments)
    assert (refused.code, said in refused.error) == (code, True), refused.err


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
