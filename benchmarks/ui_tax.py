"""What the chat's screen costs: tokens a second in `finemoe chat` with all panes, and in `finemoe run`, in turns.

    python -m benchmarks.ui_tax [--rounds 5] [--tokens 96] [--policy auto]

Each round asks both the same greedy question in a process of its own, with empty slots and nothing learnt; the
order turns with the rounds. The chat runs on a pseudo-terminal of 160 x 48 cells, all panes beside it. What
emulates the terminal takes its share of the machine too, as any terminal does. While the model generates, letters
are typed and the time until they are shown is taken. Quoted are medians, and the median over the rounds of the
ratio.
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
import time
from pathlib import Path

import psutil

from profiles.paths import cache_dir
from tests.support.terminal import Terminal

QUESTION = "Explain how rivers shape the land around them."
SIZE = (160, 48)
FINEMOE = [sys.executable, "-m", "finemoe_cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--policy", default="auto")
    options = parser.parse_args()
    given = ["-n", str(options.tokens), "-t", "0", "--policy", options.policy]
    speeds: dict[str, list[float]] = {"run": [], "chat": []}
    keys: list[float] = []
    memory: list[int] = []
    for number in range(options.rounds):
        for kind in ("run", "chat") if number % 2 else ("chat", "run"):
            with tempfile.TemporaryDirectory() as home:
                env = {
                    **os.environ,
                    "TERM": "xterm-256color",
                    "FINEMOE_CACHE_DIR": str(cache_dir()),
                    "FINEMOE_CONFIG_DIR": f"{home}/config",
                    "FINEMOE_DATA_DIR": f"{home}/data",
                }
                if kind == "run":
                    command = [*FINEMOE, "run", "--json", "-q", *given, QUESTION]
                    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
                    speeds[kind].append(json.loads(done.stdout)["tokens_per_s"])
                else:
                    speed, typed, rss = chat(env, Path(home) / "data" / "sessions.db", given)
                    speeds[kind].append(speed)
                    keys += typed
                    memory.append(rss)
            print(f"round {number + 1}, {kind}: {speeds[kind][-1]:.1f} tok/s", flush=True)
    ratios = [chat / run for chat, run in zip(speeds["chat"], speeds["run"], strict=True)]
    for kind, values in speeds.items():
        print(f"{kind}: median {statistics.median(values):.1f} tok/s ({min(values):.1f} to {max(values):.1f})")
    print(f"chat / run: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(
        f"a key is shown after: median {statistics.median(keys) * 1000:.0f} ms, at most {max(keys) * 1000:.0f} ms"
    )
    print(f"the screen's process: {max(memory) / 2**20:.0f} MiB")


def chat(env: dict[str, str], sessions: Path, given: list[str]) -> tuple[float, list[float], int]:
    """Tokens a second of an answer, seconds until keys were shown, and the screen's process's resident memory."""
    with Terminal([*FINEMOE, "chat", "--layout", "side", *given], env, SIZE) as terminal:
        terminal.until(lambda shown: "ready" in shown, "the engine is ready")
        terminal.type(QUESTION)
        terminal.press("enter")
        terminal.until(lambda shown: "TTFT" in shown, "an answer has begun")
        keys = []
        for letter in "xyz":
            began = time.perf_counter()
            terminal.type(letter * 4)
            terminal.until(lambda shown, typed=letter * 4: typed in shown, "a key is shown")
            keys.append(time.perf_counter() - began)
        while (answer := _finished(sessions)) is None:
            pause = time.monotonic() + 0.3
            terminal.until(lambda shown, end=pause: time.monotonic() > end)
        rss = psutil.Process(terminal.process.pid).memory_info().rss
        terminal.press("ctrl+q")
        terminal.ended()
        return answer["tokens_per_s"], keys, rss


def _finished(path: Path) -> dict[str, float] | None:
    """Statistics of the answer, once it is complete."""
    if not path.exists():
        return None
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as store:
        rows = store.execute("SELECT stats FROM messages WHERE stats IS NOT NULL").fetchall()
    return json.loads(rows[0][0]) if rows else None


if __name__ == "__main__":
    main()
