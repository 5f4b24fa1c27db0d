"""What whoever watches an engine sees: one immutable frame, and the record of one token.

Frames are read from the engine's board (`offload.service.board`), from a recording, or made by a test; what draws
them cannot tell the difference. All counts go on from the engine's opening or the last reset: rates are the
difference of two frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offload.telemetry.probes import DeviceReading, HostReading
from offload.telemetry.snapshot import MemoryUse

IDLE, PREFILL, DECODE, LOADING = range(4)
"""What the engine is doing: `Frame.phase`."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change while an engine is open.

    Attributes:
        pid: The engine's process.
        opened: Unix time.
        command: What it was opened by: ``chat``, ``run``, ``eval``.
        layers / experts / top_k: Layers with routed experts, experts in each, experts a token uses in each.
        slot_bytes: Bytes of one expert.
        precision: How weights are kept.
    """

    pid: int
    opened: float
    command: str
    model: str
    device: str
    kernels: str
    layers: int
    experts: int
    top_k: int
    slot_bytes: int
    precision: str = "bf16"


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened, to be drawn on every graph: a budget or policy that took effect, a request.

    Attributes:
        time_s: Unix time.
        kind: ``budget``, ``policy``, ``request``, ``reset``.
        text: One short line, such as ``low: 900 MiB``.
    """

    time_s: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Frame:
    """An engine at one moment.

    Attributes:
        time_s: Unix time at which it was taken.
        phase: `IDLE`, `PREFILL`, `DECODE` or `LOADING`.
        policy / profile: Names; the profile is empty where a bare budget was given.
        requests / tokens: Answers begun and tokens decoded since opening.
        ttft_s: Time to first token of the running or last request; None before its first token.
        last_token_s: Unix time of the last token; 0.0 before the first.
        prefetching: Whether the policy is fetching ahead now.
        note: Why it is not, or anything else the engine has to say, in one line.
        state: [L*E] uint8, `offload.memory.residency` states.
        fresh: [L*E] uint8, 1 for an expert that was prefetched and not used yet.
        uses / misses: [L*E] int64, selections of each expert, and those that were waited for.
        tally: [2, 4, L] int64, selections by phase, kind and layer.
        stall_ns: [2, L] int64.
        bytes_demand / bytes_prefetch / bytes_prefetch_wasted / evictions: [2], prefill and decode.
        queued: Reads that no lane has begun with.
        reading: Reads under way or not collected.
        memory: The plan and what is really taken.
        host: The machine's memory.
        gpu: The device's memory; None on the CPU.
        marks: The latest marks, oldest first, at most 64.
    """

    facts: Facts
    time_s: float
    phase: int
    policy: str
    profile: str
    requests: int
    tokens: int
    ttft_s: float | None
    last_token_s: float
    prefetching: bool
    note: str
    state: NDArray[np.uint8]
    fresh: NDArray[np.uint8]
    uses: NDArray[np.int64]
    misses: NDArray[np.int64]
    tally: NDArray[np.int64]
    stall_ns: NDArray[np.int64]
    bytes_demand: tuple[int, int]
    bytes_prefetch: tuple[int, int]
    bytes_prefetch_wasted: tuple[int, int]
    evictions: tuple[int, int]
    queued: int
    reading: int
    memory: MemoryUse
    host: HostReading
    gpu: DeviceReading | None
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One decoded token and what it cost: how the forward pass that led to it was routed.

    Attributes:
        number: Counts decode passes since the engine was opened, from 0.
        request: Number of the request, from 1.
        token_id: The token that went into the pass.
        time_s: Unix time at the pass's end.
        pass_ns: Duration of the pass.
        chosen: [L, K] int32, experts by layer, likeliest first.
        kinds: [L, K] uint8, `offload.telemetry.counters.Kind` of each.
        stall_ns: [L] int64.
        resident: Experts resident when it ended.
    """

    number: int
    request: int
    token_id: int
    time_s: float
    pass_ns: int
    chosen: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    stall_ns: NDArray[np.int64]
    resident: int
