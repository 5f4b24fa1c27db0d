"""Holding conversations with a model while a recorder watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from finemoe_cli.datasets.conversation import Conversation
from offload import Engine, Sampling
from offload.errors import ContextOverflow
from offload.trace.file import TraceEntry, TraceHeader, TraceWriter
from offload.trace.recorder import Recorder, trace_model

DEFAULT_SEED = 0


@dataclass(frozen=True, slots=True)
class Recording:
    """What to record.

    Attributes:
        conversations: To hold.
        dataset: Where they come from, in a word.
        turns: Of each at most; None for all.
        system: The system prompt of conversations that have none.
        sampling: How to choose tokens; without a seed it is `DEFAULT_SEED`.
        residuals / prompt_residuals: See `Recorder`.
        texts: Keep what the user said.
    """

    conversations: Sequence[Conversation]
    dataset: str
    turns: int | None
    system: str | None
    sampling: Sampling
    residuals: bool
    prompt_residuals: bool
    texts: bool


def record(
    engine: Engine,
    what: Recording,
    path: Path,
    *,
    replace_file: bool,
    profile: str,
    stopped: Callable[[], bool],
    progress: Callable[[int], None],
    left_out: Callable[[str], None],
) -> list[TraceEntry]:
    """Hold the conversations and write each turn as a request.

    Args:
        replace_file: Put the trace in the place of a file that is there.
        profile: Name of the memory budget, for the header.
        stopped: Asked after each answer; that one, which may be cut short, is not written then, and nothing after.
        progress: Told the number of conversations that are done.
        left_out: Told of turns that do not fit into the context.

    Raises:
        TraceError: There is a file at `path`.
        StorageError: The trace cannot be written; what is complete stays.
        ExpertReadError: An expert could not be read; what is complete stays.
    """
    sampling = what.sampling if what.sampling.seed is not None else replace(what.sampling, seed=DEFAULT_SEED)
    model = trace_model(engine)
    recorder = Recorder(model, residuals=what.residuals, prompt_residuals=what.prompt_residuals)
    header = _header(engine, what, sampling, profile)
    with TraceWriter.create(path, model, header, replace=replace_file) as writer:
        engine.observe(recorder)
        try:
            for number, conversation in enumerate(what.conversations):
                progress(number)
                engine.forget()  # Every conversation computes its whole prompt, whatever came before it.
                try:
                    _hold(engine, conversation, what, sampling, recorder, writer, stopped)
                except ContextOverflow as error:
                    left_out(f"{conversation.id}: {error.message}")
                if stopped():
                    break
        finally:
            engine.unobserve(recorder)
    return writer.entries


def _hold(
    engine: Engine,
    conversation: Conversation,
    what: Recording,
    sampling: Sampling,
    recorder: Recorder,
    writer: TraceWriter,
    stopped: Callable[[], bool],
) -> None:
    messages: list[dict[str, str]] = []
    if system := conversation.system or what.system:
        messages.append({"role": "system", "content": system})
    for number, turn in enumerate(conversation.turns[: what.turns], 1):
        messages.append({"role": "user", "content": turn})
        answer = engine.chat(messages, sampling)
        if stopped():
            return
        writer.append(recorder.take(f"{conversation.id}/{number}", turn if what.texts else ""))
        messages.append({"role": "assistant", "content": answer.text})


def _header(engine: Engine, what: Recording, sampling: Sampling, profile: str) -> TraceHeader:
    now, rates = engine.snapshot(), engine.surroundings.rates
    return TraceHeader(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        finemoe=version("finemoe"),
        policy=now.policy,
        profile=profile,
        budget_bytes=now.memory.budget_bytes,
        slots=now.memory.slots,
        device=now.device,
        kernels=now.kernels,
        read_s=rates.read_s,
        lanes=now.io.lanes,
        residuals=what.residuals,
        prompt_residuals=what.prompt_residuals,
        dataset=what.dataset,
        sampling=asdict(sampling),
        precision=now.precision,
    )
