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
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from offload.service.board import BoardReader, list_boards
from offload.telemetry.frame import DECODE

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

    @property
    def decoding(self) -> bool:
        """Whether its answer still goes on."""
        return self.board.frame().phase == DECODE

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
        for board in list_boards(boards):
            if board.facts.pid in family and board.frame().phase == DECODE:
                program = Program(pid, board)
                program.stop()
                return program
            board.close()
        time.sleep(LOOK_S)
    raise TimeoutError("a program does not answer")


def turns(one: Program, other: Program, pairs: int, seconds: float) -> list[tuple[float, float]]:
    """Tokens a second of both, pair by pair, until there are as many or an answer ends. Who begins changes."""
    rates: list[tuple[float, float]] = []
    for number in range(pairs):
        order = (one, other) if number % 2 else (other, one)
        found = {id(program): program.turn(seconds) for program in order}
        first, second = found[id(one)], found[id(other)]
        if first is None or second is None:
            break
        rates.append((first, second))
    return rates


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
