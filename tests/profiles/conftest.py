"""Every test has its own folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiles import paths
from profiles.settings import SETTINGS, variable_name


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configuration, cache and data below the test's own folder, and no setting in the environment."""
    for variable in (paths.CONFIG_VARIABLE, paths.CACHE_VARIABLE, paths.DATA_VARIABLE):
        monkeypatch.setenv(variable, str(tmp_path / variable.split("_")[1].lower()))
    for name in SETTINGS:
        monkeypatch.delenv(variable_name(name), raising=False)
    return tmp_path
