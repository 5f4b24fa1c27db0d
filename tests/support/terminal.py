"""A terminal for programs under test: a real pseudo-terminal, and an emulator that knows what it would show."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import psutil
import pyte

PATIENCE_S = 120.0

KEYS = {
    "enter": "\r",
    "escape": "\x1b",
    "tab": "\t",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "ctrl+up": "\x1b[1;5A",
    "f1": "\x1bOP",
    "f2": "\x1bOQ",
    "f3": "\x1bOR",
    "f4": "\x1bOS",
    "f5": "\x1b[15~",
    **{f"ctrl+{letter}": chr(ord(letter) - 96) for letter in "abcdefghijklmnopqrstuvwxyz"},
}


class Terminal:
    """A program on a terminal.

    Args:
        command: What to start.
        size: Columns and rows.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], size: tuple[int, int] = (100, 30)) -> None:
        columns, rows = size
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.written = b""
        self._master, slave = pty.openpty()
        self._set_size(slave, size)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            # Those that run tests in several processes set a size, which would win over the terminal's own.
            env={name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._master)

    @property
    def shown(self) -> str:
        """What is on it, line by line."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    def press(self, *keys: str) -> None:
        """Presses keys, by their names in `KEYS`."""
        for key in keys:
            os.write(self._master, KEYS[key].encode())

    def type(self, text: str) -> None:
        """Types text as it is."""
        os.write(self._master, text.encode())

    def paste(self, text: str) -> None:
        """Pastes text as terminals do: bracketed, and with CR at the ends of lines."""
        carriage_returns = text.replace("\n", "\r")
        os.write(self._master, f"\x1b[200~{carriage_returns}\x1b[201~".encode())

    def resize(self, columns: int, rows: int) -> None:
        """Makes it larger or smaller; the program is told."""
        self._screen.resize(rows, columns)
        self._set_size(self._master, (columns, rows))

    def sees(self, *texts: str) -> str:
        """Waits until all ``texts`` are shown, and returns all that is."""
        return self.until(lambda shown: all(text in shown for text in texts), f"{texts}")

    def until(self, happened: Callable[[str], bool], what: str = "") -> str:
        """Waits until what is shown is as it should be, and returns it."""
        deadline = time.monotonic() + PATIENCE_S
        while not happened(self.shown):
            if time.monotonic() > deadline or not self._read(0.1):
                raise AssertionError(f"it never came: {what or happened}\n{self.shown}")
        return self.shown

    def wait(self, seconds: float) -> None:
        """Takes what is written for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self._read(left):
            pass

    def stopped(self, signum: int = signal.SIGSTOP) -> None:
        """Stops the program from outside, wipes the screen as others may then, and lets it go on."""
        process = psutil.Process(self.process.pid)
        process.send_signal(signum)
        deadline = time.monotonic() + PATIENCE_S
        while process.status() != psutil.STATUS_STOPPED:
            if time.monotonic() > deadline:
                raise AssertionError("it does not stop")
            self._read(0.05)
        self._stream.feed(b"\x1b[2J")
        process.send_signal(signal.SIGCONT)

    def ended(self) -> int:
        """Waits for the program's end; its exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"it does not end\n{self.shown}")
            self._read(0.1)
        while self._read(0.1, wait=False):
            pass
        return self.process.returncode

    def _read(self, seconds: float, wait: bool = True) -> bool:
        """Takes what was written; False where nothing will come any more, or nothing is there to be taken."""
        if not select.select([self._master], [], [], seconds)[0]:
            return wait
        try:
            data = os.read(self._master, 65536)
        except OSError:
            return False
        self.written += data
        self._stream.feed(data)
        return bool(data)

    def read(self) -> bytes:
        """What was written, taken away before the emulator sees it; waits for something. Empty at the end."""
        try:
            return os.read(self._master, 65536)
        except OSError:
            return b""

    @staticmethod
    def _set_size(descriptor: int, size: tuple[int, int]) -> None:
        columns, rows = size
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
