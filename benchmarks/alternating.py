"""Two programs that answer at the same time, of which only one runs at any moment: what one costs beside the other.

A machine's speed drifts by more than what is to be measured, from one start to the next and within a minute. So
both programs are started, each is let come to its answer, and then they take turns of a few seconds, the other
one being stopped (SIGSTOP) with all its processes. Both meet every drift, and each pair of turns is a
measurement.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from offload.service.board import BoardReader, list_boards
from offload.telemetry.frame import DECODE
from profiles.paths import boards_dir, cache_dir

FINEMOE = [sys.executable, "-m", "finemoe_cli"]
LONG = "Write a very long story with many chapters about a fox."
"""Answered with thousands of tokens by the demo model."""

SETTLE_S = 0.5
"""Of each turn, before anything is counted: what was late while it was stopped is caught up with."""
LOOK_S = 0.1


@dataclass(slots=True)
class Program:
    """A process that has an answer generated, by itself or by an engine that it has started.

    Attributes:
        pid: Of the process.
        board: Of its engine.
        core_s: Processor time that the process itself took in its turns.
        turns_s: What its turns came to.
    """

    pid: int
    board: BoardReader
    core_s: float = 0.0
    turns_s: float = 0.0
    _stopped: list[int] = field(default_factory=list)

    def stop(self) -> None:
        """Stop the process and all that it has started."""
        self._stopped = []
        process = psutil.Process(self.pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGSTOP)
                self._stopped.append(one.pid)

    def go(self) -> None:
        """Let it run again."""
        for pid in self._stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped = []

    def turn(self, seconds: float) -> float | None:
        """Let it run for a while; tokens a second, None if its answer ended."""
        self.go()
        try:
            time.sleep(SETTLE_S)
            process = psutil.Process(self.pid)
            before, first, cpu = time.monotonic(), self.board.frame(), _cpu(process)
            time.sleep(seconds)
            last = self.board.frame()
            self.core_s += _cpu(process) - cpu
            self.turns_s += time.monotonic() - before
        finally:
            self.stop()
        passed = last.last_token_s - first.last_token_s
        if last.phase != DECODE or first.phase != DECODE or passed <= 0:
            return None
        return (last.tokens - first.tokens) / passed


def answering(pid: int, boards: Path, patience_s: float = 300.0) -> Program:
    """Wait until the engine of a process decodes, and stop both.

    Raises:
        TimeoutError: It does not.
    """
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            family = {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
        except psutil.NoSuchProcess:
            break
        found: Program | None = None
        for board in list_boards(boards):
            if found is None and board.facts.pid in family and board.frame().phase == DECODE:
                found = Program(pid, board)
                found.stop()
            else:
                board.close()
        if found is not None:
            return found
        time.sleep(LOOK_S)
    raise TimeoutError("a program does not answer")


@contextmanager
def answering_of(arguments: Sequence[str]) -> Iterator[Program]:
    """A command of finemoe, stopped in its answer; what it prints is thrown away."""
    with home() as env, subprocess.Popen([*FINEMOE, *arguments], env=env, stdout=subprocess.DEVNULL) as process:
        try:
            yield answering(process.pid, boards_dir())
        finally:
            process.kill()


@contextmanager
def home() -> Iterator[dict[str, str]]:
    """An environment with no settings and nothing kept."""
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **os.environ,
            "TERM": "xterm-256color",
            "FINEMOE_CACHE_DIR": str(cache_dir()),
            "FINEMOE_CONFIG_DIR": f"{folder}/config",
            "FINEMOE_DATA_DIR": f"{folder}/data",
        }
        yield env


def turns(one: Program, other: Program, pairs: int, seconds: float) -> list[tuple[float, float]]:
    """Tokens a second of both, pair by pair, until there are as many or an answer ends. Who begins changes."""
    rates: list[tuple[float, float]] = []
    for number in range(pairs):
        if number % 2:
            first, second = one.turn(seconds), other.turn(seconds)
        else:
            second, first = other.turn(seconds), one.turn(seconds)
        if first is None or second is None:
            break
        rates.append((first, second))
    return rates


def rates_said(names: Sequence[str], pairs: Sequence[tuple[float, float]]) -> list[str]:
    """A line of the tokens a second of each of the two."""
    return [
        f"{name}: median {statistics.median(rates):.1f} tok/s ({min(rates):.1f} to {max(rates):.1f})"
        for name, rates in zip(names, zip(*pairs, strict=True), strict=True)
    ]


def ratios_said(name: str, pairs: Sequence[tuple[float, float]]) -> str:
    """A line of the ratio of the second to the first: median, quartiles, and the standard error of the median."""
    ratios = [second / first for first, second in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    # Of a median of normal values, with their deviation taken from the quartiles.
    error = 1.253 * (high - low) / 1.349 / len(ratios) ** 0.5
    return f"{name}: median {middle:.3f} +- {error:.3f} (quartiles {low:.3f} and {high:.3f}, {len(ratios)} pairs)"


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
