"""What an engine's process says on stderr: kept in a file of limited size, so that it never shows in a terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

LOG_BYTES = 1 << 20
"""Where the file gets longer, it becomes the old one, and a new one begins."""

_LINE_BYTES = 2000


class EngineLog:
    """A log file.

    Args:
        path: The file; it is appended to. Its folder is made if need be.

    Attributes:
        last_line: The last line that was not empty; empty without one.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.last_line = ""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass

    def take_all(self, stream: IO[bytes]) -> None:
        """Keep everything that comes, until nothing can come any more."""
        with stream:
            while piece := os.read(stream.fileno(), 1 << 16):
                lines = piece[-_LINE_BYTES:].decode("utf-8", "replace").split("\n")
                self.last_line = next((line.strip() for line in reversed(lines) if line.strip()), self.last_line)
                try:
                    self._append(piece)
                except OSError:
                    pass  # The disk is full: what matters is that the process can go on.

    def _append(self, piece: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(piece)
            size = file.tell()
        if size > LOG_BYTES:
            self._path.replace(self._path.with_name(self._path.name + ".old"))
