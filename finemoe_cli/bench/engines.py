"""Having a configuration measured, in a fresh process each time."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from finemoe_cli.bench.plan import Configuration, Workload, long_text, prompts
from finemoe_cli.bench.samples import Measured
from finemoe_cli.evaluation.engines import as_error
from offload.child import child_command, child_environment
from offload.errors import EngineBroken
from offload.service.ending import ended_because

Progress = Callable[[str, int, int], None]
_LETTERS_A_TOKEN = 8
"""More than any tokenizer makes of a token on average, so that a text is long enough."""


def measure(one: Configuration, workload: Workload, progress: Progress, *, routing: bool = False) -> Measured:
    """Every test of `workload`; a cold one has a process for each repeat.

    Args:
        progress: Told of the stages of opening, and of ``"measure"``, tests.
        routing: Also keep what the routers chose for the tokens that were generated.

    Raises:
        FinemoeError: The configuration cannot be opened, or its process ended.
    """
    order = {
        "config": {name: str(v) if isinstance(v, Path) else v for name, v in asdict(one.engine).items()},
        "text": long_text((workload.repeats + 1) * workload.prompt * _LETTERS_A_TOKEN),
        "questions": prompts(workload.repeats + 1),
        "prompt": workload.prompt,
        "generate": workload.generate,
        "seed": workload.seed,
        "cold": workload.cold,
        "routing": routing,
    }
    if not workload.cold:
        return _run(order | {"first": 0, "repeats": workload.repeats}, one.name, progress)
    found = [_run(order | {"first": n, "repeats": 1}, one.name, progress) for n in range(workload.repeats)]
    joined = found[0]
    for more in found[1:]:
        joined = joined.joined(more)
    return joined


def _run(order: dict[str, Any], name: str, progress: Progress) -> Measured:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            child_command("finemoe_cli.bench.worker", str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is not for it.
        )
        try:
            return _listen(process, order, name, log, progress)
        finally:
            process.kill()
            process.wait()


def _listen(
    process: subprocess.Popen[bytes], order: dict[str, Any], name: str, log: IO[bytes], progress: Progress
) -> Measured:
    assert process.stdin and process.stdout
    with process.stdin, process.stdout:
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            pass  # It has ended, as what it says tells.
        for line in process.stdout:
            answer = json.loads(line) if line.endswith(b"\n") else {}
            if "progress" in answer:
                progress(answer["stage"], answer["progress"], answer["total"])
            elif "error" in answer:
                raise as_error(answer)
            elif "measured" in answer:
                return Measured.from_dict(answer["measured"])
        code = process.wait()
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").splitlines()
    raise EngineBroken(f"measuring {name} failed: {ended_because(code, lines[-1] if lines else '', False)}")
