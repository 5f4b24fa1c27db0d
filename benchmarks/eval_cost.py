"""What measuring costs: tokens a second of ``finemoe eval`` beside ``finemoe run``, and the harness's own memory.

    python -m benchmarks.eval_cost [--pairs 60] [--turn 2.5] [--budget 12.5%] [--policy demand] [--lanes 2]

Both are asked for the very same long answer, each in a process that has just been started, so that both begin with
an empty cache and read the same experts; while they give it, they take turns (`benchmarks.alternating`). If it ends
before there are enough pairs, both are started again. Quoted are medians, and median, quartiles and standard error
of the ratio in a pair of turns.

The memory is the largest that the process which holds the conversations ever had; the engine, which it waits for,
keeps to its own budget beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.alternating import LONG, answering_of, rates_said, ratios_said, turns
from offload.telemetry.probes import ProcessProbe
from offload.units import MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="of turns, two at least")
    parser.add_argument("--turn", type=float, default=2.5, metavar="SECONDS")
    parser.add_argument("--budget", default="12.5%")
    parser.add_argument("--policy", default="demand", help="one that reads nothing ahead reads the same with both")
    parser.add_argument("--lanes", default="2", help="given, so that both have the same number")
    options = parser.parse_args()
    if options.pairs < 2:
        parser.error("one pair has no spread")
    given = ["--policy", options.policy, "--budget", options.budget, "--lanes", options.lanes]
    given += ["-t", "0.9", "--seed", "3", "-n", "3000", "--context", "4096", "-q"]
    rates: list[tuple[float, float]] = []
    peak = 0
    while len(rates) < options.pairs:
        found, rss = _answers(given, options.pairs - len(rates), options.turn)
        rates, peak = rates + found, max(peak, rss)
    print(*rates_said(("run", "eval"), rates), sep="\n")
    print(ratios_said("eval / run", rates))
    print(f"memory of the harness: {peak / MIB:.1f} MiB")


def _answers(given: Sequence[str], pairs: int, seconds: float) -> tuple[list[tuple[float, float]], int]:
    """Tokens a second in turns of one answer by both, and the bytes of the process that holds the conversations."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "prompt.jsonl")
        data.write_text(json.dumps({"prompt": LONG}) + "\n", encoding="utf-8")
        whole = ["--data", str(data), "--split", "0:1", "--warmup", "0", "--out", f"{folder}/run"]
        with answering_of(["run", *given, LONG]) as run, answering_of(["eval", *given, *whole]) as evaluation:
            found = turns(run, evaluation, pairs, seconds)
            if not found:
                raise SystemExit("the answers are shorter than two turns")
            return found, ProcessProbe(Path(f"/proc/{evaluation.pid}/status")).read().peak_bytes or 0


if __name__ == "__main__":
    main()
