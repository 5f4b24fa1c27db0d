"""The engine's process: ``python -m offload.service.host BOARDS PARENT``.

Commands come in on stdin, one a line, and events go out on what was stdout; what a library prints goes to stderr.
Three threads carry them out, so that none keeps another waiting: the main thread takes them from the pipe and does
`Stop` and `Close` itself, one opens and chats, one changes budget and policy in the middle of an answer.

The process lives no longer than the pipe and the process with the number PARENT that holds its other end. Its
environment has to be right from the beginning: see `offload.service.client`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from offload.child import ends_with_parent
from offload.config import EngineConfig, Sampling
from offload.errors import EngineBroken, FinemoeError
from offload.service.board_writer import BoardWriter
from offload.service.messages import (
    Changed,
    Chat,
    Close,
    Counted,
    CountTokens,
    Done,
    Failed,
    Open,
    Progress,
    Ready,
    ResetStats,
    SetBudget,
    SetPolicy,
    Started,
    Stop,
    from_line,
)
from offload.service.outbox import Outbox
from offload.service.publish import published
from offload.telemetry.counters import Phase
from offload.telemetry.routing import ForwardPass, PassOutcome, Routing
from offload.units import format_bytes

if TYPE_CHECKING:
    from offload.runtime.engine import Engine

_PROGRESS_EVERY_S = 0.05
_DEBUG = "FINEMOE_DEBUG"

Work = Callable[[Any], None]


class Host:
    """Carries out commands.

    Args:
        boards: Folder of the boards.
        outbox: Where events go.
    """

    def __init__(self, boards: Path, outbox: Outbox) -> None:
        self._boards = boards
        self._outbox = outbox
        self._engine: Engine | None = None
        self._board: BoardWriter | None = None
        self._profile = ""
        self._passes = _Passes(self._before_pass)
        self._chat_number = 0
        self._last_chat = 0
        self._stop_up_to = 0
        self._ending = threading.Lock()
        self._opened = threading.Event()
        self._resources = ExitStack()
        chats: SimpleQueue[Any] = SimpleQueue()
        changes: SimpleQueue[Any] = SimpleQueue()
        self._queues: dict[type[Any], tuple[SimpleQueue[Any], Work]] = {
            Open: (chats, self._open),
            Chat: (chats, self._chat),
            ResetStats: (chats, self._reset),
            SetBudget: (changes, self._set_budget),
            SetPolicy: (changes, self._set_policy),
            CountTokens: (changes, self._count_tokens),
        }
        for name, queue in (("chats", chats), ("changes", changes)):
            threading.Thread(target=self._work, args=(queue,), name=f"finemoe-{name}", daemon=True).start()

    def take(self, command: Any) -> None:
        """Begin with a command; returns at once."""
        match command:
            case Stop():
                # It may be the answer after the one that runs, and that one may not have begun.
                self._stop_up_to = self._last_chat
                if self._engine is not None:
                    self._engine.stop()
            case Close():
                self.end(0)
            case _:
                if isinstance(command, Chat):
                    self._last_chat = command.number
                queue, work = self._queues[type(command)]
                queue.put((work, command))

    def end(self, status: int) -> NoReturn:
        """End the process, with nothing left behind. What is in memory need not be given back."""
        self._ending.acquire()  # Whoever else wants to end it waits here until it is over.
        if self._board is not None:
            self._board.path.unlink(missing_ok=True)
        for child in psutil.Process().children(recursive=True):
            child.kill()
        self._outbox.close(timeout_s=1)
        os._exit(status)

    def break_down(self, number: int, error: BaseException) -> NoReturn:
        """Say that nothing goes any more, and end the process."""
        if os.environ.get(_DEBUG):
            traceback.print_exception(error)
        known = isinstance(error, FinemoeError)
        text = str(error) if known else f"unexpected {type(error).__name__}: {error}"
        hint = error.hint if isinstance(error, FinemoeError) else f"set {_DEBUG}=1 and see the log of the engine"
        self._outbox.send(Failed(number, type(error).__name__, " ".join(text.split()), hint, fatal=True))
        self.end(1)

    def _work(self, queue: SimpleQueue[Any]) -> None:
        while True:
            work, command = queue.get()
            try:
                work(command)
            except FinemoeError as error:
                if isinstance(error, EngineBroken) and not isinstance(command, Open):
                    self.break_down(command.number, error)
                failed = Failed(command.number, type(error).__name__, error.message, error.hint)
                self._outbox.send(failed)
            except BaseException as error:
                self.break_down(command.number, error)

    # On the thread that drives the engine.

    def _open(self, command: Open) -> None:
        if self._engine is not None:
            raise FinemoeError("a model is open already")
        try:
            config = EngineConfig(**{**command.config, **_paths(command.config)})
            from offload import Engine

            engine = Engine(config, _progress(command.number, self._outbox))
            board = published(engine, self._boards, command=command.command, profile=command.profile)
            self._board = self._resources.enter_context(board)
            engine.observe(self._passes)
            self._engine, self._profile = engine, command.profile
        finally:
            self._opened.set()
        now = engine.snapshot()
        ready = Ready(
            number=command.number,
            model=now.model,
            device=now.device,
            kernels=now.kernels,
            policy=now.policy,
            context=engine.context,
            budget_bytes=now.memory.budget_bytes,
            slots=now.memory.slots,
            board="" if self._board is None else str(self._board.path),
            precision=now.precision,
        )
        self._outbox.send(ready)

    def _chat(self, command: Chat) -> None:
        engine, number = self._require_engine(), command.number
        passes, outbox = self._passes, self._outbox
        self._chat_number = number
        passes.begin()
        ttft = None
        try:
            completion = engine.chat(
                command.messages,
                Sampling(**command.sampling),
                lambda piece: outbox.text(number, piece, passes.decoded + 1),
            )
            ttft = completion.ttft_s
        finally:
            passes.end()
            if self._board is not None:
                self._board.request_ended(ttft)
        outbox.send(Done(number, completion.to_dict()))
        engine.keep_learnt()  # now, as this process may end without notice

    def _before_pass(self, forward: ForwardPass, first: bool) -> None:
        if first:
            record = 0 if self._board is None else self._board.next_record
            self._outbox.send(Started(self._chat_number, forward.request, record))
        if self._chat_number <= self._stop_up_to:
            self._require_engine().stop()

    def _reset(self, command: ResetStats) -> None:
        self._require_engine().reset_counters()
        self._tell_change(command.number, "reset", "counters reset")

    # On the thread that changes things meanwhile.

    def _set_budget(self, command: SetBudget) -> None:
        engine = self._when_open()
        engine.set_budget(command.budget_bytes, command.experts_fraction)
        self._passes.wait_for_changes()
        self._profile = command.profile
        if self._board is not None:
            self._board.set_profile(command.profile)
        budget = format_bytes(engine.snapshot().memory.budget_bytes)
        self._tell_change(command.number, "budget", f"{command.profile}: {budget}" if command.profile else budget)

    def _set_policy(self, command: SetPolicy) -> None:
        self._when_open().set_policy(command.policy)
        self._passes.wait_for_changes()
        self._tell_change(command.number, "policy", command.policy)

    def _count_tokens(self, command: CountTokens) -> None:
        engine = self._when_open()
        counts = [engine.count_tokens(conversation) for conversation in command.conversations]
        self._outbox.send(Counted(command.number, counts))

    def _tell_change(self, number: int, kind: str, text: str) -> None:
        if self._board is not None:
            self._board.mark(kind, text)
        now = self._require_engine().snapshot()
        memory = now.memory
        self._outbox.send(Changed(number, now.policy, self._profile, memory.budget_bytes, memory.slots))

    def _when_open(self) -> Engine:
        self._opened.wait()
        return self._require_engine()

    def _require_engine(self) -> Engine:
        if self._engine is None:
            raise FinemoeError("no model is open")
        return self._engine


class _Passes:
    """An `Observer` that counts passes, so that others can wait for what takes effect between two.

    Attributes:
        decoded: Tokens of the running answer that went into a pass.
    """

    wants_residual = False

    def __init__(self, before_pass: Callable[[ForwardPass, bool], None]) -> None:
        self.decoded = 0
        self._before_pass = before_pass
        self._changed = threading.Condition()
        self._begun = 0
        self._request = 0
        self._answering = False

    def begin(self) -> None:
        """An answer begins."""
        self.decoded = 0
        self._answering = True

    def end(self) -> None:
        """The answer is over."""
        with self._changed:
            self._answering = False
            self._changed.notify_all()

    def begin_pass(self, forward: ForwardPass) -> None:
        """See `Observer`."""
        first, self._request = forward.request != self._request, forward.request
        self.decoded += forward.phase == Phase.DECODE
        with self._changed:
            self._begun += 1
            self._changed.notify_all()
        self._before_pass(forward, first)

    def routed(self, routing: Routing) -> None:
        """See `Observer`."""

    def end_pass(self, outcome: PassOutcome) -> None:
        """See `Observer`."""

    def wait_for_changes(self) -> None:
        """Wait until what was asked of the engine has taken effect: before a pass, or at once where none runs."""
        with self._changed:
            # The next pass may have looked for changes already, and just not be counted yet.
            enough = self._begun + 2
            self._changed.wait_for(lambda: not self._answering or self._begun >= enough)


def _paths(config: dict[str, Any]) -> dict[str, Path]:
    """The fields of an `EngineConfig` that are paths, which JSON has as text."""
    return {name: Path(config[name]) for name in ("model", "packs_folder", "knowledge") if config.get(name)}


def _progress(number: int, outbox: Outbox) -> Callable[[str, int, int], None]:
    """Tells of progress, not more often than anyone can see."""
    last = ("", 0.0)

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if stage != last[0] or done >= total or now - last[1] >= _PROGRESS_EVERY_S:
            last = (stage, now)
            outbox.send(Progress(number, stage, done, total))

    return tell


def _when_told(how: signal.Signals, then: Callable[[], NoReturn]) -> None:
    """Do something on a thread of its own when a signal comes.

    A handler written in Python waits for the main thread, which may be on its way into a read that nothing
    interrupts any more, or hold a lock. The byte is written where the signal is taken, on whichever thread.
    """
    hear, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    signal.signal(how, lambda signum, frame: None)

    def wait() -> None:
        os.read(hear, 1)
        then()

    threading.Thread(target=wait, name="finemoe-end", daemon=True).start()


def main() -> NoReturn:
    """Take commands until there are no more."""
    boards, parent = Path(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the user interface's to answer.
    events = os.dup(1)
    os.dup2(2, 1)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    host = Host(boards, Outbox(events))

    _when_told(signal.SIGTERM, lambda: host.end(0))
    # In case somebody else holds the pipe open.
    if not ends_with_parent(parent, signal.SIGTERM):
        host.end(0)
    number = 0
    try:
        for line in sys.stdin.buffer:
            command = from_line(line.decode("utf-8", "replace"))
            number = command.number
            host.take(command)
    except BaseException as error:
        host.break_down(number, error)
    host.end(0)


if __name__ == "__main__":
    main()
