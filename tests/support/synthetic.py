"""An engine that computes nothing but keeps honest books: frames, token records and events for tests of what draws.

Every number follows from one simulation: experts are chosen with a Zipf law that drifts, slots are evicted by last
use, predictions are right with a fixed chance and late with another, a missed read takes time, and all counts are
counts of just that. So totals, records and frames agree with each other as a real engine's do. The same arguments
give the same engine; its clock is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from offload.memory.residency import ABSENT, LOADING, RESIDENT
from offload.telemetry.counters import Kind
from offload.telemetry.frame import DECODE, IDLE, PREFILL, Facts, Frame, Mark, TokenRecord
from offload.telemetry.probes import DeviceReading, HostReading
from offload.telemetry.snapshot import MemoryUse

MIB = 1 << 20
GIB = 1 << 30
START = 1_790_000_000.0
"""The clock when the engine opens: a fixed moment in 2026."""

GpuProbe = Callable[[float], DeviceReading | None]
"""Seconds since opening to what the device's memory reads."""


def no_gpu(seconds: float) -> DeviceReading | None:
    """A machine without one."""
    return None


def steady_gpu(seconds: float) -> DeviceReading | None:
    """A GPU that fills while the model loads."""
    used = round(min(41.0, 4.0 + seconds * 9) * GIB)
    total = 80 * GIB
    return DeviceReading("NVIDIA H100 80GB HBM3", "570.86", total, used, total - used, used - GIB)


def failing_gpu(seconds: float) -> DeviceReading | None:
    """A GPU that is lost after four seconds."""
    if seconds < 4:
        return steady_gpu(seconds)
    return DeviceReading("NVIDIA H100 80GB HBM3", "570.86", reason="the GPU is lost")


