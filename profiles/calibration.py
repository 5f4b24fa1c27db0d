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

_FORMAT = 6


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured.

    Attributes:
        measured_at: When, in UTC, as ISO 8601.
        memory_bytes_per_s / kernel_bytes_per_s / prompt_bytes_per_s / flops: See
            :class:`offload.forecast.MachineRates`.
        record_bytes: Size of the reads.
        disk_bytes_per_s: What ``lanes`` threads read.
        lanes: The fewest threads within 10 % of the best.
        disk_rates: Each number of threads that was tried, and what they read together.
        direct: Whether the reads went past the page cache.
    """

    measured_at: str
    memory_bytes_per_s: float
    kernel_bytes_per_s: float
    prompt_bytes_per_s: float
    flops: float
    record_bytes: int
    disk_bytes_per_s: float
    lanes: int
    disk_rates: tuple[tuple[int, float], ...]
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
        kept = content["measurements"][_key(record_bytes)]
        return Calibration(**kept | {"disk_rates": tuple((int(n), float(rate)) for n, rate in kept["disk_rates"])})
    except (OSError, ValueError, LookupError, TypeError):
        return None


def calibrate(spec: ModelSpec, progress: Progress | None = None) -> Calibration:
    """Measures memory, products with weights, and the disk of the cache folder at the size of ``spec``'s experts.

    Compiles the decode kernels where that was not done yet.

    Raises:
        StorageError: The cache folder cannot be written, or has too little space.
    """
    from offload.runtime.rates import measure_kernel_rate, measure_prompt_rates
    from offload.store.scratch import measure_disk
    from offload.telemetry.rates import measure_memory_rate

    folder = ensure_folder(cache_dir())
    disk = measure_disk(folder, spec, progress)
    kernel_rate = measure_kernel_rate(spec.expert_bytes, progress=progress)
    prompt_rate, flops = measure_prompt_rates(spec.expert_bytes)
    made = Calibration(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        memory_bytes_per_s=measure_memory_rate(),
        kernel_bytes_per_s=kernel_rate,
        prompt_bytes_per_s=prompt_rate,
        flops=flops,
        record_bytes=spec.expert_bytes,
        disk_bytes_per_s=disk.bytes_per_second,
        lanes=disk.lanes,
        disk_rates=tuple((rate.lanes, rate.bytes_per_second) for rate in disk.rates),
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
