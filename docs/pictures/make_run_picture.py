"""Make run.svg, the picture in the README: one real run of ``finemoe run --stats`` in a terminal.

    python docs/pictures/make_run_picture.py

The command runs in a pseudo-terminal with the pulled demo model; what it wrote is drawn with Rich. Kernels and
model should be there (``finemoe pull demo``), and other programs closed, as the picture shows speeds.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 100, 40
PROMPT = "What is the capital of Japan, and what is it known for?"
ARGUMENTS = ("run", "-q", "--stats", "--profile", "low", "--temperature", "0", PROMPT)
PICTURE = Path(__file__).with_name("run.svg")

_CURSOR = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]")
_WEB_FONTS = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)


def screen_of(arguments: tuple[str, ...]) -> str:
    """What ``finemoe`` with these arguments writes to a terminal, colours included."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(
        [sys.executable, "-m", "finemoe_cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env=environment,
    )
    os.close(slave)
    written = bytearray()
    while True:
        try:
            piece = os.read(master, 1 << 16)
        except OSError:  # Linux says so when the last writer is gone
            break
        if not piece:
            break
        written += piece
    os.close(master)
    screen = written.decode().replace("\r\n", "\n")
    if process.wait() != 0 or _CURSOR.search(screen):
        raise SystemExit(f"not a screen to draw (exit code {process.returncode}): {screen!r}")
    return screen


def draw(command: str, screen: str) -> str:
    """The SVG of a terminal with a command and what it wrote; lines are cut as a terminal cuts them."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "bold green"), command))
    for line in Text.from_ansi(screen.rstrip("\n")).split(allow_blank=True):
        for piece in line.divide(range(COLUMNS, len(line), COLUMNS)):
            console.print(piece, no_wrap=True, overflow="ignore", crop=False)
    # Without Rich's web fonts: the picture is to look the same without a network.
    return console.export_svg(title="finemoe", code_format=_WEB_FONTS.sub("", CONSOLE_SVG_FORMAT), unique_id="run")


if __name__ == "__main__":
    PICTURE.write_text(draw(shlex.join(("finemoe", *ARGUMENTS)), screen_of(ARGUMENTS)), encoding="utf-8")
