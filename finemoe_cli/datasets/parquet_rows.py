"""Rows of Parquet files, as data sets on a hub are kept; with pyarrow, which is not installed by default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finemoe_cli.datasets.errors import BadRow, DatasetError
from finemoe_cli.datasets.rows import FORMS, KEYS
from finemoe_cli.datasets.text_rows import Rows

_ROWS_AT_ONCE = 64
"""Rows made into Python objects at a time. The file's own unit, the page of a column, is read as a whole."""


def parquet(path: Path) -> Rows:
    """The rows of a Parquet file, with those columns that `conversation_of` looks at.

    Raises:
        DatasetError: pyarrow is missing, or the file is no Parquet file, or has no column with prompts.
        OSError: The file cannot be read.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise DatasetError(
            f"{path} is Parquet, and pyarrow, which reads it, is not installed", "pip install 'finemoe[data]'"
        ) from None
    with path.open("rb") as source:
        try:
            file = pyarrow.parquet.ParquetFile(source)
        except pyarrow.ArrowException as error:
            raise DatasetError(f"{path} is not a Parquet file: {_first_line(error)}") from None
        columns = [name for name in file.schema_arrow.names if name in KEYS]
        if not set(columns) & set(FORMS):
            raise DatasetError(
                f"{path} has no column with prompts", f"one of these is looked for: {', '.join(FORMS)}"
            )
        number = 0
        try:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
                for row in _objects(batch):
                    number += 1
                    yield number, row
        except (pyarrow.ArrowException, OSError) as error:
            yield number + 1, BadRow(f"the file is damaged: {_first_line(error)}; nothing from it on was read")


def _objects(batch: Any) -> Iterator[object]:
    """The rows of a batch, each a dictionary, or a `BadRow`."""
    for place in range(batch.num_rows):
        try:
            (row,) = batch.slice(place, 1).to_pylist()
            yield row
        except UnicodeDecodeError:
            yield BadRow("it is not valid UTF-8")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["?"])[0].rstrip(".")
