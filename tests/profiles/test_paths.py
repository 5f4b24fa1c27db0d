from __future__ import annotations

from pathlib import Path

import pytest

from offload.errors import StorageError
from profiles import paths


def test_the_environment_moves_each_root(own_folders):
    assert paths.config_file() == own_folders / "config" / "config.toml"
    assert paths.models_dir() == own_folders / "cache" / "models"
    assert paths.kernels_dir() == own_folders / "cache" / "kernels"
    assert paths.data_dir() == own_folders / "data"


def test_an_empty_variable_is_no_variable(monkeypatch):
    monkeypatch.setenv(paths.CACHE_VARIABLE, "")
    assert paths.cache_dir().name == "finemoe"
    assert paths.cache_dir().is_absolute()


def test_relative_and_home_paths_become_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(paths.CACHE_VARIABLE, "here")
    assert paths.cache_dir() == tmp_path / "here"
    monkeypatch.setenv(paths.CACHE_VARIABLE, "~/there")
    assert paths.cache_dir() == Path.home() / "there"


def test_asking_creates_nothing(own_folders):
    paths.models_dir()
    paths.check_folder(paths.models_dir())
    assert list(own_folders.iterdir()) == []
    assert paths.ensure_folder(paths.models_dir()).is_dir()


def test_a_folder_that_cannot_be_made_names_its_variable(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(paths.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    for attempt in (paths.ensure_folder, paths.check_folder):
        with pytest.raises(StorageError) as caught:
            attempt(paths.models_dir())
        assert paths.CACHE_VARIABLE in caught.value.hint
        assert "\n" not in caught.value.message
