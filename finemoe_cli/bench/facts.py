"""What was measured, and with what: the model, the machine, the versions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finemoe_cli.evaluation.surroundings import machine, versions
from offload.models.spec import BYTES_PER_WEIGHT, read_spec
from offload.models.synthetic import read_card
from offload.store.safetensors_index import CheckpointIndex
from offload.units import format_bytes


@dataclass(frozen=True, slots=True)
class Facts:
    """See the module.

    Attributes:
        model: Its name.
        extent: Of a part of a model, how much of it: ``4 of 24 layers``; empty for a whole one.
        model_type / tensor_bytes / parameters: Its family, bytes and weights.
        versions / machine: By name.
    """

    model: str
    extent: str
    model_type: str
    tensor_bytes: int
    parameters: int
    versions: dict[str, str | None]
    machine: dict[str, Any]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """For people."""
        extent = f", {self.extent}" if self.extent else ""
        found = ", ".join(f"{name} {number}" for name, number in self.versions.items() if number)
        memory = format_bytes(self.machine["memory_bytes"])
        return [
            (
                "model",
                f"{self.model}, {self.model_type}{extent}, {self.parameters / 1e9:.2f} B parameters, "
                f"{format_bytes(self.tensor_bytes)}",
            ),
            ("machine", f"{self.machine['cpu']}, {self.machine['cpus']} CPUs, {memory}"),
            ("versions", found),
        ]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    @property
    def flat(self) -> dict[str, Any]:
        """For CSV."""
        return {
            "model": self.model,
            "extent": self.extent,
            "tensor_bytes": self.tensor_bytes,
            "finemoe": self.versions["finemoe"],
            "torch": self.versions["torch"],
            "cpu": self.machine["cpu"],
        }


def facts_of(folder: Path) -> Facts:
    """Of the model in ``folder``, on this machine.

    Raises:
        ModelNotFound, UnsupportedModel, CorruptCheckpoint: It cannot be run.
    """
    spec = read_spec(folder)
    tensor_bytes = sum(entry.nbytes for entry in CheckpointIndex.open(folder).tensors.values())
    card = read_card(folder)
    return Facts(
        model=spec.name,
        extent=card.extent if card and card.layers < card.all_layers else "",
        model_type=spec.architecture.model_type,
        tensor_bytes=tensor_bytes,
        parameters=tensor_bytes // BYTES_PER_WEIGHT,
        versions=versions(),
        machine=machine(),
    )
