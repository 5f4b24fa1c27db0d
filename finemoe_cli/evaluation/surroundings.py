"""What numbers were measured with: packages, the commit, the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("finemoe", "torch", "transformers", "tokenizers", "safetensors", "numpy", "numba")
_GIT_SECONDS = 5


def versions() -> dict[str, str | None]:
    """Of Python and of each package that the numbers may depend on; None for one that is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """The commit of this source tree, with ``+changes`` if files differ from it.

    Of an installed package the one that pip fetched it at (PEP 610); None where it came as something else.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return _installed_commit()
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(root), *arguments],
                capture_output=True,
                text=True,
                check=True,
                timeout=_GIT_SECONDS,
                stdin=subprocess.DEVNULL,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + "+changes" if changes else head


def _installed_commit() -> str | None:
    try:
        origin = json.loads(distribution("finemoe").read_text("direct_url.json") or "{}")
        return str(origin["vcs_info"]["commit_id"])
    except (PackageNotFoundError, ValueError, KeyError, TypeError):
        return None


def machine() -> dict[str, Any]:
    """What computes."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": int(psutil.virtual_memory().total),
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor()
