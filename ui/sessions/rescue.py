"""Writing out what is only in memory when there is no more time to wait for the database."""

from __future__ import annotations

import json
import tempfile
from datetime import datetime
from pathlib import Path

from ui.sessions.export import export_json
from ui.sessions.store import SessionStore


def rescue(memory: SessionStore, folder: Path) -> str:
    """Exports every session of a store in memory as JSON, into ``folder`` or else the system's temporary folder.

    Returns:
        One line that names the files, or says that none could be written; empty if nothing was said.

    Raises:
        StorageError: The store cannot be read.
    """
    exports = [export_json(memory, session.id) for session in memory.sessions() if session.messages]
    if not exports:
        return ""
    failure = ""
    for place in (folder, Path(tempfile.gettempdir())):
        try:
            paths = [_write(place, json.dumps(one, ensure_ascii=False, indent=1) + "\n") for one in exports]
        except OSError as error:
            failure = failure or f"{error.strerror or error}"
            continue
        return f"what was said could not be saved as a session; all of it is in {' and '.join(map(str, paths))}"
    return f"what was said could not be saved, neither as a session nor in a file: {failure}"


def _write(folder: Path, text: str) -> Path:
    """A new file that only its owner can read; one that cannot be written whole is taken away again."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        path = folder / f"unsaved-{stamp}{suffix}.json"
        try:
            path.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            continue
        try:
            path.write_text(text, encoding="utf-8")
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path
    raise FileExistsError(f"{folder} has a thousand of them")
