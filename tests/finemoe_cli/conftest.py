"""``finemoe`` as users start it: a process of its own, with folders of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from offload.models.demo import DEMO_NAME

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout, which must be one JSON object on one line."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The message of the one error on stderr."""
        assert "Traceback" not in self.err, self.err
        lines = self.err.splitlines()
        (error,) = [line for line in lines if line.startswith("error: ")]
        assert lines.index(error) >= len(lines) - 2, self.err
        assert self.out == ""
        return error.removeprefix("error: ")


@dataclass
class Finemoe:
    """Starts ``finemoe`` with the environment in ``environment``."""

    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """The process; stdin is empty, stdout and stderr are pipes, unless ``options`` say otherwise."""
        settings: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": self.environment,
        }
        return subprocess.Popen([sys.executable, "-m", "finemoe_cli", *arguments], **settings | options)

    def __call__(
        self, *arguments: str, stdin: str | bytes = b"", env: Mapping[str, str] | None = None, timeout: float = 240
    ) -> Result:
        """Runs one command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "finemoe_cli", *arguments],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            env=self.environment | dict(env or {}),
            timeout=timeout,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def finemoe(tmp_path: Path) -> Finemoe:
    """``finemoe`` with nothing configured and nothing pulled."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FINEMOE_")}
    for variable in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "_FINEMOE_COMPLETE"):
        environment.pop(variable, None)
    environment |= {
        "FINEMOE_CONFIG_DIR": str(tmp_path / "config"),
        "FINEMOE_CACHE_DIR": str(tmp_path / "cache"),
        "FINEMOE_DATA_DIR": str(tmp_path / "data"),
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
        "TERM": "xterm",
    }
    return Finemoe(environment)


@pytest.fixture
def with_demo(finemoe: Finemoe, demo_model: Path) -> Finemoe:
    """``finemoe`` with the demo pulled, and nothing else."""
    models = Path(finemoe.environment["FINEMOE_CACHE_DIR"]) / "models"
    models.mkdir(parents=True)
    (models / DEMO_NAME).symlink_to(demo_model)
    return finemoe


@pytest.fixture
def quick_disk(finemoe: Finemoe, tmp_path: Path) -> Finemoe:
    """``finemoe`` that measures the disk with a file of a megabyte, which takes a moment."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import offload.store.scratch as scratch\nscratch.SCRATCH_BYTES = 1 << 20\n"
    )
    finemoe.environment["PYTHONPATH"] = f"{tmp_path / 'site'}:{ROOT}"
    return finemoe
