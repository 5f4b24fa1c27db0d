"""What numbers were measured with."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from finemoe_cli.evaluation import surroundings


class Installed:
    """As much of a distribution as is asked for."""

    def __init__(self, origin: str | None) -> None:
        self._origin = origin

    def read_text(self, name: str) -> str | None:
        return self._origin if name == "direct_url.json" else None


@pytest.mark.parametrize(
    ("origin", "commit"),
    [
        ({"url": "https://host/finemoe", "vcs_info": {"vcs": "git", "commit_id": "ab" * 20}}, "ab" * 20),
        ({"url": "file:///finemoe", "dir_info": {}}, None),
        ({"url": "https://host/finemoe.whl", "archive_info": {}}, None),
        (None, None),
    ],
)
def test_an_installed_package_knows_the_commit_that_pip_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origin: dict[str, object] | None, commit: str | None
) -> None:
    text = None if origin is None else json.dumps(origin)
    monkeypatch.setattr(surroundings, "__file__", str(tmp_path / "finemoe_cli" / "evaluation" / "surroundings.py"))
    monkeypatch.setattr(surroundings, "distribution", lambda name: Installed(text))
    assert surroundings.commit() == commit


def test_what_is_not_installed_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> Installed:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(surroundings, "__file__", str(tmp_path / "a" / "b" / "surroundings.py"))
    monkeypatch.setattr(surroundings, "distribution", missing)
    assert surroundings.commit() is None


def test_a_source_tree_has_its_own() -> None:
    root = Path(__file__).parents[3]
    found = surroundings.commit()
    assert (found is not None) == (root / ".git").exists()
    assert found is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", found)
