"""The other end of a worker: an engine that is asked and waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from offload import errors
from offload.child import child_command, child_environment
from offload.config import EngineConfig, Sampling
from offload.errors import DoesNotFit, EngineBroken, FinemoeError
from offload.service.ending import ended_because
from profiles.paths import boards_dir, ensure_folder

_PATIENCE_S = 60
"""For writing what was learnt."""

Progress = Callable[[str, int, int], None]


class EvalEngine:
    """An engine in a process of its own, for one caller, which waits for each answer.

    Args:
        name: What to call it in errors.
        log: File that the process's stderr is added to.

    Attributes:
        ready: What it said when it was opened: `model`, `fingerprint`, `device`, `kernels`, `precision`, `context`,
            `memory`, `experts`.
    """

    def __init__(self, name: str, config: EngineConfig, profile: str, log: Path, progress: Progress) -> None:
        self._name = name
        self._progress = progress
        self._log = log
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                child_command("finemoe_cli.evaluation.worker", str(os.getpid())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=child_environment(),
                start_new_session=True,  # Ctrl-C is not for it.
            )
        values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
        try:
            order = {"do": "open", "config": values, "profile": profile, "boards": str(ensure_folder(boards_dir()))}
            self.ready: dict[str, Any] = self._ask(order)["ready"]
        except BaseException:
            self.kill()
            raise

    def chat(
        self,
        messages: list[dict[str, str]],
        sampling: Sampling,
        *,
        anew: bool,
        digests: bool = False,
        routing: tuple[Path, str] | None = None,
    ) -> dict[str, Any]:
        """`Completion.to_dict()` of an answer, with what `RequestWatch.finish` has seen of it.

        Args:
            anew: Compute the whole prompt, whatever came before.
            digests: With a digest of each forward pass's logits.
            routing: Where to keep the request's routing, and under which name.

        Raises:
            ContextOverflow: The conversation does not fit into the context.
            ExpertReadError: An expert could not be read; the engine can be used again.
            EngineBroken: The process has ended.
            StorageError: The routing cannot be written.
        """
        order = {
            "do": "chat",
            "messages": messages,
            "sampling": asdict(sampling),
            "anew": anew,
            "digests": digests,
            "routing": None if routing is None else {"path": str(routing[0]), "name": routing[1]},
        }
        done: dict[str, Any] = self._ask(order)["done"]
        return done

    def score(self, token_ids: list[int], first: int) -> dict[str, Any]:
        """``nll``: see `Engine.score`; ``peak_bytes``: the most memory that the process had so far.

        Raises:
            ExpertReadError: An expert could not be read; the engine can be used again.
            EngineBroken: The process has ended.
        """
        return self._ask({"do": "score", "token_ids": token_ids, "first": first})

    def learn(self) -> None:
        """What is answered from now on is history."""
        self._ask({"do": "learn"})

    def keep_learnt(self) -> str:
        """The history is over. Returns what could not be learnt; empty if all was."""
        note: str = self._ask({"do": "learnt"})["note"]
        return note

    def stop(self) -> None:
        """End the running answer, and the process after it. From a signal handler too."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Close the engine, which keeps what it has learnt, and wait for the end of its process.

        Raises:
            EngineBroken: It did not end as it should.
        """
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise EngineBroken(f"the engine of {self._name} did not close", f"see {self._log}") from None
        self._process.stdout.close()
        if code:
            raise self._ended()

    def kill(self) -> None:
        """End the process for certain."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass  # What was not written to it need not be.

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None
        while True:
            line = self._process.stdout.readline()
            if not line.endswith(b"\n"):
                raise self._ended()
            answer: dict[str, Any] = json.loads(line)
            if "progress" in answer:
                self._progress(answer["stage"], answer["progress"], answer["total"])
            elif "error" in answer:
                raise as_error(answer)
            else:
                return answer

    def _ended(self) -> EngineBroken:
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -signal.SIGKILL
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        why = ended_because(code, lines[-1] if lines else "", False)
        return EngineBroken(f"the engine of {self._name} ended: {why}", f"its log is {self._log}")


def as_error(answer: dict[str, Any]) -> FinemoeError:
    """The error that a worker has answered with."""
    kind = getattr(errors, answer["error"], FinemoeError)
    if issubclass(kind, DoesNotFit):
        kind = DoesNotFit  # One of its kinds carries a number that its message has too.
    error: FinemoeError = kind(answer["message"], answer["hint"])
    return error
