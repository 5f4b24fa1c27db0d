"""What ``finemoe plan`` says of a model: its sizes, and what to expect at each profile."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from typing import Any

from finemoe_cli.models import is_path
from finemoe_cli.output import Output
from offload.errors import ModelNotFound
from offload.forecast import Forecast, Kernels, MachineRates, fixed_costs, forecast
from offload.hits import HitCurve, known_curve
from offload.models.spec import ModelSpec, read_spec
from offload.sizes import ModelSizes
from offload.telemetry.probes import HostProbe
from offload.units import format_bytes
from profiles.budget import Budget
from profiles.calibration import Calibration
from profiles.hit_curves import kept_curve
from profiles.models import find_model, installed_models, is_demo, is_repo
from profiles.paths import existing_parent, models_dir
from profiles.settings import Resolved
from profiles.store import PRESETS, load_profile


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is planned for.

    Attributes:
        name: As it was named.
        sizes: Its bytes.
        commit: Of a model on the hub; None for one that is here.
        hits: What is known of its routing.
    """

    name: str
    sizes: ModelSizes
    commit: str | None
    hits: HitCurve


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is to say.

    Attributes:
        subject: Of which model.
        label: What ``chosen`` is for: a profile, or a budget.
        context / kernels / policy: What the memory and the speed are for.
        measured: This machine's rates.
        memory_bytes: Memory that a process may take.
        chosen: The settings in force, or those on the command line.
        profiles: Name, budget and forecast of each preset, and of the user's profile in force.
    """

    subject: Subject
    label: str
    context: int
    kernels: Kernels
    policy: str
    measured: Calibration
    memory_bytes: int
    chosen: Forecast
    profiles: tuple[tuple[str, Budget, Forecast], ...]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        spec = self.subject.sizes.spec
        return {
            "model": self.subject.name,
            "commit": self.subject.commit,
            "model_type": spec.architecture.model_type,
            "verdict": self.chosen.verdict,
            "reason": self.chosen.reason,
            "sizes": self.subject.sizes.to_dict(),
            "context": self.context,
            "kv_bytes": self.context * spec.kv_bytes_per_token,
            "kernels": self.kernels,
            "precision": self.subject.sizes.precision,
            "policy": self.policy,
            "hits": {"source": self.subject.hits.source, "points": [list(one) for one in self.subject.hits.points]},
            "memory_bytes": self.memory_bytes,
            "fixed": asdict(fixed_costs(self.subject.sizes, self.context, self.kernels, self.measured.lanes)),
            "plan": {"for": self.label, **self.chosen.to_dict()},
            "profiles": [
                {"profile": name, "budget": str(budget), **made.to_dict()} for name, budget, made in self.profiles
            ],
            "calibration": self.measured.to_dict(),
        }


def find_subject(name: str, revision: str | None, output: Output) -> Subject:
    """The model called ``name``: here, or else on the hub.

    Raises:
        ModelNotFound: Neither.
    """
    here = any(name in (model.name, model.place.name) for model in installed_models())
    if not (here or is_path(name)) or revision is not None:
        if is_demo(name):
            raise ModelNotFound("the demo is not here yet", "build it: finemoe pull demo")
        if is_repo(name):
            return _on_hub(name, revision, output)
    folder = find_model(name)
    from offload.store.open_store import open_store
    from offload.store.safetensors_index import CheckpointIndex

    spec = read_spec(folder)
    index = CheckpointIndex.open(folder)
    store = open_store(spec, index)
    store.close()
    tensor_bytes = sum(entry.nbytes for entry in index.tensors.values())
    sizes = ModelSizes(spec, tensor_bytes, 0, store.slot_bytes, store.staging_bytes)
    return Subject(name, sizes, None, kept_curve(spec, index) or known_curve(spec))


def _on_hub(repo: str, revision: str | None, output: Output) -> Subject:
    from offload.models.hub import describe

    with output.waiting("asking the hub"):
        model = describe(repo, revision)
    sizes = ModelSizes.unread(model.spec, model.tensor_bytes, model.download_bytes)
    return Subject(repo, sizes, model.commit, known_curve(model.spec))


def make_plan(subject: Subject, resolved: Resolved, measured: Calibration) -> Plan:
    """The plan of a model at every profile, with the settings in force and this machine's rates."""
    spec, settings = subject.sizes.spec, resolved.settings
    assert settings.budget is not None
    subject = replace(subject, sizes=subject.sizes.packed_as(settings.precision))
    kernels = kernels_of(spec, settings.kernels)
    context = min(settings.context, spec.max_context)
    rates = machine_rates(measured, settings.lanes)

    def at(budget: Budget) -> Forecast:
        return forecast(
            subject.sizes,
            rates,
            context=context,
            kernels=kernels,
            policy=settings.policy,
            hits=subject.hits,
            budget_bytes=budget.total_bytes,
            experts_fraction=budget.experts_fraction,
        )

    names = dict.fromkeys([*PRESETS, resolved.profile.name])
    profiles = tuple((name, load_profile(name).budget, at(load_profile(name).budget)) for name in names)
    chosen = at(settings.budget)
    if chosen.verdict == "does not fit":
        better = [name for name, _, made in profiles if made.verdict != "does not fit"]
        if better:
            chosen = replace(chosen, reason=f"{chosen.reason}; it fits with --profile {better[-1]}")
    else:
        chosen = _on_this_disk(subject.sizes, chosen)
    from_profile = resolved.origins["budget"].kind == "profile"
    label = f"profile {resolved.profile.name}" if from_profile else f"budget {settings.budget}"
    return Plan(subject, label, context, kernels, settings.policy, measured, rates.memory_bytes, chosen, profiles)


def _on_this_disk(sizes: ModelSizes, made: Forecast) -> Forecast:
    """``made``, unless what would have to be downloaded is more than the disk can take."""
    folder = existing_parent(models_dir())
    free = shutil.disk_usage(folder).free
    if sizes.download_bytes <= free:
        return made
    reason = f"its download takes {format_bytes(sizes.download_bytes)}, and {folder} has {format_bytes(free)} free"
    return Forecast("does not fit", reason, None)


def kernels_of(spec: ModelSpec, setting: str) -> Kernels:
    """The decode kernels that run, given the setting."""
    fits = spec.architecture.fast_kernels and spec.num_layers == spec.decoder_layers
    return "fast" if setting != "reference" and fits else "reference"


def machine_rates(measured: Calibration, lanes: int | None) -> MachineRates:
    """The rates of this machine, with its memory; ``lanes`` where they were chosen."""
    memory = HostProbe().read().usable_bytes
    assert memory is not None
    return MachineRates(
        disk_rates=measured.disk_rates,
        lanes=lanes or measured.lanes,
        kernel_bytes_per_s=measured.kernel_bytes_per_s,
        memory_bytes_per_s=measured.memory_bytes_per_s,
        prompt_bytes_per_s=measured.prompt_bytes_per_s,
        flops=measured.flops,
        memory_bytes=memory,
    )
