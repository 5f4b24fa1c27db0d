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
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil

from benchmarks.alternating import (
    FINEMOE,
    LONG,
    Program,
    answering,
    answering_of,
    home,
    rates_said,
    ratios_said,
    turns,
)
from profiles.paths import boards_dir
from tests.support.terminal import Terminal

QUESTION = "Explain how rivers shape the land around them."
SIZE = (160, 48)
CHAT = [*FINEMOE, "chat", "--layout", "side"]
LETTERS = "xyzw"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="of turns, two at least; 0: keys only")
    parser.add_argument("--turn", type=float, default=2.5, metavar="SECONDS")
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--keys", type=int, default=12, help="0: speed only")
    options = parser.parse_args()
    if options.pairs == 1:
        parser.error("one pair has no spread")
    if options.pairs:
        _speed(options.pairs, options.turn, options.policy)
    if options.keys:
        _keys(options.keys, ["-t", "0", "--policy", options.policy, "-n", "400"])


def _speed(pairs: int, seconds: float, policy: str) -> None:
    given = ["-t", "0.9", "--seed", "3", "-n", "3000", "--context", "4096", "--policy", policy]
    rates: list[tuple[float, float]] = []
    core_s = turns_s = 0.0
    rss = 0
    while len(rates) < pairs:
        with answering_of(["run", "-q", *given, LONG]) as run, chat_answering(given, LONG) as chat:
            found = turns(run, chat, pairs - len(rates), seconds)
            if not found:
                raise SystemExit("the answers are shorter than two turns")
            rates += found
            core_s, turns_s = core_s + chat.core_s, turns_s + chat.turns_s
            rss = max(rss, psutil.Process(chat.pid).memory_info().rss)
    print(*rates_said(("run", "chat"), rates), sep="\n")
    print(ratios_said("chat / run", rates))
    print(f"the screen's process while the answer came: {core_s / turns_s:.1%} of a core, {rss / 2**20:.0f} MiB")


@contextmanager
def chat_answering(given: Sequence[str], question: str) -> Iterator[Program]:
    """A chat that is stopped in an answer, on a terminal which nobody looks at."""
    with home() as env, Terminal([*CHAT, *given], env, SIZE) as terminal, drained(terminal) as prompt_drawn:
        if not prompt_drawn.wait(30):
            raise TimeoutError("the chat does not begin")
        # The question waits for the model by itself.
        terminal.type(question)
        terminal.press("enter")
        program = answering(terminal.process.pid, boards_dir())
        try:
            yield program
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
def drained(terminal: Terminal) -> Iterator[threading.Event]:
    """Reads what a terminal is written and throws it away; says when the prompt was among it."""
    prompt = threading.Event()

    def drain() -> None:
        while data := terminal.read():
            if b"Ask anything" in data:
                prompt.set()

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    yield prompt
    thread.join(10)


if __name__ == "__main__":
    main()
