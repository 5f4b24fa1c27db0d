"""What is asked of an evaluation: options put together with those that a run was begun with, and settled."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finemoe_cli.datasets.skipped import tell_skipped
from finemoe_cli.evaluation.folder import RUN, anything_measured, read_run
from finemoe_cli.evaluation.plan import DEFAULTS, Plan, make_plan
from finemoe_cli.evaluation.prompts import HUB, SAMPLE
from finemoe_cli.models import ensure_model
from finemoe_cli.output import Output
from offload.errors import ConfigError
from profiles.paths import runs_dir
from profiles.settings import flag_name
from ui.text import many


def all_asked(given: Mapping[str, Any], path: Path, *, resumed: bool) -> dict[str, Any]:
    """All options: of a run that is at `path` already those it was begun with, which the given ones must equal.

    A run that ended before anything was measured binds nobody: the given ones take the place of its own.

    Args:
        resumed: Whether options that are not given are that run's in any case.
    """
    said = {name: value for name, value in given.items() if value is not None}
    if not (path / RUN).exists():
        return dict(DEFAULTS) | said
    begun: dict[str, Any] = read_run(path)["config"]["asked"]
    if not anything_measured(path):
        return (begun if resumed else dict(DEFAULTS)) | said
    for name, value in said.items():
        if begun[name] != value:
            before = "without it" if begun[name] is None else f"with {begun[name]}"
            raise ConfigError(
                f"{flag_name(name)} is {value}, and the run in {path} was begun {before}",
                "go on as it was begun, or choose another folder",
            )
    return begun


def settle(asked: Mapping[str, Any], output: Output) -> Plan:
    """The plan of what is asked; what has to be said of its prompts is said.

    Raises:
        FinemoeError: Something cannot be used.
    """
    plan = make_plan(asked, lambda name: ensure_model(name, output))
    prompts = plan.prompts
    if prompts.note:
        output.warn(prompts.note)
    tell_skipped(output, prompts.path, prompts.skipped, prompts.skipped_rows, "summary.json")
    source = f"{prompts.source} {prompts.path}".rstrip()
    seeds = f", of each of {len(plan.draws)} seeds" if len(plan.draws) > 1 else ""
    history, test = len(plan.draws[0].history), len(plan.draws[0].test)
    learning = f"{many(history, 'conversation')} to learn from, {test} to test with"
    if not history:
        learning = f"{many(test, 'conversation')} to test with, and none to learn from before"
    output.note(f"prompts: {source}; {learning}{seeds}")
    return plan


def absolute_data(dataset: str | None, data: Path | None) -> str | None:
    """The file that prompts are read from, named or given as the data set itself; None for none."""
    if data is None and dataset is not None and dataset not in (SAMPLE, *HUB):
        data = Path(dataset)
        if not data.exists():
            known = ", ".join((SAMPLE, *HUB))
            raise ConfigError(f"there is no dataset '{dataset}'", f"{known}, or a file")
    return None if data is None else str(data.absolute())


def absolute_arrivals(arrivals: str | None) -> str | None:
    """`arrivals`, which a run may go on with from another folder where it is a file."""
    return str(Path(arrivals).absolute()) if arrivals is not None and Path(arrivals).is_file() else arrivals


def new_folder() -> Path:
    """Where a run goes that was given no folder."""
    name = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return next(
        path
        for path in (runs_dir() / (f"{name}-{number}" if number else name) for number in range(1000))
        if not path.exists()
    )