class SyntheticEngine:
    """See the module.

    Args:
        slots: Experts that can be resident.
        predicted: The chance that a miss is foreseen; 0 for a policy that fetches nothing ahead.
        gpu: What the device's memory reads; `no_gpu` for the CPU.
    """

    def __init__(
        self,
        layers: int = 24,
        experts: int = 60,
        top_k: int = 4,
        *,
        slots: int | None = None,
        predicted: float = 0.6,
        seed: int = 7,
        gpu: GpuProbe = no_gpu,
        slot_bytes: int = 700_000,
        pid: int = 4321,
        profile: str = "balanced",
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._gpu = gpu
        self._predicted = predicted
        device = "cpu" if gpu is no_gpu else "cuda:0"
        self.facts = Facts(pid, START, "chat", "demo", device, "fast", layers, experts, top_k, slot_bytes)
        self.time = START
        self.phase = IDLE
        self.profile = profile
        self.slots = slots if slots is not None else layers * experts // 4
        total = layers * experts
        self.state = np.full(total, ABSENT, np.uint8)
        self.fresh = np.zeros(total, np.uint8)
        self._last_use = np.zeros(total)
        self._ranks = np.stack([self._random.permutation(experts) for _ in range(layers)])
        self._weights = 1 / np.arange(1, experts + 1) ** 1.1
        self._weights /= self._weights.sum()
        self.requests = 0
        self.ttft: float | None = None
        self.last_token = 0.0
        self.marks: list[Mark] = []
        self.all_records: list[TokenRecord] = []
        self._passes = 0
        self._peak = 0
        self._loading: list[int] = []
        self.reset()
        self.marks.clear()

    def reset(self) -> None:
        """Puts all counters to zero, as a user may."""
        layers, total = self.facts.layers, self.facts.layers * self.facts.experts
        self.tokens = 0
        self.uses, self.misses = np.zeros(total, np.int64), np.zeros(total, np.int64)
        self.tally, self.stall = np.zeros((2, 4, layers), np.int64), np.zeros((2, layers), np.int64)
        self.demand, self.prefetch, self.wasted, self.evictions = [0, 0], [0, 0], [0, 0], [0, 0]
        self.marks.append(Mark(self.time, "reset", "counters reset"))

    def set_slots(self, slots: int, profile: str) -> None:
        """Another budget takes effect."""
        self.slots, self.profile = slots, profile
        while np.count_nonzero(self.state) > slots:
            self._evict(set(), DECODE - 1)
        self.marks.append(Mark(self.time, "budget", f"{profile}: {slots} experts"))

    def ask(self, prompt_tokens: int = 40) -> None:
        """A request comes and its prompt is read."""
        self.requests += 1
        self.marks.append(Mark(self.time, "request", f"request {self.requests}"))
        self.phase, self.ttft = PREFILL, None
        began = self.time
        for layer in range(self.facts.layers):
            wanted = np.unique(np.concatenate([self._choose(layer) for _ in range(prompt_tokens)]))
            for expert in wanted[: self.slots // 2].tolist():
                self._select(layer, expert, 0, set())
        self.time += 0.3 + float(self.stall[0].sum()) / 1e9 * 0.1
        self.ttft = self.time - began

    def token(self, token_id: int) -> TokenRecord:
        """One token is decoded."""
        facts = self.facts
        self.phase = DECODE
        chosen = np.zeros((facts.layers, facts.top_k), np.int32)
        kinds = np.zeros((facts.layers, facts.top_k), np.uint8)
        stall = np.zeros(facts.layers, np.int64)
        for expert in self._loading:
            self.state[expert] = RESIDENT
        self._loading.clear()
        if self._passes % 24 == 23:
            self._drift()
        for layer in range(facts.layers):
            chosen[layer] = self._choose(layer)
            busy = {layer * facts.experts + int(expert) for expert in chosen[layer]}
            for rank, expert in enumerate(chosen[layer].tolist()):
                before = int(self.stall[1, layer])
                kinds[layer, rank] = self._select(layer, expert, 1, busy)
                stall[layer] += int(self.stall[1, layer]) - before
        duration = int(38e6 + self._random.normal(0, 1e6) + stall.sum())
        self.time += duration / 1e9
        self.last_token = self.time
        self.tokens += 1
        resident = int(np.count_nonzero(self.state == RESIDENT))
        record = TokenRecord(
            self._passes, self.requests, token_id, self.time, duration, chosen, kinds, stall, resident
        )
        self._passes += 1
        self.all_records.append(record)
        self._wander()
        return record

    def rest(self, seconds: float) -> None:
        """Nothing happens for a while."""
        self.phase = IDLE
        self.time += seconds

    def run(self, tokens: int, every: float = 0.25) -> Iterator[Frame]:
        """Asks for an answer of ``tokens`` tokens, and looks every ``every`` seconds."""
        yield self.frame()
        self.ask()
        yield self.frame()
        looked = self.time
        for _ in range(tokens):
            self.token(int(self._random.integers(100, 40_000)))
            if self.time - looked >= every:
                looked = self.time
                yield self.frame()
        self.rest(every)
        yield self.frame()

    # As a source of telemetry

    def frame(self) -> Frame:
        arena = self.slots * self.facts.slot_bytes
        base, dense, kv, work = 410 * MIB, 251 * MIB, 46 * MIB, 38 * MIB
        resident = int(np.count_nonzero(self.state)) * self.facts.slot_bytes
        rss = base + dense + kv // 4 + work // 2 + resident
        self._peak = max(self._peak, rss)
        memory = MemoryUse(
            budget_bytes=base + dense + kv + work + arena,
            peak_bytes=self._peak,
            rss_bytes=rss,
            base_bytes=base,
            dense_bytes=dense,
            kv_bytes=kv,
            workspace_bytes=work,
            staging_bytes=0,
            arena_bytes=arena,
            slots=self.slots,
            slot_bytes=self.facts.slot_bytes,
        )
        return Frame(
            self.facts, self.time, self.phase, "finemoe" if self._predicted else "lru", self.profile, self.requests,
            self.tokens, self.ttft, self.last_token, self._predicted > 0, "", self.state.copy(), self.fresh.copy(),
            self.uses.copy(), self.misses.copy(), self.tally.copy(), self.stall.copy(), _pair(self.demand),
            _pair(self.prefetch), _pair(self.wasted), _pair(self.evictions), len(self._loading) // 2,
            len(self._loading), memory, HostReading(24 * GIB, 18 * GIB + rss, None), self._gpu(self.time - START),
            tuple(self.marks[-64:]),
        )  # fmt: skip

    def records(self, first: int) -> list[TokenRecord]:
        return [record for record in self.all_records if record.number >= first]

    # The simulation

    def _choose(self, layer: int) -> np.ndarray:
        ranks = self._random.choice(self.facts.experts, self.facts.top_k, replace=False, p=self._weights)
        return np.sort(self._ranks[layer][ranks]).astype(np.int32)

    def _drift(self) -> None:
        """The subject changes a little: some experts change places."""
        for ranks in self._ranks:
            left, right = self._random.integers(0, len(ranks), 2)
            ranks[left], ranks[right] = ranks[right], ranks[left]

    def _select(self, layer: int, expert: int, phase: int, busy: set[int]) -> Kind:
        number = layer * self.facts.experts + expert
        cost = 0
        if self.state[number] == RESIDENT:
            kind = Kind.PREFETCHED if self.fresh[number] else Kind.RESIDENT
        else:
            foreseen = phase == 1 and self._random.random() < self._predicted
            kind = (Kind.PREFETCHED if self._random.random() < 0.8 else Kind.LATE) if foreseen else Kind.MISSED
            if self.state[number] == ABSENT:
                self._make_room(busy, phase)
                books = self.prefetch if foreseen else self.demand
                books[phase] += self.facts.slot_bytes
            else:
                self._loading.remove(number)
                kind = Kind.LATE
            self.state[number] = RESIDENT
            cost = {Kind.MISSED: 900_000, Kind.LATE: 300_000}.get(kind, 0)
        self.fresh[number] = 0
        self._last_use[number] = self._passes + layer / self.facts.layers
        self.uses[number] += 1
        self.misses[number] += kind >= Kind.LATE
        self.tally[phase, kind, layer] += 1
        self.stall[phase, layer] += cost
        return kind

    def _make_room(self, busy: set[int], phase: int) -> None:
        if np.count_nonzero(self.state) >= self.slots:
            self._evict(busy, phase)

    def _evict(self, busy: set[int], phase: int) -> None:
        evictable = self.state == RESIDENT
        evictable[list(busy)] = False
        victim = int(np.argmin(np.where(evictable, self._last_use, np.inf)))
        if self.fresh[victim]:
            self.wasted[phase] += self.facts.slot_bytes
        self.state[victim], self.fresh[victim] = ABSENT, 0
        self.evictions[phase] += 1

    def _wander(self) -> None:
        """Some experts are fetched ahead of the next token; most arrive, some are still coming."""
        if not self._predicted:
            return
        for layer in range(0, self.facts.layers, 2):
            number = layer * self.facts.experts + int(self._choose(layer)[0])
            if self.state[number] == ABSENT:
                self._make_room(set(), 1)
                self.prefetch[1] += self.facts.slot_bytes
                self._last_use[number] = self._passes
                if self._random.random() < 0.7:
                    self.state[number], self.fresh[number] = RESIDENT, 1
                else:
                    self.state[number] = LOADING
                    self._loading.append(number)


def _pair(counts: list[int]) -> tuple[int, int]:
    return counts[0], counts[1]
