"""How many threads compute: what this process may really use."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from offload.runtime import cores


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("350000 100000", 3), ("nonsense", 4)],
)
def test_a_container_gets_what_it_is_allowed(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota, encoding="utf-8")
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    assert cores.computing_threads() == expected
    assert cores.computing_threads(7) == 7


def test_processors_that_the_process_may_not_run_on_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "none")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3})
    assert cores.computing_threads() == 2
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    assert cores.computing_threads() == 1
