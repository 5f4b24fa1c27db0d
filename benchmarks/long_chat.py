"""How `finemoe chat` bears length: a session of hundreds of messages, and a reply of thousands of tokens.

    python -m benchmarks.long_chat [--messages 500] [--pages 100] [--tokens 4000] [--context 8192]

A session is written into a new database and gone on with (`-c`), on a pseudo-terminal of 120 x 40 cells, all panes
beside it. Said are how long after the command its end is shown, and how long pages up take.

Then a question is asked that is answered at length. While the answer comes, letters are typed every second, with
the conversation followed and scrolled up in turns. For each quarter of the answer: how long after a letter is typed
it is shown, and the memory and the share of a core that the screen's process takes. An emulator knows what the
terminal shows, and its own time is in all of these.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from pathlib import Path

import psutil

from benchmarks.alternating import FINEMOE, LONG, home
from offload.service.board import BoardReader, list_boards
from profiles.paths import boards_dir
from tests.support.terminal import Terminal
from ui.sessions import SessionStore

SIZE = (120, 40)
PAGE_UP, CTRL_END = "\x1b[5~", "\x1b[1;5F"
LETTERS = "xyzw"
WORDS = "Rivers carry sand and stones from the hills to the sea, and shape the land on their way. "


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=500)
    parser.add_argument("--pages", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--context", type=int, default=8192)
    asked = parser.parse_args()
    with home() as env:
        _fill(Path(env["FINEMOE_DATA_DIR"]) / "sessions.db", asked.messages)
        given = ["-t", "0.9", "--seed", "3", "-n", str(asked.tokens), "--context", str(asked.context)]
        begin = time.perf_counter()
        with Terminal([*FINEMOE, "chat", "-c", "--layout", "side", *given], env, SIZE) as terminal:
            process = psutil.Process(terminal.process.pid)
            terminal.sees(f"Message {asked.messages}")
            seconds = time.perf_counter() - begin
            print(f"the end of {asked.messages} messages is shown {seconds:.2f} s after the command")
            terminal.sees("ready")
            _page_up(terminal, asked.pages)
            print(f"memory {_mib(process)} MiB")
            terminal.press("ctrl+n")
            terminal.sees("new session")
            _answer(terminal, process, asked.tokens)
            terminal.press("ctrl+q")
            terminal.ended()


def _fill(path: Path, messages: int) -> None:
    """A session: questions of a line, answers of some paragraphs with a list and some code."""
    with SessionStore.open(path) as store:
        session = store.create(model="demo")
        parent = None
        for number in range(1, messages + 1):
            said = f"Message {number}. "
            if number % 2:
                parent = store.add(session.id, parent, "user", said + WORDS, None).id
            else:
                said += f"{WORDS * 4}\n\n- {WORDS}\n- {WORDS}\n\n```python\nprint({number})\n```\n\n{WORDS * 3}"
                parent = store.add(session.id, parent, "assistant", said, "stop").id


def _page_up(terminal: Terminal, pages: int) -> None:
    """Pages up; each is over when something else is shown."""
    took = []
    for _ in range(pages):
        pressed, before = time.perf_counter(), terminal.shown
        terminal.type(PAGE_UP)
        terminal.until(lambda shown, before=before: shown != before, "another page")
        took.append(time.perf_counter() - pressed)
    print(f"{pages} pages up: median {statistics.median(took) * 1e3:.0f} ms, at most {max(took) * 1e3:.0f} ms")


def _answer(terminal: Terminal, process: psutil.Process, tokens: int) -> None:
    terminal.type(LONG)
    terminal.press("enter")
    terminal.until(lambda shown: "answering" in shown and re.search(r"\d tok", shown) is not None, "an answer")
    board = _board(process)
    first = board.frame().tokens
    quarters: list[list[float]] = [[] for _ in range(4)]
    cpu, at = _cpu(process), time.perf_counter()
    number = quarter = 0
    while "answering" in terminal.shown:
        terminal.type(PAGE_UP * 3 if number % 8 == 4 else CTRL_END if number % 8 == 0 else "")
        letters = LETTERS[number % len(LETTERS)] * 4
        begin = time.perf_counter()
        terminal.type(letters)
        terminal.sees(letters)
        quarters[quarter].append(time.perf_counter() - begin)
        terminal.type("\x7f" * 4)
        terminal.sees("Ask anything")
        number += 1
        terminal.wait(1.0)
        done = board.frame().tokens - first
        if (quarter < 3 and done >= (quarter + 1) * tokens / 4) or "answering" not in terminal.shown:
            now_cpu, now = _cpu(process), time.perf_counter()
            keys = quarters[quarter]
            print(
                f"up to {done:,} tokens: a letter is shown after {statistics.median(keys) * 1e3:.0f} ms, at most "
                f"{max(keys) * 1e3:.0f} ms ({len(keys)}); {(now_cpu - cpu) / (now - at):.1%} of a core, "
                f"{_mib(process)} MiB"
            )
            cpu, at, quarter = now_cpu, now, min(3, quarter + 1)


def _board(process: psutil.Process) -> BoardReader:
    """Of the engine that a chat has started."""
    family = {child.pid for child in process.children(recursive=True)}
    return next(board for board in list_boards(boards_dir()) if board.facts.pid in family)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _mib(process: psutil.Process) -> int:
    return round(process.memory_info().rss / 2**20)


if __name__ == "__main__":
    main()
