"""How long things took where a trace was recorded, for replaying it at that speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from offload.errors import ConfigError
from offload.telemetry.counters import Phase
from offload.trace.file import Trace
from offload.trace.simulator import Timing
from profiles.calibration import kept_calibration

ENOUGH = 256
"""Recorded reads from which on they are replayed one by one."""


def calibrated(traces: Sequence[Trace], progress: Callable[[str, int, int], None]) -> tuple[Timing, str]:
    """The timing of the machine that recorded `traces`, in seconds.

    Every pass computes as long as it did; `layer_s` is the median over decoded tokens. Reads are those of decoded
    tokens, in the order they ended; where these are few, those of prompts too; where those are few, what this
    machine's disk does.

    Returns:
        The timing, and in words where the reads come from.

    Raises:
        ConfigError: There are neither enough reads nor a measurement of this machine.
        TraceError: A request is damaged.
    """
    computing: list[float] = []
    reads: dict[Phase, list[float]] = {phase: [] for phase in Phase}
    done, total = 0, sum(len(trace) for trace in traces)
    for trace in traces:
        for request in trace:
            progress("calibrate-trace", done, total)
            done += 1
            for one in request.passes:
                reads[one.phase] += [read.seconds for read in one.reads]
                if one.phase == Phase.DECODE:
                    computing.append(one.seconds - float(one.stall_s.sum()))
    progress("calibrate-trace", total, total)
    model = traces[0].model
    layer_s = float(np.median(computing)) / model.layers
    measured = kept_calibration(model.slot_bytes)
    lanes = traces[0].header.lanes or (measured.lanes if measured else 1)
    for phases, words in (((Phase.DECODE,), "decoded tokens"), (tuple(Phase), "prompts and tokens")):
        times = [seconds for phase in phases for seconds in reads[phase]]
        if len(times) >= ENOUGH:
            timing = Timing(layer_s, float(np.mean(times)), lanes, reads_s=tuple(times), recorded_passes=True)
            return timing, f"{len(times):,} recorded reads of {words}"
    if measured is None:
        raise ConfigError(
            f"{sum(map(len, reads.values()))} reads in the trace are too few to replay, and no disk was measured",
            "finemoe plan measures it; or record with a smaller budget, or give --link",
        )
    read_s = model.slot_bytes * lanes / measured.disk_bytes_per_s
    return Timing(layer_s, read_s, lanes, recorded_passes=True), "this machine's disk, as it was measured"
