"""The folder of a run. Whatever ends the run, a request that is in it is whole, and the run can go on.

::

    run.json          what is done, and each sitting: when, versions, machine
    requests.jsonl    a row for each request, written safely to the disk as soon as it is over
    perplexity.jsonl  a row for each window of a text; exact.jsonl: for each request that was held again
    summary.json      what they come to
    report.md         the same for people, report.html with figures; combinations.csv and more for spreadsheets
    routing.npz       what the routers chose; routing/ has it of each request, until the run is complete
    perplexity.tokens the text's token ids, int32 in the machine's order, until the run is complete
    engines.log       what the engines' processes said on stderr
    learnt/           what policies learned from the history, until the run is complete
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from offload.errors import ConfigError, DamagedFile, StorageError
from offload.files import locked, storage_errors, sync_folder
from profiles.files import write_atomically
from profiles.paths import ensure_folder

FORMAT = 2
RUN = "run.json"
REQUESTS = "requests.jsonl"
REPLAYED = "exact.jsonl"
PERPLEXITY = "perplexity.jsonl"
SUMMARY = "summary.json"
TOKENS = "perplexity.tokens"
LOG = "engines.log"
LEARNT = "learnt"
ROUTING = "routing.npz"
ROUTING_PARTS = "routing"
_LOCK = ".lock"

Row = dict[str, Any]
Finished = set[tuple[str, int]]
"""Combination, and number of the conversation."""


class RunFolder:
    """A folder that is being written.

    Attributes:
        path: Where it is.
        run: What is in ``run.json``; None in a new folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run: dict[str, Any] | None = None
        if (path / RUN).exists():
            self.run = read_run(path)

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[RunFolder]:
        """The folder at `path`, made if it is not there; no other process has it meanwhile.

        Raises:
            ConfigError: Another process has it, or it holds something else.
            StorageError: It cannot be written.
        """
        if path.is_dir() and not (path / RUN).exists() and any(one.name != _LOCK for one in path.iterdir()):
            raise ConfigError(f"{path} is not the folder of a run", "choose a new or an empty folder")
        ensure_folder(path)

        def occupied(stage: str, waited: int, total: int) -> None:
            raise ConfigError(f"another finemoe is evaluating in {path}", "wait for it, or choose another folder")

        with ExitStack() as stack:
            with storage_errors("the run", path):
                stack.enter_context(locked(path / _LOCK, occupied))
            yield cls(path)

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Keep what is done."""
        self.run = dict(run)
        write_atomically(self.path / RUN, json.dumps(run, indent=2) + "\n")
        sync_folder(self.path)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Keep what the requests come to."""
        write_atomically(self.path / SUMMARY, json.dumps(summary, indent=2) + "\n")

    def append(self, row: Row, name: str = REQUESTS) -> None:
        """Add a request to the file of this name, safely.

        Raises:
            StorageError: It cannot be written.
        """
        path = self.path / name
        with storage_errors("the request", path), path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def drop_unfinished(self, name: str = REQUESTS) -> Finished:
        """Take out conversations that were broken off, to be held again. Returns those that are finished."""
        path = self.path / name
        if not path.exists():
            return set()
        rows = read_rows(path)
        finished = {(row["combination"], row["number"]) for row in rows if is_last(row)}
        kept = [row for row in rows if (row["combination"], row["number"]) in finished]
        if len(kept) < len(rows) or not path.read_bytes().endswith(b"\n"):
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
            sync_folder(self.path)
        return finished

    def routing_part(self, number: int, turn: int) -> Path:
        """Where the routing of a turn of conversation `number` is kept until the run is complete."""
        return self.path / ROUTING_PARTS / f"{number:06}-{turn:03}.npz"

    def begin_anew(self) -> None:
        """Forget a run in which nothing was measured, with all that it prepared."""
        for name in (LEARNT, ROUTING_PARTS):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (RUN, TOKENS):
            (self.path / name).unlink(missing_ok=True)
        self.run = None

    def drop_learnt(self) -> None:
        """The run is complete: what policies learned is not needed any more, and may be large."""
        shutil.rmtree(self.path / LEARNT, ignore_errors=True)

    def rows(self, name: str = REQUESTS) -> list[Row]:
        """Every request so far, or what else is in the file of this name."""
        path = self.path / name
        return read_rows(path) if path.exists() else []


def anything_measured(path: Path) -> bool:
    """Whether the run in this folder has come to a row of anything.

    Raises:
        StorageError: One cannot be read.
    """
    kept = (path / name for name in (REQUESTS, REPLAYED, PERPLEXITY))
    return any(read_rows(rows) for rows in kept if rows.exists())


def is_last(row: Row) -> bool:
    """Whether a conversation ends with this row: its last turn, or one that failed. What has no turns does."""
    return "error" in row or row.get("turn") == row.get("turns")


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``requests.jsonl``. A last one that was being written when the power went is left out.

    Raises:
        DamagedFile: Another one cannot be read.
    """
    with storage_errors("the requests", path):
        lines = path.read_bytes().split(b"\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            rows.append(row)
            _ = row["combination"], row["number"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                return rows
            raise DamagedFile(f"line {number} of {path} is damaged", "take that line out, or begin anew") from None
    return rows


def read_run(folder: Path) -> dict[str, Any]:
    """What is in the ``run.json`` of a folder.

    Raises:
        ConfigError: Another version of finemoe wrote it.
        StorageError: It is not there, or damaged.
    """
    run = read_object(folder / RUN)
    if run.get("format") != FORMAT:
        raise ConfigError(f"{folder} was written by another version of finemoe", "begin a new run")
    return run


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run.

    Raises:
        StorageError: It is not there, or damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError:
        raise DamagedFile(f"{path} is damaged", "begin a new run") from None
    if not isinstance(found, dict):
        raise DamagedFile(f"{path} is damaged", "begin a new run")
    return found
