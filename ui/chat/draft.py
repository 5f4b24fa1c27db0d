"""What was written and not sent is there again the next time."""

from __future__ import annotations

from contextlib import suppress

from offload.errors import ConfigError, StorageError
from profiles.files import read_text, write_atomically
from profiles.paths import draft_file


def keep_draft(text: str) -> None:
    """Keeps it, where it can be kept and is something."""
    if text.strip():
        with suppress(StorageError):
            write_atomically(draft_file(), text)


def take_draft() -> str:
    """What was kept, which is kept no longer."""
    try:
        text = read_text(draft_file())
        draft_file().unlink(missing_ok=True)
    except (ConfigError, OSError):
        return ""
    return text
