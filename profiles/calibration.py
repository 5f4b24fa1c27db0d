"""This machine's rates, measured once and kept in the cache folder with the time of measuring."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from offload.files import Progress
from offload.models.spec import ModelSpec
from profiles.files import write_atomically
from profiles.paths import cache_dir, ensure_folder

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured.

    Attributes:
        measured_at: When, in UTC, as ISO 8601.
        memory_bytes_per_s / flops: See :class:`offload.forecast.MachineRates`.
        record_bytes: Size of the reads.
        disk_bytes_per_s: What ``lanes`` threads read.
        lanes: The fewest threads within 5 % of the best.
        direct: Whether the reads went past the page cache.
    """

    measured_at: str
    memory_bytes_per_s: float
    flops: float
    record_bytes: int
    disk_bytes_per_s: float
    lanes: int
    direct: bool

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def calibration_file() -> Path:
    """Where the measurements are kept, one for each size of reads."""
    return cache_dir() / "calibration.json"


def kept_calibration(record_bytes: int) -> Calibration | None:
    """The measurement for reads of about ``record_bytes``, if one was made."""
    try:
        content = json.loads(calibration_file().read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            return None
        return Calibration(**content["measurements"][_key(record_bytes)])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def calibrate(spec: ModelSpec, progress: Progress | None = None) -> Calibration:
    """Measures memory, matrix products, and the disk of the cache folder at the size of ``spec``'s experts.

    Raises:
        StorageError: The cache folder cannot be written, or has too little space.
    """
    from offload.store.scratch import measure_disk
    from offload.telemetry.rates import measure_flops, measure_memory_rate

    folder = ensure_folder(cache_dir())
    disk = measure_disk(folder, spec, progress)
    made = Calibration(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        memory_bytes_per_s=measure_memory_rate(),
        flops=measure_flops(),
        record_bytes=spec.expert_bytes,
        disk_bytes_per_s=disk.bytes_per_second,
        lanes=disk.lanes,
        direct=disk.direct,
    )
    _keep(made)
    return made


def _keep(made: Calibration) -> None:
    path = calibration_file()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        measurements = dict(content["measurements"]) if content["format"] == _FORMAT else {}
    except (OSError, ValueError, LookupError, TypeError):
        measurements = {}
    measurements[_key(made.record_bytes)] = asdict(made)
    write_atomically(path, json.dumps({"format": _FORMAT, "measurements": measurements}, indent=1) + "\n")


def _key(record_bytes: int) -> str:
    """Sizes within a factor of two of one another read at much the same rate."""
    return str(max(record_bytes, 1).bit_length())
