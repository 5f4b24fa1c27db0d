"""What a process has of what others learnt: the hit rate of an answer's first tokens, cold and warm.

    python -m benchmarks.warm_start [TRACE] [--policies demand,finemoe,auto] [--budget 25%] [--questions 6]
                                    [--before 4] [--tokens 32]

Questions of the bundled sample, first turns, from number 192 on, each answered by a process of its own
(``finemoe run``), greedily. `cold`: an empty data folder. `warm`: one in which other processes have answered
``--before`` other questions. `trace`: what ``finemoe maps build TRACE`` makes of a recorded trace, of the sample's
first 192 (``finemoe trace record --limit 192 --residuals``). `both`: the trace, then the other processes. Quoted
are hits over all selections of the answers' decoded tokens, and the least and the most of the questions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from finemoe_cli.datasets.sample import load_sample

FIRST = 192
"""Number of the first question: those before it may be in the trace."""


def finemoe(data: Path, *arguments: str) -> str:
    """What `finemoe` prints with this data folder."""
    environment = os.environ | {"FINEMOE_DATA_DIR": str(data), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "finemoe_cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments[:2])}: {done.stderr.strip()}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, nargs="?", help="to learn from before the first process")
    parser.add_argument("--policies", default="demand,finemoe,auto")
    parser.add_argument("--budget", default="25%")
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--before", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    asked = [one.turns[0] for one in load_sample()[FIRST : FIRST + options.questions + options.before]]
    questions, others = asked[: options.questions], asked[options.questions :]
    print(f"{'policy':10} {'begins':8} {'hit rate':>9} {'least':>7} {'most':>7}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        learnt = Path(folder, "learnt")
        if options.trace is not None:
            finemoe(learnt, "maps", "build", str(options.trace), "--quiet")
        for policy in options.policies.split(","):
            engine = ("--policy", policy, "--budget", options.budget, "-t", "0", "--json", "--quiet")
            for begins in ("cold", "warm") if options.trace is None else ("cold", "warm", "trace", "both"):
                prepared = Path(folder, policy, begins)
                if begins in ("trace", "both"):
                    shutil.copytree(learnt, prepared)
                else:
                    prepared.mkdir(parents=True)
                for question in others if begins in ("warm", "both") else []:
                    finemoe(prepared, "run", *engine, "-n", "64", question)
                hits, of = [], []
                for number, question in enumerate(questions):
                    own = prepared.with_name(f"{begins}-{number}")
                    shutil.copytree(prepared, own)
                    said = json.loads(finemoe(own, "run", *engine, "-n", str(options.tokens), question))
                    counts = said["experts"]["decode"]
                    of.append(counts["selections"])
                    hits.append(counts["resident"] + counts["prefetched"])
                rates = [hit / total for hit, total in zip(hits, of, strict=True)]
                print(
                    f"{policy:10} {begins:8} {sum(hits) / sum(of):9.3f} {min(rates):7.3f} {max(rates):7.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
