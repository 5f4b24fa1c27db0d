"""What a worker says of one measurement: plain numbers, as they cross between the processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine that was opened.

    Attributes:
        load_s: Seconds that it took.
        threads: That compute.
        budget_bytes / slots / slot_bytes / experts: Of the plan: its bytes, experts that fit, bytes of one slot,
            experts of the model.
        record_bytes: What is read for one expert.
    """

    device: str
    kernels: str
    policy: str
    threads: int
    lanes: int
    direct: bool
    store: str
    load_s: float
    budget_bytes: int
    slots: int
    slot_bytes: int
    record_bytes: int
    experts: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One repeat of a test.

    Attributes:
        tokens: That the time is for: of the prompt, or generated after the first.
        seconds: For all of them together.
        selections / hits: Experts that were needed, and those that nothing was waited for.
        nbytes: Read from disk, on demand or ahead.
        stall_s: Time that the computation waited for reads.
        major_faults / minor_faults: Page faults of the process meanwhile.
        intervals: Seconds between tokens; empty for prompts.
        token_ids: That were generated; empty for prompts.
        resident: Experts that were resident when decoding began, by number; empty for prompts.
    """

    tokens: int
    seconds: float
    selections: int
    hits: int
    nbytes: int
    stall_s: float
    major_faults: int
    minor_faults: int
    intervals: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything of one configuration.

    Attributes:
        opened: Its engine; of several, one for each repeat, the first.
        prompts / answers: The repeats of both tests.
        peak_bytes: The most memory that the process took.
        disk_rates: Bytes a second that as many plain threads as there are lanes read of the model's experts, just
            before the engine was opened and just after the last answer; of each process.
        routing: For each answer, what the routers chose for its tokens after the first, [T, L, K]; empty unless
            it was asked for.
    """

    opened: Opened
    prompts: list[Sample]
    answers: list[Sample]
    peak_bytes: int
    disk_rates: list[float]
    routing: list[list[list[list[int]]]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Measured:
        """From what `to_dict` made."""
        return cls(
            Opened(**data["opened"]),
            [Sample(**one) for one in data["prompts"]],
            [Sample(**one) for one in data["answers"]],
            data["peak_bytes"],
            data["disk_rates"],
            data["routing"],
        )

    def joined(self, other: Measured) -> Measured:
        """With the repeats of another process behind."""
        return Measured(
            self.opened,
            self.prompts + other.prompts,
            self.answers + other.answers,
            max(self.peak_bytes, other.peak_bytes),
            self.disk_rates + other.disk_rates,
            self.routing + other.routing,
        )
