"""Writing a trace out as a table for other programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import IO

from offload.errors import ConfigError
from offload.files import storage_errors
from offload.trace.file import Trace
from offload.trace.rows import COLUMNS, request_rows

FORMATS = ("csv", "parquet")


def export(trace: Trace, form: str, path: Path, progress: Callable[[int], None]) -> int:
    """Write every request's rows to `path`, whole or not at all.

    Args:
        form: One of `FORMATS`.
        progress: Told the number of requests that are done.

    Returns:
        How many rows there are.

    Raises:
        ConfigError: pyarrow, which Parquet needs, is not installed.
        StorageError: `path` cannot be written.
        TraceError: A request is damaged.
    """
    write = {"csv": _csv, "parquet": _parquet}[form]
    part = path.with_name(f".{path.name}.part")
    with storage_errors("the table", path):
        try:
            with part.open("wb") as file:
                rows = write(trace, file, progress)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return rows


def _csv(trace: Trace, file: IO[bytes], progress: Callable[[int], None]) -> int:
    rows = 0
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, request in enumerate(trace):
        columns = request_rows(request, trace.model.experts)
        values = [columns[name].tolist() for name in COLUMNS]
        values[COLUMNS.index("read_s")] = ["" if math.isnan(time) else time for time in values[-1]]
        writer.writerows(zip(*values, strict=True))
        rows += len(values[0])
        progress(number + 1)
    text.flush()
    text.detach()
    return rows


def _parquet(trace: Trace, file: IO[bytes], progress: Callable[[int], None]) -> int:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise ConfigError(
            "pyarrow, which writes Parquet, is not installed", "pip install 'finemoe[data]', or --format csv"
        ) from None
    kinds = dict.fromkeys(COLUMNS, arrow.int32())
    kinds |= dict.fromkeys(("request", "phase", "read"), arrow.string())
    kinds |= {"probability": arrow.float32(), "margin": arrow.float32(), "read_s": arrow.float64()}
    schema = arrow.schema([(name, kinds[name]) for name in COLUMNS])
    rows = 0
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for number, request in enumerate(trace):
            columns = request_rows(request, trace.model.experts)
            # NaN, the time of no read, becomes null.
            arrays = [arrow.array(columns[name], kinds[name], from_pandas=True) for name in COLUMNS]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
            rows += len(columns["rank"])
            progress(number + 1)
    return rows
