"""Reading and writing the small TOML files that settings and profiles are kept in."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from pathlib import Path

from offload.errors import ConfigError
from profiles.paths import ensure_folder, unwritable


def read_toml(path: Path) -> dict[str, object]:
    """The file's table; empty if there is no such file.

    Raises:
        ConfigError: It cannot be read, or is not TOML; the message names the line.
    """
    return parse_toml(read_text(path), path)


def read_text(path: Path) -> str:
    """The file's text; empty if there is no such file.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", "save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def parse_toml(text: str, path: Path) -> dict[str, object]:
    """The table that ``text``, the content of ``path``, says.

    Raises:
        ConfigError: ``text`` is not TOML; the message names the line.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {_lower_first(str(error))}", "correct that line") from error


def line_of(key: str, path: Path) -> int | None:
    """The line, counted from 1, on which ``path`` sets ``key``; None if it is not found."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    pattern = assignment(key)
    return next((number for number, line in enumerate(lines, 1) if pattern.match(line)), None)


def assignment(key: str) -> re.Pattern[str]:
    """What a line looks like that sets ``key``."""
    bare = re.escape(key)
    return re.compile(rf"\s*\[?\s*(?:{bare}|\"{bare}\"|'{bare}')\s*(?:=|\]|\.)")


def toml_value(value: str | int | float) -> str:
    """``value`` as TOML writes it."""
    if isinstance(value, str):
        # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Puts ``content`` at ``path`` whole or not at all; text as UTF-8.

    Raises:
        StorageError: It cannot be written; what was there before is still there.
    """
    ensure_folder(path.parent)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise unwritable(path.parent, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
