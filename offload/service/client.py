"""The other end of the engine's process: starting it, telling it what to do, hearing what comes of it.

No call waits for the engine, and whatever happens to either process, the other one notices, and nothing is left
behind. Importing this module imports neither torch nor numpy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from offload.child import child_command, child_environment
from offload.config import EngineConfig, Sampling
from offload.errors import EngineBroken, FinemoeError
from offload.service.board_files import sweep_boards
from offload.service.ending import ended_because, out_of_memory_kills
from offload.service.engine_log import EngineLog
from offload.service.messages import (
    Chat,
    Close,
    Command,
    CountTokens,
    Event,
    Failed,
    Open,
    ResetStats,
    SetBudget,
    SetPolicy,
    Stop,
    from_line,
    to_line,
)
from offload.telemetry.log import logger

_PATIENCE_S = 2.0
Conversation = list[dict[str, str]]


class EngineClient:
    """An engine in a process of its own.

    Args:
        env: The process's environment, as it has to be before torch is imported.
        log_path: Where what the process says on stderr is kept, up to a size.
        boards_dir: Folder of the boards.

    Attributes:
        died: Why the process ended without being asked to; empty as long as it has not.

    All methods may be called from any thread but the one that events are delivered on.
    """

    def __init__(self, env: Mapping[str, str], log_path: Path, boards_dir: Path) -> None:
        self._env = child_environment(env)
        self._log_path = log_path
        self._boards_dir = boards_dir
        self._on_event: Callable[[Event], None] = _ignore
        self._on_died: Callable[[str], None] = _ignore
        self._numbers = threading.Lock()
        self._last_number = 0
        self._opened: Open | None = None
        self._run: _Run | None = None
        self.died = ""

    def events(self, on_event: Callable[[Event], None], on_died: Callable[[str], None] | None = None) -> None:
        """Who is told what the engine says, on a thread of the client's; call it before `start`.

        Args:
            on_event: Gets every event.
            on_died: Gets the reason where the process ended without being asked to. Nothing follows.
        """
        self._on_event = on_event
        self._on_died = on_died or _ignore

    @property
    def pid(self) -> int | None:
        """Number of the process; None where there is none."""
        return None if self._run is None else self._run.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._run is not None and not self._run.ended.is_set()

    def start(self) -> None:
        """Start the process.

        Raises:
            EngineBroken: It cannot be started, or runs already.
        """
        if self.alive:
            raise EngineBroken("the engine's process runs already")
        self.died = ""
        self._run = _Run(
            child_command("offload.service.host", str(self._boards_dir), str(os.getpid())),
            self._env,
            self._log_path,
            self._boards_dir,
            self._on_event,
            self._heard_end,
        )

    def open(self, config: EngineConfig, profile: str = "", command: str = "chat") -> int:
        """Open a model; see `messages.Open`, also for the other methods. Returns the number of what comes of it."""
        values: dict[str, Any] = {
            name: str(value) if isinstance(value, Path) else value for name, value in _values(config).items()
        }
        number = self._number()
        self._opened = Open(number, values, profile, command)
        return self._send(self._opened)

    def chat(self, messages: Conversation, sampling: Sampling | None = None) -> int:
        """Answer a conversation."""
        return self._send(Chat(self._number(), messages, _values(sampling or Sampling())))

    def stop(self) -> None:
        """End the running answer."""
        self._send(Stop(self._number()))

    def set_budget(
        self, budget_bytes: int | None = None, experts_fraction: float | None = None, profile: str = ""
    ) -> int:
        """Change the memory budget."""
        return self._send(SetBudget(self._number(), budget_bytes, experts_fraction, profile))

    def set_policy(self, policy: str) -> int:
        """Change the policy."""
        return self._send(SetPolicy(self._number(), policy))

    def count_tokens(self, conversations: list[Conversation]) -> int:
        """Count the tokens of conversations."""
        return self._send(CountTokens(self._number(), conversations))

    def reset_stats(self) -> int:
        """Put all counters to zero."""
        return self._send(ResetStats(self._number()))

    def restart(self) -> int:
        """Start the process anew, ended or not, and open what was opened last. Returns the number of the opening.

        Raises:
            EngineBroken: The process cannot be started, or nothing was opened before.
        """
        if self._opened is None:
            raise EngineBroken("nothing was open that could be opened again")
        self.kill()
        self.start()
        last = self._opened
        return self._send(Open(self._number(), last.config, last.profile, last.command))

    def close(self) -> None:
        """End the process; nothing more is heard of it. It is given a moment, and then it is killed."""
        if self._run is not None:
            self._run.hush()
            self._send(Close(self._number()))
            self._run.ended.wait(_PATIENCE_S)
        self.kill()

    def kill(self) -> None:
        """End the process for certain, stuck or not; nothing more is heard of it."""
        if self._run is not None:
            self._run.kill()
            self._run = None

    def _number(self) -> int:
        with self._numbers:
            self._last_number += 1
            return self._last_number

    def _send(self, command: Command) -> int:
        # To a process that is no more, too: that it died is told once, and not by every command.
        if self._run is not None:
            self._run.commands.put(command)
        return command.number

    def _heard_end(self, reason: str) -> None:
        self.died = reason
        self._on_died(reason)


class _Run:
    """One life of the process, with three threads: one starts it and delivers events, one writes, one logs."""

    def __init__(
        self,
        arguments: list[str],
        env: Mapping[str, str],
        log_path: Path,
        boards_dir: Path,
        on_event: Callable[[Event], None],
        on_end: Callable[[str], None],
    ) -> None:
        self.commands: SimpleQueue[Command | None] = SimpleQueue()
        self.ended = threading.Event()
        self.process: subprocess.Popen[bytes]
        self._boards_dir = boards_dir
        self._on_event = on_event
        self._on_end = on_end
        self._hushed = False
        self._reaping = threading.Lock()
        self._fatal = ""
        self._kills_before = out_of_memory_kills()
        started: SimpleQueue[OSError | None] = SimpleQueue()
        # The kernel tells the process of the end of the thread that started it. This one lasts as long as it does.
        self._reader = threading.Thread(
            target=self._live, args=(arguments, env, log_path, started), name="finemoe-engine-events", daemon=True
        )
        self._reader.start()
        error = started.get()
        if error is not None:
            raise EngineBroken(f"the engine's process cannot be started: {error.strerror or error}")

    def hush(self) -> None:
        """Let nothing be heard of it any more."""
        self._hushed = True

    def kill(self) -> None:
        """End it, and wait until it has ended."""
        self.hush()
        for how in (signal.SIGTERM, signal.SIGKILL):
            if not self.ended.is_set():
                self._signal(how)
                self.ended.wait(_PATIENCE_S)
        # Called on the thread that delivers events, there is nothing to wait for.
        if threading.current_thread() is not self._reader:
            self._reader.join(_PATIENCE_S)

    def _signal(self, how: signal.Signals) -> None:
        with self._reaping:
            if self.process.returncode is None:
                os.kill(self.process.pid, how)

    def _reap(self) -> None:
        """Wait for its end, and end what it may have started: until it is reaped, its number is its own."""
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        with self._reaping:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except OSError:
                pass  # There was nothing.
            self.process.wait()

    def _live(
        self,
        arguments: list[str],
        env: Mapping[str, str],
        log_path: Path,
        started: SimpleQueue[OSError | None],
    ) -> None:
        pipe = subprocess.PIPE
        try:
            log = EngineLog(log_path)
            # A group of its own: Ctrl-C and the terminal's hanging up are not for it. But no session of its own:
            # Linux shares processors among sessions first (sched_autogroup), and lanes, which hardly take any time,
            # would wait for whatever the user interface does at that moment.
            self.process = subprocess.Popen(
                arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(env), process_group=0
            )
        except OSError as error:
            started.put(error)
            return
        process = self.process
        assert process.stdin and process.stdout and process.stderr
        logging = threading.Thread(
            target=log.take_all, args=(process.stderr,), name="finemoe-engine-log", daemon=True
        )
        writing = threading.Thread(
            target=self._write, args=(process.stdin,), name="finemoe-engine-commands", daemon=True
        )
        logging.start()
        writing.start()
        started.put(None)
        with process.stdout:
            self._read(process.stdout)
        self._reap()
        self.commands.put(None)
        logging.join(_PATIENCE_S)
        sweep_boards(self._boards_dir)
        self.ended.set()
        if not self._hushed:
            reason = ended_because(process.returncode, log.last_line, out_of_memory_kills() > self._kills_before)
            self._tell(self._on_end, self._fatal or reason)

    def _read(self, stdout: IO[bytes]) -> None:
        for line in stdout:
            try:
                event: Event = from_line(line.decode("utf-8", "replace"))
            except FinemoeError as error:
                # Half a line, where it died in the middle of it.
                logger.warning("%s", error.message)
                continue
            if isinstance(event, Failed) and event.fatal:
                self._fatal = event.message
            if not self._hushed:
                self._tell(self._on_event, event)

    def _tell(self, listener: Callable[[Any], None], what: Any) -> None:
        try:
            listener(what)
        except Exception:
            logger.exception("whoever listens to the engine failed")

    def _write(self, stdin: IO[bytes]) -> None:
        while (command := self.commands.get()) is not None:
            try:
                stdin.write(to_line(command).encode("utf-8", "replace"))
                stdin.flush()
            except OSError:
                break  # Its end is told by the thread that reads.
        try:
            stdin.close()
        except OSError:
            pass


def _values(config: EngineConfig | Sampling) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in asdict(config).items()}


def _ignore(_: object) -> None:
    """For whom nobody listens."""
