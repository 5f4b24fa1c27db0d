"""What measuring costs: tokens a second of ``finemoe eval`` beside ``finemoe run``, and the harness's own memory.

    python benchmarks/eval_cost.py [--rounds 5] [--tokens 64] [--budget 12.5%] [--policy demand] [--lanes 2]
                                   [--model NAME|PATH]

Each round answers each prompt with both, in a process that has just been started, so that both begin with an empty
cache and read the same experts; which goes first changes from round to round. Both are asked for greedy answers,
which have to be the same. Quoted are medians over rounds and prompts of the tokens a second between the first token
and the last and from the request on, and median and quartiles of the ratio of two answers to the same prompt in the
same round.

The memory is the largest that the parent, which waits for its engines, had in any evaluation while one was open;
the engine keeps to its own budget beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from offload.units import MIB

PROMPTS = ("Why is the sky blue?", "Name three rivers and say where they flow.", "Write a haiku about disks.")
POLL_S = 0.2
KINDS = ("run", "eval")


def finemoe(*arguments: str) -> tuple[dict[str, Any], int]:
    """What a command prints with ``--json``, and the most memory that it had beside a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "finemoe_cli", *arguments, "--json", "--quiet"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, bytes_beside(watched))
        time.sleep(POLL_S)
    assert process.stdout is not None
    said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"finemoe {arguments[0]} ended with exit code {process.returncode}")
    answer: dict[str, Any] = json.loads(said)
    return answer, peak


def bytes_beside(process: psutil.Process) -> int:
    """Resident memory of a process that has others running; 0 of one that has none."""
    try:
        return int(process.memory_info().rss) if process.children() else 0
    except psutil.Error:
        return 0


def answered(kind: str, prompt: str, common: list[str], folder: Path) -> tuple[dict[str, Any], int]:
    """Token ids and times of one answer, and the memory of the command's own process."""
    if kind == "run":
        return finemoe("run", *common, prompt)
    data, out = folder / "prompt.jsonl", folder / "run"
    data.write_text(json.dumps({"prompt": prompt}) + "\n", encoding="utf-8")
    of_set = ("--data", str(data), "--split", "0:1", "--warmup", "0", "--out", str(out))
    _, peak = finemoe("eval", *common, *of_set)
    (line,) = (out / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    row: dict[str, Any] = json.loads(line)
    return row, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--budget", default="12.5%")
    parser.add_argument("--policy", default="demand", help="one that reads nothing ahead reads the same with both")
    parser.add_argument("--lanes", default="2", help="given, so that both have the same number")
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()
    common = ["--model", arguments.model, "--policy", arguments.policy, "--budget", arguments.budget]
    common += ["--lanes", arguments.lanes, "--temperature", "0", "-n", str(arguments.tokens)]
    decode: dict[str, list[float]] = {kind: [] for kind in KINDS}
    whole: dict[str, list[float]] = {kind: [] for kind in KINDS}
    peaks = dict.fromkeys(KINDS, 0)
    for number in range(arguments.rounds):
        for prompt in PROMPTS:
            ids = []
            for kind in KINDS[:: -1 if number % 2 else 1]:
                with tempfile.TemporaryDirectory() as folder:
                    said, peak = answered(kind, prompt, common, Path(folder))
                ids.append(said["token_ids"])
                decode[kind].append(1 / said["tpot_s"])
                whole[kind].append(said["completion_tokens"] / said["e2e_s"])
                peaks[kind] = max(peaks[kind], peak)
            if ids[0] != ids[1]:
                raise SystemExit(f"the answers to '{prompt}' differ")
    print(f"{'':<24}{'run':>10}{'eval':>10}{'ratio':>10}{'quartiles':>18}")
    for name, rates in (("tok/s, decoding", decode), ("tok/s, from the request", whole)):
        low, ratio, high = statistics.quantiles(
            (b / a for a, b in zip(rates["run"], rates["eval"], strict=True)), n=4, method="inclusive"
        )
        run, evaluated = (statistics.median(rates[kind]) for kind in KINDS)
        print(f"{name:<24}{run:>10.2f}{evaluated:>10.2f}{ratio:>10.3f}{low:>11.3f} .. {high:.3f}")
    print(f"memory of the harness: {peaks['eval'] / MIB:.1f} MiB")


if __name__ == "__main__":
    main()
