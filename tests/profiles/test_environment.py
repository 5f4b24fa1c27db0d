from __future__ import annotations

import os
from pathlib import Path

from profiles import paths
from profiles.environment import prepare_process


def test_defaults_are_set_and_choices_are_kept(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    assert prepare_process() == []
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert Path(os.environ["NUMBA_CACHE_DIR"]) == paths.kernels_dir()
    assert paths.kernels_dir().is_dir()


def test_an_unwritable_cache_is_told_once_and_worked_around(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(paths.CACHE_VARIABLE, str(tmp_path / "file"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    (warning,) = prepare_process()
    assert paths.CACHE_VARIABLE in warning
    assert Path(os.environ["NUMBA_CACHE_DIR"]).is_dir()
    assert prepare_process() == []
