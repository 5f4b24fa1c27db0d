"""What figures are drawn of: folders of evaluations, and traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finemoe_cli.evaluation.folder import RUN, Row, RunFolder
from finemoe_cli.evaluation.routing import RoutingRecord, read_routing, routing_of
from finemoe_cli.evaluation.summary import summarise
from offload.errors import ConfigError, DamagedFile, NotFound
from offload.trace.file import Trace
from offload.trace.recall import Recall, recall_by_distance

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Combination:
    """A policy with a budget and a seed, and what it came to.

    Attributes:
        name: As the run calls it.
        place: The budget's name: a profile, or what was given.
        metrics: As in ``summary.json``.
        rows: Its requests that were answered.
    """

    name: str
    policy: str
    place: str
    metrics: Mapping[str, Any]
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Source:
    """A run or a trace.

    Attributes:
        label: What its data are, and where two would be called the same, its file too.
        path: Where it is.
        combinations: Of a run, those of which requests were answered; none of a trace.
        routing: What the routers chose; None if that is not known.
        recall: How well later layers are foreseen; None if that is not known.
    """

    label: str
    path: Path
    combinations: Sequence[Combination]
    routing: RoutingRecord | None
    recall: Recall | None

    @property
    def places(self) -> list[str]:
        """Budgets, the smallest first."""
        slots: dict[str, int] = {}
        for one in self.combinations:
            slots[one.place] = max(slots.get(one.place, 0), one.metrics["memory"]["slots"] or 0)
        return sorted(slots, key=lambda place: slots[place])

    @property
    def policies(self) -> list[str]:
        """In the order of the run."""
        return list(dict.fromkeys(one.policy for one in self.combinations))

    def of(self, policy: str, place: str) -> list[Combination]:
        """The combinations of a policy and a budget: one for each seed."""
        return [one for one in self.combinations if (one.policy, one.place) == (policy, place)]


def read_sources(paths: Sequence[Path], progress: Progress, *, recall: bool) -> list[Source]:
    """Runs and traces, with labels that differ.

    Args:
        progress: Told of the stage ``foresee``, in requests.
        recall: Whether it is wanted of traces, which takes longer than all the rest.

    Raises:
        NotFound: There is nothing at a path.
        ConfigError: There is something else.
        StorageError: It is damaged, or cannot be read.
        TraceError: A trace is damaged.
    """
    return labelled([read_source(path, progress, recall=recall) for path in paths])


def labelled(sources: Sequence[Source]) -> list[Source]:
    """The same with labels that differ."""
    labels = [one.label for one in sources]
    names = [f"{one.label}, {one.path.name}" for one in sources]
    for known in (labels, names):
        if len(set(known)) == len(known):
            return [replace(one, label=label) for one, label in zip(sources, known, strict=True)]
    return [replace(one, label=f"{one.label}, {one.path}") for one in sources]


def read_source(path: Path, progress: Progress, *, recall: bool) -> Source:
    """One of them; see `read_sources`."""
    if not path.exists():
        raise NotFound(f"there is nothing at {path}", "give the folder that finemoe eval wrote, or a trace")
    if not path.is_dir():
        return _trace(path, progress, recall=recall)
    if not (path / RUN).exists():
        raise ConfigError(f"{path} is not the folder of a run", "give the folder that finemoe eval wrote")
    folder = RunFolder(path)
    try:
        return run_source(path, summarise(folder), folder.rows())
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{path / RUN} is damaged", "give another run") from error


def run_source(path: Path, summary: Mapping[str, Any], rows: Iterable[Row]) -> Source:
    """A run whose summary and rows are at hand.

    Raises:
        StorageError: Its routing cannot be read, or is damaged.
    """
    answered: dict[str, list[Row]] = {}
    for row in rows:
        if "error" not in row:
            answered.setdefault(row["combination"], []).append(row)
    combinations = [
        Combination(one["name"], one["policy"], one["profile"] or one["budget"], one, answered[one["name"]])
        for one in summary["combinations"]
        if one["name"] in answered
    ]
    data = summary["data"]
    label = {"bundled sample": "sample", "file": Path(data["path"]).stem}.get(data["source"], data["dataset"])
    return Source(label, path, combinations, read_routing(path), None)


def _trace(path: Path, progress: Progress, *, recall: bool) -> Source:
    with Trace.open(path) as trace:
        model = trace.model
        routing = routing_of(trace, model.layers, model.experts, model.top_k)
        found = recall_by_distance(trace, progress) if recall else None
    return Source(path.stem, path, [], routing, found)
