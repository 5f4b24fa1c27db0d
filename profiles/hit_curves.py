"""What measurements on this machine have shown of models' routing: hit rates by share, one file a model.

They are kept in the cache folder: measuring again makes them again.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from offload.hits import HitCurve
from offload.models.spec import ModelSpec
from offload.store.fingerprint import fingerprint
from offload.store.safetensors_index import CheckpointIndex
from profiles.files import write_atomically
from profiles.paths import cache_dir, ensure_folder

_FORMAT = 1
_DIGITS = 16


def kept_curve(spec: ModelSpec, index: CheckpointIndex) -> HitCurve | None:
    """What was measured of the model last, if anything was."""
    try:
        content = json.loads(_file(spec, index).read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            return None
        points = tuple((float(share), float(hits)) for share, hits in content["points"])
        shares = [share for share, _ in points]
        if shares != sorted(set(shares)) or (shares[0], shares[-1]) != (0.0, 1.0):
            return None
        return HitCurve(points, f"measured here, {content['tokens']} tokens, {content['measured_at'][:10]}")
    except (OSError, ValueError, LookupError, TypeError):
        return None


def keep_curve(
    spec: ModelSpec, index: CheckpointIndex, points: tuple[tuple[float, float], ...], tokens: int
) -> None:
    """Keep the points of a curve, measured with so many tokens, in the place of older ones.

    Raises:
        StorageError: The cache folder cannot be written.
    """
    path = _file(spec, index)
    ensure_folder(path.parent)
    content = {
        "format": _FORMAT,
        "model": spec.name,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "tokens": tokens,
        "points": points,
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def _file(spec: ModelSpec, index: CheckpointIndex) -> Path:
    return cache_dir() / "hits" / f"{fingerprint(spec, index)[:_DIGITS]}.json"
