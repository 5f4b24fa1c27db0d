"""Opening a recorded trace for a command."""

from __future__ import annotations

from pathlib import Path

from finemoe_cli.output import Output
from offload.errors import TraceError
from offload.trace.file import Trace


def open_trace(path: Path, output: Output) -> Trace:
    """The trace at ``path``; what is wrong with it, and does not keep it from being used, is told.

    Raises:
        TraceError: It cannot be used, or was not finished and has no complete request.
    """
    trace = Trace.open(path)
    if trace.warning and not len(trace):
        trace.close()
        raise TraceError(trace.warning, "record it again; one that is being recorded has its first answer soon")
    if trace.warning:
        output.warn(trace.warning)
    return trace
