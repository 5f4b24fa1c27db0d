"""Where a model came from: a small JSON file in its folder, which ``finemoe pull`` writes.

A folder with a record of a hub repository is a copy of it at one commit, and lists every file with its size and
digest. A folder with a record of another folder has nothing else in it: it only gives that folder a name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RECORD_NAME = "finemoe-model.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository at one commit.

    Attributes:
        name: Its name; files in folders of the repository are never fetched.
        size: Bytes.
        digest: ``sha256:`` and the SHA-256 of its content, or ``git:`` and its blob id (SHA-1 of ``blob``, the
            size, a zero byte and the content), whichever the hub keeps.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class HubRecord:
    """A copy of a hub repository.

    Attributes:
        repo: ``owner/name``.
        revision: What was asked for: a branch, a tag, a commit; None for the default branch.
        commit: What that was then.
        pulled_at: When, in UTC, as ISO 8601.
        files: Every file by name.
    """

    repo: str
    revision: str | None
    commit: str
    pulled_at: str
    files: Mapping[str, HubFile]

    def has(self, folder: Path, file: HubFile) -> bool:
        """Whether ``folder``, of which this is the record, has ``file`` as it is meant to be, by its size."""
        try:
            return self.files.get(file.name) == file and (folder / file.name).stat().st_size == file.size
        except OSError:
            return False

    def is_complete(self, folder: Path) -> bool:
        """Whether every file is in ``folder`` with its size."""
        return all(self.has(folder, file) for file in self.files.values())


@dataclass(frozen=True, slots=True)
class FolderRecord:
    """A name for a model folder that is somewhere else.

    Attributes:
        path: That folder.
    """

    path: Path


Record = HubRecord | FolderRecord


def read_record(folder: Path) -> Record | None:
    """The record in ``folder``; None if it has none that can be read."""
    try:
        content = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            return None
        if content["source"] == "folder":
            return FolderRecord(Path(content["path"]))
        files = {name: HubFile(name, fields["size"], fields["digest"]) for name, fields in content["files"].items()}
        return HubRecord(content["repo"], content["revision"], content["commit"], content["pulled_at"], files)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def write_record(folder: Path, record: Record) -> None:
    """Puts ``record`` into ``folder``, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    content: dict[str, Any] = {"format": _FORMAT}
    if isinstance(record, FolderRecord):
        content |= {"source": "folder", "path": str(record.path)}
    else:
        content |= {"source": "hub", **asdict(record)}
        content["files"] = {name: {"size": file.size, "digest": file.digest} for name, file in record.files.items()}
    temporary = folder / f".{RECORD_NAME}.new"
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / RECORD_NAME)
