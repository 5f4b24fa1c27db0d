"""A sweep from its beginning to its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemoe_cli.bench.engines import Progress
from finemoe_cli.bench.facts import Facts, facts_of
from finemoe_cli.bench.plan import Configuration, Workload, configurations
from finemoe_cli.bench.samples import Measured
from finemoe_cli.bench.sweep import Point, as_csv, points_of
from finemoe_cli.output import Output
from finemoe_cli.plan import find_subject, kernels_of, machine_rates
from offload.errors import ConfigError, FinemoeError
from offload.files import storage_errors
from offload.forecast import PROMPT_TOKENS, Forecast, forecast
from offload.hits import measured_curve
from offload.models.spec import read_spec
from offload.store.safetensors_index import CheckpointIndex
from profiles.calibration import Calibration, calibrate
from profiles.files import write_atomically
from profiles.hit_curves import keep_curve


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a sweep has found.

    Attributes:
        calibration: Of this machine, just before.
        hits_source: Where the forecast's hit rates are from.
    """

    facts: Facts
    workload: Workload
    policy: str
    precision: str
    kernels: str
    calibration: Calibration
    hits_source: str
    points: Sequence[Point]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return self.facts.to_dict() | {
            "workload": self.workload.to_dict(),
            "policy": self.policy,
            "precision": self.precision,
            "kernels": self.kernels,
            "calibration": self.calibration.to_dict(),
            "hits_source": self.hits_source,
            "points": [point.to_dict() for point in self.points],
        }


class Sweep:
    """Budgets to be measured one after the other.

    Args:
        asked: Settings by name; ``budget`` is a list with commas.

    Attributes:
        recorded: The one whose routing is kept: the one that takes the least time, as it has the most memory.

    Raises:
        ConfigError: Several policies or precisions are asked for, or something cannot be used.
    """

    def __init__(self, asked: Mapping[str, Any], folder: Path, *, generate: int, repeats: int, seed: int) -> None:
        if not generate:
            raise ConfigError("a sweep generates tokens", "give -n at least 2")
        self.workload = Workload(prompt=PROMPT_TOKENS, generate=generate, repeats=repeats, seed=seed, cold=False)
        self.configurations = configurations(asked, folder, self.workload)
        if len({(one.policy, one.precision) for one in self.configurations}) > 1:
            raise ConfigError("a sweep has one policy and one precision", "compare several with: finemoe bench")
        self.recorded = self.configurations[-1]
        self._folder = folder
        self._facts = facts_of(folder)
        self._subject = find_subject(str(folder.absolute()), None, Output(quiet=True))
        self._calibration: Calibration | None = None
        self._forecasts: list[Forecast] = []
        self._measured: list[tuple[Configuration, Measured]] = []

    def forecast(self, progress: Progress) -> None:
        """Calibrate the machine anew, and say what is to be expected of each budget."""
        sizes = self._subject.sizes.packed_as(self.recorded.engine.precision)
        self._calibration = calibrate(sizes.spec, progress)
        for one in self.configurations:
            self._forecasts.append(
                forecast(
                    sizes,
                    machine_rates(self._calibration, one.engine.lanes),
                    context=min(one.engine.context, sizes.spec.max_context),
                    kernels=kernels_of(sizes.spec, one.engine.kernels),
                    policy=one.policy,
                    hits=self._subject.hits,
                    budget_bytes=one.engine.budget_bytes,
                    experts_fraction=one.engine.experts_fraction,
                )
            )

    def take(self, one: Configuration, measured: Measured) -> None:
        """What was measured of a configuration.

        Raises:
            FinemoeError: Its tokens are not those of the ones before.
        """
        if self._measured:
            before = self._measured[0][1].answers
            if any(a.token_ids != b.token_ids for a, b in zip(before, measured.answers, strict=True)):
                raise FinemoeError(
                    f"{one.name} generated other tokens than {self._measured[0][0].name}",
                    "this is a fault of finemoe: no budget may change the text",
                )
        self._measured.append((one, measured))

    def finish(self) -> SweepResult:
        """All points; and what was seen of the routing is kept for later forecasts.

        Raises:
            StorageError: It cannot be kept.
        """
        assert self._calibration is not None
        spec = read_spec(self._folder)
        routing = self._measured[-1][1].routing
        points = points_of(self.workload, self._measured, self._forecasts, routing, spec.num_experts)
        tokens = sum(len(answer) for answer in routing)
        curve = measured_curve(routing, spec.num_experts, spec.total_experts)
        keep_curve(spec, CheckpointIndex.open(self._folder), curve, tokens)
        opened = self._measured[-1][1].opened
        return SweepResult(
            facts=self._facts,
            workload=self.workload,
            policy=opened.policy,
            precision=self.recorded.precision,
            kernels=opened.kernels,
            calibration=self._calibration,
            hits_source=self._subject.hits.source,
            points=points,
        )


def write_files(result: SweepResult, folder: Path, kinds: Sequence[str]) -> list[Path]:
    """``sweep.csv``, ``sweep.json`` and the figure in each of `kinds`; returns their paths.

    Raises:
        StorageError: One of them cannot be written.
    """
    with storage_errors("the sweep", folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "sweep.csv", folder / "sweep.json"]
    write_atomically(paths[0], as_csv(result.points))
    write_atomically(paths[1], json.dumps(result.to_dict(), indent=1) + "\n")

    from finemoe_cli.figures.canvas import render
    from finemoe_cli.figures.sweep import draw_sweep

    extent = f", {result.facts.extent}" if result.facts.extent else ""
    drawing = draw_sweep(result.points, f"{result.facts.model}{extent}, {result.policy}, {result.precision}")
    for kind in kinds:
        paths.append(folder / f"sweep.{kind}")
        write_atomically(paths[-1], render(drawing.figure, kind, "sweep"))
    return paths
