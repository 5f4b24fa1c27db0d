"""What a finished demo folder consists of, written last of all its files.

A folder is trusted only if its manifest is there, was written by this version of the builder, and every file
has the size it had, the small ones also their checksum.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST_NAME = "finemoe-demo.json"
BUILDER_VERSION = 1
"""Raised whenever the builder makes other bytes than before: older demos are then built anew."""
_SMALL = 1 << 23
"""Bytes below which a file's checksum is kept and checked, so that checking takes milliseconds."""


def write_manifest(folder: Path) -> Path:
    """Record the files that are in ``folder`` now; returns the manifest's path.

    Raises:
        OSError: A file could not be read, or the manifest not be written.
    """
    files = {path.name: _facts(path) for path in sorted(folder.iterdir())}
    manifest = folder / MANIFEST_NAME
    content = {"builder": BUILDER_VERSION, "files": files}
    manifest.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return manifest


def is_complete(target: Path) -> bool:
    """Whether ``target`` holds a finished demo, made by this version of the builder, with no file damaged.

    Weights are checked by size alone.
    """
    try:
        content = json.loads((target / MANIFEST_NAME).read_text(encoding="utf-8"))
        if content["builder"] != BUILDER_VERSION:
            return False
        return all(_facts(target / name) == facts for name, facts in content["files"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _facts(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size >= _SMALL:
        return {"bytes": size}
    return {"bytes": size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
