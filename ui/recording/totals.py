"""What a recording adds up to, as plain values and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from offload.service.messages import Done, Failed, Ready, Started, Text
from offload.telemetry.counters import Phase, PhaseCounts, phase_counts
from offload.telemetry.frame import Facts, Frame
from offload.units import format_bytes
from ui.recording.format import Said
from ui.recording.recording import Recording
from ui.text import clock, many

_NONE = PhaseCounts()


@dataclass(slots=True)
class Turn:
    """One message or answer.

    Attributes:
        role: ``user``, ``assistant``, ``system`` or, for something that went wrong, ``error``.
        completion: `Completion.to_dict()` of an answer that is finished.
    """

    role: str
    text: str
    completion: dict[str, Any] | None = None


class Transcript:
    """Messages and events put together to a conversation.

    Attributes:
        turns: As far as it has come, oldest first.
    """

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self._answers: dict[int, Turn] = {}

    def take(self, what: object) -> None:
        """A message, or an event of the engine; what does not belong to the conversation changes nothing."""
        if isinstance(what, Said):
            self.turns.append(Turn(what.role, what.text))
        elif isinstance(what, Started):
            self._answers[what.number] = Turn("assistant", "")
            self.turns.append(self._answers[what.number])
        elif isinstance(what, Text) and what.number in self._answers:
            self._answers[what.number].text += what.text
        elif isinstance(what, Done) and what.number in self._answers:
            turn = self._answers[what.number]
            turn.text, turn.completion = what.completion.get("text", turn.text), what.completion
        elif isinstance(what, Failed):
            self.turns.append(Turn("error", what.message))

    def clear(self) -> None:
        """Begins anew."""
        self.turns.clear()
        self._answers.clear()


def transcript(recording: Recording) -> list[Turn]:
    """The whole conversation."""
    made = Transcript()
    for entry in recording.entries:
        made.take(entry.what)
    return made.turns


def totals(recording: Recording) -> dict[str, Any]:
    """A recording in numbers; docs/telemetry.md defines each. Counts are those between its first and last frame.

    Raises:
        StorageError: The recording is damaged.
    """
    counts = dict.fromkeys(Phase, _NONE)
    frames, peak, tokens = 0, 0, 0
    last: Frame | None = None
    engines: list[Facts] = []
    for frame in recording.frames(float("-inf"), recording.end):
        frames += 1
        peak = max(peak, frame.memory.peak_bytes)
        if last is None or frame.facts != last.facts:
            engines.append(frame.facts)
        else:
            reset = frame.tokens < last.tokens or any(
                phase_counts(frame, phase).selections < phase_counts(last, phase).selections for phase in Phase
            )
            tokens += frame.tokens - (0 if reset else last.tokens)
            for phase in Phase:
                now = phase_counts(frame, phase)
                counts[phase] = _sum(counts[phase], now if reset else now - phase_counts(last, phase))
        last = frame
    turns = transcript(recording)
    ready = next((entry.what for entry in recording.entries if isinstance(entry.what, Ready)), None)
    facts = engines[-1] if engines else None
    return {
        "title": recording.title,
        "created": recording.created,
        "made_by": recording.made_by,
        "complete": recording.complete,
        "seconds": recording.seconds,
        "model": facts.model if facts else ready.model if ready else None,
        "device": facts.device if facts else ready.device if ready else None,
        "messages": sum(turn.role == "user" for turn in turns),
        "replies": sum(turn.role == "assistant" for turn in turns),
        "tokens": tokens,
        "frames": frames,
        "records": sum(len(engine.records) for engine in recording.engines),
        "peak_bytes": peak or None,
        "experts": {phase.name.lower(): counts[phase].to_dict() for phase in Phase},
    }


def totals_line(numbers: dict[str, Any]) -> str:
    """The most of `totals` in one line."""
    decode = numbers["experts"]["decode"]
    parts = [
        clock(numbers["seconds"]),
        numbers["model"] or "no model",
        many(numbers["replies"], "reply", "replies"),
        many(numbers["tokens"], "token"),
        f"hit {decode['hit_rate']:.1%}" if decode["hit_rate"] is not None else "",
        f"stall {decode['stall_s']:.2f} s" if decode["selections"] else "",
        f"peak {format_bytes(numbers['peak_bytes'])}" if numbers["peak_bytes"] else "",
    ]
    return " · ".join(part for part in parts if part)


def _sum(left: PhaseCounts, right: PhaseCounts) -> PhaseCounts:
    return left - (_NONE - right)
