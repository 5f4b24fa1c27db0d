"""Where prompts come from, and that it is said."""

from __future__ import annotations

import json
import socket
import sys

import pytest

from finemoe_cli.datasets.sample import load_sample
from finemoe_cli.evaluation import prompts
from finemoe_cli.evaluation.prompts import BUNDLED, HUB, find_prompts
from offload.errors import ConfigError
from tests.support.hub_server import hub_server

ROWS = [{"id": f"talk-{n}", "conversations": [{"from": "human", "value": f"Question {n}"}]} for n in range(9)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "hub"


def test_the_sample():
    found = find_prompts("sample", None, 5, 3)
    assert (found.source, found.note, found.conversations) == (BUNDLED, "", load_sample(5, 3))


@pytest.mark.parametrize("dataset", HUB)
def test_where_there_is_none_the_sample_does_not_pass_for_it(cache, dataset):
    found = find_prompts(dataset, None, 5, 0)
    assert (found.dataset, found.source, found.path) == (dataset, BUNDLED, "")
    assert found.note.startswith(f"{dataset} cannot be had (it is not in the Hugging Face cache")
    assert "--data" in found.note


def test_what_is_in_the_cache_is_found(cache):
    wanted = HUB["sharegpt"]
    snapshot = cache / f"datasets--{wanted.repo.replace('/', '--')}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / wanted.file).write_text(json.dumps([*ROWS, {"id": "empty", "conversations": []}]))
    found = find_prompts("sharegpt", None, 4, 1)
    assert (found.source, found.path, found.note) == ("Hugging Face cache", str(snapshot / wanted.file), "")
    assert len({one.id for one in found.conversations}) == 4
    assert (found.skipped_rows, found.skipped) == (1, ("row 10: it has no turn of a user",))


def test_parquet_of_lmsys(cache):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    snapshot = cache / "datasets--lmsys--lmsys-chat-1m" / "snapshots" / "abc" / "data"
    snapshot.mkdir(parents=True)
    rows = [{"conversation_id": "x", "conversation": [{"role": "user", "content": "Hello"}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), snapshot / "train-00000-of-00006-1a2b.parquet")
    found = find_prompts("lmsys", None, 4, 1)
    assert [one.turns for one in found.conversations] == [("Hello",)]
    assert found.source == "Hugging Face cache"


def test_a_hub_that_refuses_is_told_in_a_line(cache, monkeypatch):
    asked_of("http://127.0.0.1:9", monkeypatch)
    found = find_prompts("lmsys", None, 2, 0)
    assert found.source == BUNDLED
    assert found.note.startswith("lmsys cannot be had (") and "\n" not in found.note


def test_it_is_fetched_where_that_is_asked_for(cache, monkeypatch, tmp_path):
    wanted = HUB["sharegpt"]
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / wanted.file).write_text(json.dumps(ROWS))
    with hub_server() as hub:
        hub.add(wanted.repo, tmp_path / "repo")
        asked_of(hub.url, monkeypatch)
        found = find_prompts("sharegpt", None, 4, 1)
        assert (found.source, found.note, len(found.conversations)) == ("Hugging Face hub", "", 4)
        assert find_prompts("sharegpt", None, 4, 1).source == "Hugging Face cache"
        hub.repos[wanted.repo].gated = True
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
        gated = find_prompts("sharegpt", None, 4, 1)
    assert gated.note.startswith(f"sharegpt cannot be had ({wanted.repo} is gated: ")


def test_a_hub_that_never_answers_is_given_up(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked_of(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch)
        found = find_prompts("sharegpt", None, 2, 0)
    assert found.source == BUNDLED
    assert found.note.startswith("sharegpt cannot be had (the hub cannot be reached")


def test_what_is_missing_to_read_it_is_said(cache, monkeypatch):
    snapshot = cache / "datasets--lmsys--lmsys-chat-1m" / "snapshots" / "abc" / "data"
    snapshot.mkdir(parents=True)
    (snapshot / "train-00000-of-00006-1a2b.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'finemoe[data]'" in find_prompts("lmsys", None, 4, 1).note


def asked_of(url: str, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for place, value in (
        ("constants.ENDPOINT", url),
        ("hf_api.api.endpoint", url),
        ("constants.HUGGINGFACE_CO_URL_TEMPLATE", template),
    ):
        monkeypatch.setattr(f"huggingface_hub.{place}", value)


def test_the_seed_draws_from_a_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in ROWS))
    drawn = [[one.id for one in find_prompts("sample", path, 4, seed).conversations] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert find_prompts(str(path), None, 99, 0).source == "file"


def test_an_unknown_data_set():
    with pytest.raises(ConfigError, match="there is no dataset 'wikitext'"):
        find_prompts("wikitext", None, 4, 0)
    assert prompts.SAMPLE == "sample"
