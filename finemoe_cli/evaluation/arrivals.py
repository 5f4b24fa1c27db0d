"""When conversations come, and how long they wait for an engine that answers one at a time.

Engines take turns, so that only one computes at any moment; a queue in real time would be that of all engines
together. So each has a clock of its own: service times are measured, and arrivals and waiting are worked out on it.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from offload.errors import ConfigError

AT_ONCE = "at-once"
COLUMNS = ("timestamp", "arrival_timestamp", "arrival_time", "arrival_s", "arrival", "arrived_at", "time")
"""Names of the column or key that is read, whatever their case: the first of them that is there."""

_POISSON = re.compile(r"poisson:(\S+)")
_FRACTION = re.compile(r"(\.\d{6})\d+")
_LONGEST_LINE = 1 << 20


def arrival_times(arrivals: str | None, scale: float, count: int, seed: int) -> list[float] | None:
    """When each of `count` conversations comes, in seconds from the first on, in rising order.

    Args:
        arrivals: ``at-once``, ``poisson:RATE`` in conversations a second, or a file with a time in each row; None
            for no arrivals: a conversation comes when the one before it is over.
        scale: Times of a file are multiplied by it.
        seed: Of the chance in ``poisson``.

    Raises:
        ConfigError: There are no such arrivals, or not enough.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(f"--arrival-scale is {scale:g}", "give a number above 0")
    if arrivals is None:
        if scale != 1:
            raise ConfigError("--arrival-scale is given without --arrivals", "name a file of arrivals with it")
        return None
    if arrivals == AT_ONCE:
        return [0.0] * count
    if match := _POISSON.fullmatch(arrivals):
        return _poisson(match.group(1), count, seed)
    path = Path(arrivals)
    if not path.is_file():
        raise ConfigError(
            f"there are no arrivals '{arrivals}'", f"{AT_ONCE}, poisson:RATE such as poisson:0.5, or a file"
        )
    times = list(islice(_times(path), count))
    if len(times) < count:
        raise ConfigError(
            f"{path} has {len(times)} arrivals, and there are {count} conversations", "ask for fewer with --limit"
        )
    times.sort()
    return [round(scale * (time - times[0]), 6) for time in times]


@dataclass(slots=True)
class Clock:
    """The queue before one engine. First come, first served; a conversation's next turn comes when the answer to
    the one before is there, and goes before everybody who waits.

    Attributes:
        arrivals: See `arrival_times`; None: nobody waits.
        free_s: When the engine is done with what it has done so far.
    """

    arrivals: Sequence[float] | None
    free_s: float = 0.0

    def served(self, number: int, turn: int, service_s: float) -> dict[str, float | None]:
        """A request has been answered; the engine is busy for `service_s` with it.

        Returns:
            ``arrival_s`` on this clock, and ``queue_s``, how long it waited; None where nobody does.
        """
        if self.arrivals is None:
            return {"arrival_s": None, "queue_s": None}
        arrival = self.arrivals[number] if turn == 1 else self.free_s
        begin = max(arrival, self.free_s)
        self.free_s = begin + service_s
        return {"arrival_s": round(arrival, 6), "queue_s": round(begin - arrival, 6)}


def queued(row: dict[str, Any], waited: dict[str, float | None]) -> dict[str, Any]:
    """A row of a request with what it waited: its times go from its arrival on.

    Args:
        row: Times from when the engine began with it.
        waited: What `Clock.served` said.
    """
    queue = waited["queue_s"] or 0.0

    def later(seconds: float | None) -> float | None:
        return None if seconds is None else round(seconds + queue, 6)

    return row | waited | {
        "service_s": row["e2e_s"],
        "token_times_s": [later(time) for time in row["token_times_s"]],
        "ttft_s": later(row["ttft_s"]),
        "e2e_s": later(row["e2e_s"]),
    }  # fmt: skip


def _poisson(text: str, count: int, seed: int) -> list[float]:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise ConfigError(f"'{text}' is not a rate of arrivals", "give conversations a second, such as poisson:0.5")
    random = Random(seed)
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + random.expovariate(rate))
    return [round(time, 6) for time in times[:count]]


def _times(path: Path) -> Iterator[float]:
    """The time in each row of a file, in seconds."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _json_rows(file, path) if path.suffix.lower() in (".jsonl", ".ndjson") else _csv_rows(file, path)
            for number, row in rows:
                yield _seconds(row, f"row {number} of {path}")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8", "give a CSV or a JSON Lines file") from None


def _csv_rows(file: Any, path: Path) -> Iterator[tuple[int, Any]]:
    rows = csv.reader(_lines(file, path))
    try:
        names = [name.strip().lower() for name in next(rows, [])]
        column = next((names.index(name) for name in COLUMNS if name in names), None)
        if column is None:
            raise ConfigError(
                f"{path} has no column of times", f"its first line has to name one of {', '.join(COLUMNS)}"
            )
        for row in rows:
            if row:
                yield rows.line_num, row[column] if column < len(row) else ""
    except csv.Error as error:
        raise ConfigError(f"{path} is not a CSV file: {error}", "give a CSV or a JSON Lines file") from None


def _json_rows(file: Any, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_lines(file, path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ConfigError(f"row {number} of {path} is no JSON object", "give one object a line")
        found = {name.lower(): value for name, value in row.items()}
        yield number, next((found[name] for name in COLUMNS if name in found), None)


def _lines(file: Any, path: Path) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ConfigError(f"{path} has a line of more than a million characters", "give a file of arrivals")
        if "\0" in line:
            raise ConfigError(f"{path} is not text", "give a CSV or a JSON Lines file")
        yield line


def _seconds(value: object, where: str) -> float:
    """A number, or a date and time as ISO 8601 has it; without an offset it is UTC."""
    try:
        if isinstance(value, bool) or value is None:
            raise ValueError
        seconds = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        try:
            moment = datetime.fromisoformat(_FRACTION.sub(r"\1", str(value).strip()))
        except ValueError:
            raise ConfigError(
                f"{where} has no time", "give seconds, or dates such as 2023-11-16 18:15:46"
            ) from None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ConfigError(f"{where} has no time", "give seconds, or dates such as 2023-11-16 18:15:46")
    return seconds
