"""How long after the command `finemoe chat` shows its first picture: the prompt, to be written into.

    python -m benchmarks.first_picture [--starts 20] [--tree FOLDER]

Each start is a fresh process on a pseudo-terminal of 120 x 40 cells, with settings as they come and nothing kept;
the model is there. It is timed from the start of the process until it has written the prompt, and ended then. The
first start is not counted: what it reads comes from the disk. With `--tree`, a checkout of finemoe to compare with,
it and this one take turns, and the ratio is the median over the starts. Quoted are the median, the fastest and
the slowest, and the median of the processor time that the process has taken until then.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import psutil

from benchmarks.alternating import home
from tests.support.terminal import Terminal

# Without -P the folder that one happens to be in would come before the tree that is meant.
CHAT = [sys.executable, "-P", "-m", "finemoe_cli", "chat"]
PROMPT = b"sk anything"
"""Of the empty prompt; its first letter is under the cursor, and written apart."""
SIZE = (120, 40)
_HERE = Path(__file__).parents[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--tree", type=Path)
    asked = parser.parse_args()
    trees = {"here": _HERE} | ({"there": asked.tree.resolve()} if asked.tree else {})
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in trees}
    for tree in trees.values():
        _start(tree)
    for number in range(asked.starts):
        for name in sorted(trees, reverse=bool(number % 2)):
            taken[name].append(_start(trees[name]))
    for name, starts in taken.items():
        times = [seconds for seconds, _ in starts]
        print(
            f"first picture after the command, {name}: median {statistics.median(times):.2f} s "
            f"({min(times):.2f} to {max(times):.2f}, {len(times)} starts), "
            f"processor time {statistics.median(cpu for _, cpu in starts):.2f} s"
        )
    if asked.tree:
        ratios = [here / there for (here, _), (there, _) in zip(taken["here"], taken["there"], strict=True)]
        print(f"here / there: median {statistics.median(ratios):.2f}")


def _start(tree: Path) -> tuple[float, float]:
    """Seconds from the start of a chat to its first picture, and its processor time until then."""
    with home() as env:
        begin = time.perf_counter()
        with Terminal(CHAT, {**env, "PYTHONPATH": str(tree)}, SIZE) as terminal:
            written = b""
            while PROMPT not in written:
                data = terminal.read()
                if not data:
                    raise SystemExit(f"the chat ended: {os.fsdecode(written)}")
                written += data
            seconds = time.perf_counter() - begin
            cpu = psutil.Process(terminal.process.pid).cpu_times()
            terminal.press("ctrl+q")
            while terminal.read():
                pass
            terminal.process.wait(60)
    return seconds, cpu.user + cpu.system


if __name__ == "__main__":
    main()
