"""What the engine tells about itself: plain, immutable, under the names that every output uses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offload.telemetry.counters import Counters, LayerCounts, PhaseCounts

if TYPE_CHECKING:
    from offload.policy import LinkState, Policy


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """The memory plan and what was really taken, in bytes.

    Attributes:
        budget_bytes: The promise: of the process's resident memory on the CPU, of device memory on CUDA.
        peak_bytes: The most that was taken so far.
        rss_bytes: Resident memory of the process now.
        base_bytes: The interpreter with its libraries, before a weight was read.
        dense_bytes / kv_bytes / workspace_bytes / staging_bytes / policy_bytes / arena_bytes: Parts of the plan.
        slots: Experts that can be resident at once while tokens are decoded.
        slot_bytes: Bytes of one slot.
        lendable_bytes: Of the workspace: what only prompts need, and the arena may have between them.
        lent_bytes: What the arena has of it; so much do the parts of the plan add up to more than the budget.
    """

    budget_bytes: int
    peak_bytes: int
    rss_bytes: int
    base_bytes: int
    dense_bytes: int
    kv_bytes: int
    workspace_bytes: int
    staging_bytes: int
    arena_bytes: int
    slots: int
    slot_bytes: int
    policy_bytes: int = 0
    lendable_bytes: int = 0
    lent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class IoFacts:
    """How experts are read.

    Attributes:
        store: What they are read from: ``safetensors`` (the checkpoint, in place) or ``packed``.
        note: Why a pack that is there is not used, in one line; empty otherwise.
        direct: Whether reads go past the page cache.
        direct_refused: Why not, in one line; empty if they do.
        lanes: Reading threads.
    """

    store: str
    note: str
    direct: bool
    direct_refused: str
    lanes: int


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """Selections and traffic, prefill and decode apart."""

    prefill: PhaseCounts
    decode: PhaseCounts

    def __sub__(self, earlier: ExpertCounts) -> ExpertCounts:
        return ExpertCounts(self.prefill - earlier.prefill, self.decode - earlier.decode)

    def to_dict(self) -> dict[str, Any]:
        return {"prefill": self.prefill.to_dict(), "decode": self.decode.to_dict()}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The engine at one moment.

    Attributes:
        prefill_layers / decode_layers: Selections by layer.
        resident: Experts resident now.
        tokens: Tokens decoded since the engine was opened.
        precision: How weights are kept: ``bf16``, ``int8``, ``int4``.
    """

    model: str
    device: str
    kernels: str
    policy: str
    memory: MemoryUse
    io: IoFacts
    experts: ExpertCounts
    prefill_layers: LayerCounts
    decode_layers: LayerCounts
    resident: int
    tokens: int
    precision: str = "bf16"


@dataclass(frozen=True, slots=True)
class EngineView:
    """An engine's own arrays and counters, which change while it runs. Only to be read.

    Attributes:
        state: [L*E] uint8, `offload.memory.residency` states.
        fresh: [L*E] uint8, 1 for an expert that was prefetched and not used yet.
        link: Reads under way: `queued`, `in_flight`.
        policy: Who decides: `name`, `note`, `looks_ahead`.
    """

    state: NDArray[np.uint8]
    fresh: NDArray[np.uint8]
    counters: Counters
    link: LinkState
    policy: Policy


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer and what it cost.

    Attributes:
        finish_reason: ``stop`` (the model ended), ``length`` (token or context limit), ``stopped`` (by request).
        reused_tokens: Prompt tokens whose keys and values were still in the cache from before.
        ttft_s: Time to first token.
        tpot_s: Time per output token, (e2e - TTFT) / (N - 1); None for fewer than two tokens.
        tokens_per_s: Decoded tokens a second, 1 / tpot_s; None where that is.
        experts: Counts of this request alone.
        token_times_s: When each token came, from the request on.
        precision: How weights are kept.
    """

    model: str
    device: str
    kernels: str
    policy: str
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str
    ttft_s: float | None
    tpot_s: float | None
    tokens_per_s: float | None
    e2e_s: float
    memory: MemoryUse
    io: IoFacts
    experts: ExpertCounts
    token_times_s: tuple[float, ...] = ()
    precision: str = "bf16"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["token_ids"] = list(self.token_ids)
        values["token_times_s"] = list(self.token_times_s)
        values["memory"] = asdict(self.memory)
        values["io"] = asdict(self.io)
        values["experts"] = self.experts.to_dict()
        return values
