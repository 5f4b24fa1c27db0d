"""What the chat's screen costs: tokens a second in `finemoe chat` with all panes, and in `finemoe run`, in turns.

    python -m benchmarks.ui_tax [--rounds 5] [--tokens 96] [--policy auto] [--keys 12]

Each round asks both the same greedy question in a process of its own, with empty slots and nothing learnt; the
order turns with the rounds. The chat runs on a pseudo-terminal of 160 x 48 cells, all panes beside it. What it
draws is read and thrown away, so that the cost is finemoe's own and not that of a terminal. The screen's process
is watched while the answer comes: how much of a core it takes, and its memory. Quoted are medians, and median and
quartiles over the rounds of the ratio.

How long a key takes to be shown is measured apart, in one more answer, with an emulator that knows what the
terminal would show; its own time is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from profiles.paths import cache_dir
from tests.support.terminal import Terminal

QUESTION = "Explain how rivers shape the land around them."
SIZE = (160, 48)
FINEMOE = [sys.executable, "-m", "finemoe_cli"]
CHAT = [*FINEMOE, "chat", "--layout", "side"]
LOOK_S = 0.2
LETTERS = "xyzw"


@dataclass(frozen=True, slots=True)
class Shown:
    """An answer in the chat.

    Attributes:
        tokens_per_s: Of decoding, as the engine counts it.
        core: Share of a core that the screen's process took while the answer came.
        rss: Bytes of its memory at the end.
        drawn: Bytes a second that it wrote to the terminal meanwhile.
    """

    tokens_per_s: float
    core: float
    rss: int
    drawn: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="0: keys only")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--keys", type=int, default=12, help="0: speed only")
    options = parser.parse_args()
    given = ["-n", str(options.tokens), "-t", "0", "--policy", options.policy]
    if options.rounds:
        _speed(options.rounds, given)
    if options.keys:
        _keys(options.keys, ["-t", "0", "--policy", options.policy, "-n", "400"])


def _speed(rounds: int, given: list[str]) -> None:
    run: list[float] = []
    chat: list[Shown] = []
    for number in range(rounds):
        for kind in ("run", "chat") if number % 2 else ("chat", "run"):
            with home() as (env, sessions):
                if kind == "run":
                    command = [*FINEMOE, "run", "--json", "-q", *given, QUESTION]
                    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
                    run.append(json.loads(done.stdout)["tokens_per_s"])
                    print(f"round {number + 1}, run: {run[-1]:.1f} tok/s", flush=True)
                else:
                    chat.append(answered(env, sessions, given))
                    told = f"{chat[-1].tokens_per_s:.1f} tok/s, {chat[-1].core:.1%} of a core"
                    print(f"round {number + 1}, chat: {told}", flush=True)
    ratios = [shown.tokens_per_s / alone for shown, alone in zip(chat, run, strict=True)]
    for kind, values in (("run", run), ("chat", [shown.tokens_per_s for shown in chat])):
        print(f"{kind}: median {statistics.median(values):.1f} tok/s ({min(values):.1f} to {max(values):.1f})")
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
    print(f"chat / run: median {middle:.3f} (quartiles {low:.3f} and {high:.3f})")
    print(
        f"the screen's process while the answer came: {statistics.median(shown.core for shown in chat):.1%} of a "
        f"core, {max(shown.rss for shown in chat) / 2**20:.0f} MiB, "
        f"{statistics.median(shown.drawn for shown in chat) / 1e3:.0f} kB/s drawn"
    )


def answered(env: dict[str, str], sessions: Path, given: list[str]) -> Shown:
    """Has the question answered in a chat whose terminal nobody looks at."""
    with Terminal([*CHAT, *given], env, SIZE) as terminal, drained(terminal) as drawn:
        process = psutil.Process(terminal.process.pid)
        _until(lambda: drawn.prompt, 30)
        # The question waits for the model by itself.
        terminal.type(QUESTION)
        terminal.press("enter")
        _until(lambda: _replies(sessions))
        begun, before, written = time.monotonic(), _cpu(process), drawn.count
        _until(lambda: any(stats for stats in _replies(sessions)))
        seconds = time.monotonic() - begun
        core, rate = (_cpu(process) - before) / seconds, (drawn.count - written) / seconds
        rss = process.memory_info().rss
        terminal.press("ctrl+q")
        terminal.process.wait(60)
        (stats,) = _replies(sessions)
        assert stats is not None
        return Shown(json.loads(stats)["tokens_per_s"], core, rss, rate)


def _keys(count: int, given: list[str]) -> None:
    """Types letters while an answer comes, and says when they were to be seen."""
    took: list[float] = []
    with home() as (env, _), Terminal([*CHAT, *given], env, SIZE) as terminal:
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
def home() -> Iterator[tuple[dict[str, str], Path]]:
    """An environment with no settings and nothing kept, and where its sessions will be."""
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **os.environ,
            "TERM": "xterm-256color",
            "FINEMOE_CACHE_DIR": str(cache_dir()),
            "FINEMOE_CONFIG_DIR": f"{folder}/config",
            "FINEMOE_DATA_DIR": f"{folder}/data",
        }
        yield env, Path(folder) / "data" / "sessions.db"


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


def _replies(path: Path) -> list[str | None]:
    """Statistics of every reply that has begun, as they are kept; None of one that still comes."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        try:
            rows = store.execute("SELECT stats FROM messages WHERE role = 'assistant'").fetchall()
        except sqlite3.OperationalError:  # It is just being made.
            return []
    return [row[0] for row in rows]


def _until(happened: Callable[[], object], patience: float = 300.0) -> None:
    deadline = time.monotonic() + patience
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("the chat does not answer")
        time.sleep(LOOK_S)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
