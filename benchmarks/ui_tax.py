"""What the chat's screen costs: tokens a second in `finemoe chat` with all panes, and in `finemoe run`, in turns.

    python -m benchmarks.ui_tax [--pairs 60] [--turn 2.5] [--policy auto] [--keys 12]

Both are asked the same question with the same seed, each in a process of its own, with empty slots and nothing
learnt, and give the same long answer; while they give it, they take turns (`benchmarks.alternating`). If it ends
before there are enough pairs, both are started again. The chat runs on a pseudo-terminal of 160 x 48 cells, all
panes beside it. What it draws is read and thrown away, so that the cost is finemoe's own and not that of a
terminal. Quoted are medians, and median, quartiles and standard error of the ratio in a pair of turns; and of the
screen's process, how much of a core it takes in its turns, and its memory.

How long a key takes to be shown is measured apart, in one more answer, with an emulator that knows what the
terminal would show; its own time is in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from benchmarks.alternating import Program, answering, ratios_said, turns
from profiles.paths import boards_dir, cache_dir
from tests.support.terminal import Terminal

LONG = "Write a very long story with many chapters about a fox."
QUESTION = "Explain how rivers shape the land around them."
SIZE = (160, 48)
FINEMOE = [sys.executable, "-m", "finemoe_cli"]
CHAT = [*FINEMOE, "chat", "--layout", "side"]
LOOK_S = 0.2
LETTERS = "xyzw"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="of turns; 0: keys only")
    parser.add_argument("--turn", type=float, default=2.5, metavar="SECONDS")
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--keys", type=int, default=12, help="0: speed only")
    options = parser.parse_args()
    if options.pairs:
        _speed(options.pairs, options.turn, options.policy)
    if options.keys:
        _keys(options.keys, ["-t", "0", "--policy", options.policy, "-n", "400"])


def _speed(pairs: int, seconds: float, policy: str) -> None:
    given = ["-t", "0.9", "--seed", "3", "-n", "3000", "--context", "4096", "--policy", policy]
    rates: list[tuple[float, float]] = []
    core_s = turns_s = 0.0
    rss = drawn_bytes = 0
    while len(rates) < pairs:
        with run_answering([*given, LONG]) as run, chat_answering(given, LONG) as (chat, drawn):
            before = drawn.count
            found = turns(run, chat, pairs - len(rates), seconds)
            if not found:
                raise SystemExit("the answers are shorter than two turns")
            rates += found
            core_s, turns_s = core_s + chat.core_s, turns_s + chat.turns_s
            drawn_bytes += drawn.count - before
            rss = max(rss, psutil.Process(chat.pid).memory_info().rss)
    for kind, values in zip(("run", "chat"), zip(*rates, strict=True), strict=True):
        print(f"{kind}: median {statistics.median(values):.1f} tok/s ({min(values):.1f} to {max(values):.1f})")
    print(ratios_said("chat / run", rates))
    print(
        f"the screen's process while the answer came: {core_s / turns_s:.1%} of a core, {rss / 2**20:.0f} MiB, "
        f"{drawn_bytes / turns_s / 1e3:.0f} kB/s drawn"
    )


@contextmanager
def run_answering(arguments: Sequence[str]) -> Iterator[Program]:
    """`finemoe run`, stopped in its answer; its text is thrown away."""
    with (
        home() as env,
        subprocess.Popen([*FINEMOE, "run", "-q", *arguments], env=env, stdout=subprocess.DEVNULL) as process,
    ):
        try:
            yield answering(process.pid, boards_dir())
        finally:
            process.kill()


@contextmanager
def chat_answering(given: Sequence[str], question: str) -> Iterator[tuple[Program, Drawn]]:
    """A chat that is stopped in an answer, on a terminal which nobody looks at."""
    with home() as env, Terminal([*CHAT, *given], env, SIZE) as terminal, drained(terminal) as drawn:
        _until(lambda: drawn.prompt, 30)
        # The question waits for the model by itself.
        terminal.type(question)
        terminal.press("enter")
        program = answering(terminal.process.pid, boards_dir())
        try:
            yield program, drawn
        finally:
            program.go()
            terminal.press("ctrl+q")
            terminal.process.wait(60)


def _keys(count: int, given: list[str]) -> None:
    """Types letters while an answer comes, and says when they were to be seen."""
    took: list[float] = []
    with home() as env, Terminal([*CHAT, *given], env, SIZE) as terminal:
        terminal.until(lambda shown: "ready" in shown, "the engine is ready")
        terminal.type(QUESTION)
        terminal.press("enter")
        terminal.until(lambda shown: " tok" in shown, "an answer has begun")
        for number in range(count):
            letters = LETTERS[number % len(LETTERS)] * 4
            began = time.perf_counter()
            terminal.type(letters)
            terminal.sees(letters)
            took.append(time.perf_counter() - began)
            terminal.type("\x7f" * 4)
            terminal.sees("Ask anything")
        terminal.press("ctrl+q")
        terminal.ended()
    print(f"a key is shown after: median {statistics.median(took) * 1e3:.0f} ms, at most {max(took) * 1e3:.0f} ms")


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


@dataclass(slots=True)
class Drawn:
    """What was written to a terminal so far.

    Attributes:
        count: How many bytes.
        prompt: Whether the prompt was among them.
    """

    count: int = 0
    prompt: bool = False


@contextmanager
def drained(terminal: Terminal) -> Iterator[Drawn]:
    """Reads what a terminal is written and throws it away."""
    drawn = Drawn()

    def drain() -> None:
        while data := terminal.read():
            drawn.count += len(data)
            drawn.prompt = drawn.prompt or b"Ask anything" in data

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    yield drawn
    thread.join(10)


def _until(happened: Callable[[], object], patience: float = 300.0) -> None:
    deadline = time.monotonic() + patience
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("the chat does not answer")
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main()
