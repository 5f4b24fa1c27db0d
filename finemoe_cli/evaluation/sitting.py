"""One sitting of an evaluation: from a plan and a folder to a summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finemoe_cli.evaluation import surroundings
from finemoe_cli.evaluation.breakdown import write_tables
from finemoe_cli.evaluation.exact import check_room
from finemoe_cli.evaluation.folder import FORMAT, TOKENS, RunFolder, anything_measured
from finemoe_cli.evaluation.perplexity import tokenise
from finemoe_cli.evaluation.plan import Plan
from finemoe_cli.evaluation.report import PAGE, draw_page, write_report
from finemoe_cli.evaluation.runner import Runner, Stopped
from finemoe_cli.evaluation.summary import summarise
from finemoe_cli.output import Output
from offload.errors import ConfigError, StorageError
from ui.progress import stage_words
from ui.text import clock

_WORDS = {
    "asked": "other options",
    "data": "other prompts",
    "arrivals": "other arrivals",
    "perplexity": "another text for the perplexity",
    "turns": "other turns",
    "warmup": "another warm-up",
    "system": "another system prompt",
    "sampling": "other settings of sampling",
    "model": "another model",
    "combinations": "other settings of the engine",
    "fingerprint": "other weights",
    "device": "another device",
    "kernels": "other kernels",
    "precision": "another precision",
    "context": "another context",
}
"""What of a run may not change while it goes on."""


def sit(plan: Plan, folder: RunFolder, side_by_side: int | None, output: Output) -> dict[str, Any]:
    """Do what a plan says, as far as it is not done yet, and say what it came to; interrupted, what there is.

    Args:
        side_by_side: See `Runner`.

    Returns:
        The summary.

    Raises:
        ConfigError: The run in the folder was begun with something else.
        FinemoeError: As `Runner.run`.
    """
    other = folder.run is not None and folder.run["config"] != plan.config()
    if other and not anything_measured(folder.path):
        output.note("nothing was measured in that folder yet: it begins anew")
        folder.begin_anew()
    run = folder.run or {
        "format": FORMAT,
        "created": _now(),
        "complete": False,
        "config": plan.config(),
        "sittings": [],
        "engines": {},
    }
    for name, value in plan.config().items():
        if run["config"][name] != value:
            raise _other(folder.path, _WORDS[name])
    if run["complete"]:
        output.note("every conversation was held already")
        if not (folder.path / PAGE).exists():
            _draw(folder, output)
        return summarise(folder)

    def opened(combination: str, ready: dict[str, Any]) -> None:
        before = run["engines"].setdefault(combination, ready)
        for fact in ("fingerprint", "device", "kernels", "precision", "context"):
            if before[fact] != ready[fact]:
                raise _other(folder.path, _WORDS[fact])
        folder.write_run(run)

    if plan.check_exact:
        check_room(plan.combinations[0].engine)
    if plan.text is not None and not (folder.path / TOKENS).exists():
        tokenise(plan.text, plan.model, folder.path / TOKENS)

    sitting: dict[str, Any] = {
        "began": _now(),
        "ended": None,
        "versions": surroundings.versions(),
        "commit": surroundings.commit(),
        "machine": surroundings.machine(),
        "groups": [],
    }
    run["sittings"].append(sitting)
    folder.write_run(run)
    with output.progress(transient=True, lines=False, eta=True) as bars:
        runner = Runner(
            plan,
            folder,
            sitting=len(run["sittings"]),
            side_by_side=side_by_side,
            opening=lambda stage, done, total: None,
            opened=opened,
            progress=_progress(output, bars),
            warn=output.warn,
        )
        try:
            runner.run(folder.drop_unfinished())
            run["complete"] = True
            folder.drop_learnt()
            (folder.path / TOKENS).unlink(missing_ok=True)
        except Stopped:
            pass  # What there is is shown, and then the process ends as an interrupted one.
        finally:
            sitting["groups"], sitting["ended"] = runner.groups, _now()
            folder.write_run(run)
            summary = summarise(folder)
            folder.write_summary(summary)
            write_tables(folder.path, summary["combinations"])
            write_report(folder.path, summary, folder.rows())
            from finemoe_cli.evaluation.routing import write_routing  # With NumPy, which no engine has to pay for.

            write_routing(folder.path, complete=run["complete"])
    if run["complete"]:
        _draw(folder, output)
    return summary


def _draw(folder: RunFolder, output: Output) -> None:
    """Write the page. Where that fails, what was measured is there all the same, and is shown and judged."""
    try:
        with output.waiting("drawing the figures"):
            draw_page(folder.path)
    except StorageError as error:
        output.warn(f"{error.message}; {error.hint}")


def _other(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"the run in {path} was begun with {what}", "begin a new one, as its numbers would not go together"
    )


def _progress(output: Output, bars: Callable[[str, int, int], None] | None) -> Callable[[str, int, int], None]:
    """A bar with the time that is left on a terminal; elsewhere a line for each tenth."""
    began: dict[str, tuple[float, int]] = {}
    last: dict[str, int] = {}
    on_terminal = sys.stderr.isatty()

    def tell(stage: str, done: int, total: int) -> None:
        if bars is not None and on_terminal:
            bars(stage, done, total)
            return
        if stage not in began or done < last[stage]:  # Each policy that learns, and each engine, has a history.
            began[stage] = time.monotonic(), done
        last[stage] = done
        start, before = began[stage]
        if before < done < total and done * 10 // total != (done - 1) * 10 // total:
            left = (time.monotonic() - start) / (done - before) * (total - done)
            output.note(f"{stage_words(stage)}: {done} of {total}, {clock(left)} left")

    return tell


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
