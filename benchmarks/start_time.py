"""How long after the command the first token comes, and what the time goes into.

    python -m benchmarks.start_time [--rounds 5] [--model NAME|PATH] [--profile NAME] [--tree FOLDER]

Each round starts `finemoe run` with a short prompt for one token, in a fresh process. Warm: what the last round
read may still be in the page cache. Cold: the page cache is emptied before (root's right; left out without it).
With `--tree`, a checkout of finemoe to compare with, it and this one take turns, and the ratio is the median over
rounds. Quoted are medians with the fastest and the slowest. At the end, seconds of this checkout's imports alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

_DROP = Path("/proc/sys/vm/drop_caches")
_HERE = Path(__file__).parents[1]
_IMPORTS = "import offload.runtime.engine, offload.runtime.kernels.bf16, offload.policy.kernels.auto"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--profile", default="balanced")
    parser.add_argument("--tree", type=Path)
    asked = parser.parse_args()
    run = [
        *("-m", "finemoe_cli", "run", "--temperature", "0", "-n", "1", "--context", "512"),
        *("--model", asked.model, "--profile", asked.profile, "What is the capital of France?"),
    ]
    trees = {"here": _HERE} | ({"there": asked.tree.resolve()} if asked.tree else {})
    for tree in trees.values():
        _seconds(tree, run)  # compiles the kernels, and whatever else happens once
    kinds = ["warm", "cold"] if os.access(_DROP, os.W_OK) else ["warm"]
    for kind in kinds:
        taken: dict[str, list[float]] = {name: [] for name in trees}
        for number in range(asked.rounds):
            for name in sorted(trees, reverse=bool(number % 2)):
                if kind == "cold":
                    os.sync()
                    _DROP.write_text("3\n", encoding="ascii")
                taken[name].append(_seconds(trees[name], run))
        for name, times in taken.items():
            print(f"first token after the command, {kind}, {name}: {_spread(times)}")
        if asked.tree:
            ratios = [here / there for here, there in zip(taken["here"], taken["there"], strict=True)]
            print(f"here / there, {kind}: {_spread(ratios, '')}")
    print(f"imports alone, warm: {_spread([_seconds(_HERE, ['-c', _IMPORTS]) for _ in range(asked.rounds)])}")


def _seconds(tree: Path, arguments: list[str]) -> float:
    """From the start of a process to its first output, or to its end where it says nothing."""
    begin = time.perf_counter()
    command = [sys.executable, "-P", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        taken = time.perf_counter() - begin
        process.stdout.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return taken


def _spread(values: list[float], unit: str = " s") -> str:
    return f"median {statistics.median(values):.2f}{unit} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
