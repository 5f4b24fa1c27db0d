"""An engine that is not one: arrays, and forward passes told by hand, for tests of what watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from offload.service.board_writer import BoardWriter
from offload.telemetry.counters import Counters, Phase
from offload.telemetry.frame import Facts
from offload.telemetry.probes import HostReading
from offload.telemetry.routing import ForwardPass, PassOutcome, Routing
from offload.telemetry.snapshot import EngineView, MemoryUse

MEMORY = MemoryUse(
    **{name: number for number, name in enumerate(MemoryUse.__slots__, start=1)}  # each another number
)


class Probe:
    def read(self) -> HostReading:
        return HostReading(total_bytes=8 << 30, available_bytes=3 << 30, limit_source="/sys/fs/…")


class FakeEngine:
    """What a board is made from; a test changes its arrays.

    Attributes:
        facts: Sizes and names.
    """

    def __init__(self, layers: int = 3, experts: int = 8, top_k: int = 2, opened: float = 1000.5, pid: int = 42):
        self.facts = Facts(pid, opened, "chat", "tiny", "cpu", "fast", layers, experts, top_k, 4096)
        self.state = np.zeros(layers * experts, np.uint8)
        self.fresh = np.zeros(layers * experts, np.uint8)
        self.counters = Counters(layers, experts)
        self.link = SimpleNamespace(queued=0, in_flight=0, count=2)
        self.policy: Any = SimpleNamespace(name="demand", note="", looks_ahead=False)

    def view(self) -> EngineView:
        return EngineView(self.state, self.fresh, self.counters, self.link, self.policy)

    def snapshot(self) -> Any:
        return SimpleNamespace(memory=MEMORY)

    @contextmanager
    def published(self, folder: Path, **more: Any) -> Iterator[BoardWriter]:
        """The engine with a board."""
        writer = BoardWriter(folder, self.facts, self, Probe(), **more)
        try:
            yield writer
        finally:
            writer.close()

    def decode(self, writer: BoardWriter, request: int, number: int) -> None:
        """One decoded token; what its record holds follows from `number`."""
        self.pass_of(writer, request, Phase.DECODE, [number], number)

    def prefill(self, writer: BoardWriter, request: int) -> None:
        """A prompt."""
        self.pass_of(writer, request, Phase.PREFILL, [1, 2, 3], 0)

    def pass_of(self, writer: BoardWriter, request: int, phase: Phase, token_ids: list[int], number: int) -> None:
        facts = self.facts
        writer.begin_pass(ForwardPass(phase, request, token_ids, 0, np.zeros(4, np.float32)))
        for layer in range(facts.layers):
            chosen = np.full((len(token_ids), facts.top_k), (number + layer) % facts.experts, np.int32)
            chance = np.zeros((len(token_ids), facts.experts), np.float32)
            writer.routed(Routing(layer, chance, chosen, None, None))
        kinds = np.full((facts.layers, facts.top_k), number % 4, np.uint8)
        stall = np.full(facts.layers, number, np.int64)
        writer.end_pass(PassOutcome(10, 10 + number, stall, kinds if phase == Phase.DECODE else None, ()))
