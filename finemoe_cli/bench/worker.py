"""A process that measures one configuration: ``python -m finemoe_cli.bench.worker PARENT``.

The order comes in on stdin as one JSON object; on stdout go the progress and, at last, what was measured, or an
error, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from offload.child import ends_with_parent
from offload.config import EngineConfig
from offload.errors import FinemoeError


def carry_out(order: dict[str, Any], say: Any) -> dict[str, Any]:
    """What `order` asks for, as JSON has it: see `finemoe_cli.bench.engines`."""
    from finemoe_cli.bench.measure import Bench

    paths = {name: Path(order["config"][name]) for name in ("model", "packs_folder")}
    config = EngineConfig(**order["config"] | paths)

    def progress(stage: str, done: int, total: int) -> None:
        say({"stage": stage, "progress": done, "total": total})

    with Bench(
        config, cold=order["cold"], text=order["text"], questions=order["questions"], progress=progress
    ) as bench:
        return bench.measure(
            order["prompt"],
            order["generate"],
            first=order["first"],
            repeats=order["repeats"],
            seed=order["seed"],
            warm=not order["cold"],
            routing=order["routing"],
        ).to_dict()


def main() -> None:
    """Carry out the order on stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What a library prints is no answer.
    if not ends_with_parent(int(sys.argv[1])):
        return

    def say(what: dict[str, Any]) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        say({"measured": carry_out(json.loads(sys.stdin.readline()), say)})
    except FinemoeError as error:
        say({"error": type(error).__name__, "message": error.message, "hint": error.hint})


if __name__ == "__main__":
    main()
