"""What ``finemoe doctor`` looks at: one function for each part of the machine, each giving its findings.

Nothing heavy is imported unless there is a GPU to ask torch about.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from offload.errors import FinemoeError
from offload.telemetry.probes import HostProbe, NvmlProbe
from offload.units import GIB, MIB, format_bytes
from profiles.models import demo_folder, find_model, is_demo
from profiles.paths import (
    cache_dir,
    check_folder,
    config_file,
    existing_parent,
    kernels_dir,
    models_dir,
    packs_dir,
)
from profiles.settings import Resolved, resolve

PACKAGES = ("torch", "transformers", "accelerate", "numba", "numpy", "safetensors", "tokenizers", "textual")
"""Whose versions matter in a report."""

_LEAST_AVAILABLE = GIB
_LEAST_DISK = 2 * GIB
_SLOW_DISK = 200 * MIB


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        status: ``ok``, ``warn`` (works, worse than it could) or ``fail`` (finemoe cannot run).
        name: What was looked at.
        text: What was found.
        data: The same in numbers, for ``--json``.
    """

    status: str
    name: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at: this machine, for one model.

    Attributes:
        resolved: The settings in force; None if they cannot be read.
        problem: Why not.
        model: Name or path of the model.
    """

    resolved: Resolved | None
    problem: FinemoeError | None
    model: str


def subject(model: str | None) -> Subject:
    """The subject for ``--model``; broken settings are a finding, not an end."""
    try:
        resolved = resolve({"model": model})
    except FinemoeError as error:
        return Subject(None, error, model or "demo")
    return Subject(resolved, None, resolved.settings.model)


def examine(it: Subject) -> Iterator[Finding]:
    """Every finding, in the order in which they are told; the slow ones last."""
    looks: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
        _versions,
        _settings,
        _memory,
        _gpu,
        _folders,
        _terminal,
        _model,
    )
    for look in looks:
        yield from look(it)


def _versions(_: Subject) -> Iterator[Finding]:
    found = {name: _version(name) for name in PACKAGES}
    missing = [name for name, number in found.items() if number is None]
    python = platform.python_version()
    yield Finding("ok", "python", f"{python} on {platform.platform(terse=True)}", {"version": python})
    text = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    yield Finding("ok", "packages", text, dict(found))
    if missing:
        yield Finding("fail", "packages", f"not installed: {', '.join(missing)}", {"missing": missing})


def _settings(it: Subject) -> Iterator[Finding]:
    if it.problem is not None:
        yield Finding("fail", "settings", it.problem.message)
        return
    assert it.resolved is not None
    profile, path = it.resolved.profile, config_file()
    where = str(path) if path.exists() else "defaults; no settings file"
    budget = it.resolved.settings.budget
    assert budget is not None
    yield Finding(
        "ok",
        "settings",
        f"{where}; profile {profile.name}, budget {budget.describe()}",
        {"file": str(path), "profile": profile.name, "budget": str(budget)},
    )


def _memory(_: Subject) -> Iterator[Finding]:
    host = HostProbe().read()
    if host.total_bytes is None or host.available_bytes is None:
        yield Finding("warn", "memory", host.reason, asdict(host))
        return
    text = f"{format_bytes(host.available_bytes)} available of {format_bytes(host.total_bytes)}"
    if host.limit_bytes is not None:
        text += f"; limited to {format_bytes(host.limit_bytes)} by {host.limit_source}"
    status = "ok" if host.available_bytes >= _LEAST_AVAILABLE else "warn"
    yield Finding(status, "memory", text, asdict(host))


def _gpu(_: Subject) -> Iterator[Finding]:
    probe = NvmlProbe()
    reading = probe.read()
    data: dict[str, Any] = {"gpus": probe.count(), **asdict(reading)}
    if reading.name is None:
        yield Finding("ok", "device", f"cpu, {_cpu_text()}", {"device": "cpu", "cpus": _cpus()})
        yield Finding("ok", "gpu", f"none ({reading.reason})", data)
        return
    usable, why = _cuda()
    if usable:
        yield Finding("ok", "device", f"cuda: {reading.name}", {"device": "cuda"})
    else:
        yield Finding("warn", "device", f"cpu, {_cpu_text()}: {why}", {"device": "cpu", "cpus": _cpus()})
    text = f"{reading.name}, driver {reading.driver or 'unknown'}"
    if reading.total_bytes is not None and reading.free_bytes is not None:
        text += f", {format_bytes(reading.free_bytes)} free of {format_bytes(reading.total_bytes)}"
    yield Finding("warn" if reading.reason else "ok", "gpu", "; ".join(filter(None, (text, reading.reason))), data)


def _folders(_: Subject) -> Iterator[Finding]:
    folder = cache_dir()
    try:
        check_folder(models_dir())
        check_folder(kernels_dir())
        free = shutil.disk_usage(existing_parent(folder)).free
    except (FinemoeError, OSError) as error:
        yield Finding("warn", "cache", f"{error}; models cannot be pulled", {"path": str(folder)})
        return
    yield Finding(
        "ok" if free >= _LEAST_DISK else "warn",
        "cache",
        f"{folder}, {format_bytes(free)} free",
        {"path": str(folder), "free_bytes": free},
    )


def _terminal(_: Subject) -> Iterator[Finding]:
    from ui.console import can_encode, stdout_console

    terminal = sys.stdout.isatty()
    columns, rows = shutil.get_terminal_size()
    console = stdout_console()
    colour = console.color_system or ("off by NO_COLOR" if os.environ.get("NO_COLOR") else "none")
    unicode = can_encode(sys.stdout, "▀█·✓")
    data = {
        "terminal": terminal,
        "term": os.environ.get("TERM", ""),
        "columns": columns,
        "rows": rows,
        "colour": console.color_system,
        "unicode": unicode,
        "encoding": sys.stdout.encoding,
    }
    if not terminal:
        yield Finding("ok", "terminal", "stdout is not a terminal: plain text", data)
        return
    text = f"{data['term'] or 'TERM is not set'}, {columns} x {rows}, colour {colour}, "
    text += "unicode" if unicode else f"no unicode ({sys.stdout.encoding})"
    good = unicode and columns >= 80 and rows >= 24
    yield Finding(
        "ok" if good else "warn", "terminal", text + ("" if good else "; 80 x 24 with UTF-8 is better"), data
    )


def _model(it: Subject) -> Iterator[Finding]:
    try:
        folder = find_model(it.model)
        if is_demo(it.model) and not _demo_is_complete():
            yield Finding("warn", "model", "demo, not pulled yet: finemoe pull demo", {"path": str(folder)})
            yield Finding("warn", "disk", "measured on a model: pull one first")
            return
        yield from _checkpoint(folder)
    except FinemoeError as error:
        yield Finding("fail", "model", "; ".join(filter(None, (error.message, error.hint))))


def _checkpoint(folder: Path) -> Iterator[Finding]:
    from offload.models.spec import read_spec
    from offload.store.calibrate import measure_read_rate
    from offload.store.open_store import open_store
    from offload.store.safetensors_index import CheckpointIndex

    spec = read_spec(folder)
    store = open_store(spec, CheckpointIndex.open(folder), packs_folder=packs_dir())
    try:
        yield Finding(
            "ok",
            "model",
            f"{spec.name}: {spec.architecture.model_type}, {spec.num_layers} layers of {spec.num_experts} experts, "
            f"{format_bytes(spec.total_experts * spec.expert_bytes)} of experts",
            {
                "path": str(folder),
                "model_type": spec.architecture.model_type,
                "layers": spec.num_layers,
                "experts": spec.num_experts,
                "top_k": spec.top_k,
                "expert_bytes": spec.expert_bytes,
            },
        )
        measured = measure_read_rate(store)
    finally:
        store.close()
    rate = f"{format_bytes(measured.bytes_per_second)}/s"
    rates = ", ".join(f"{each.lanes}: {format_bytes(each.bytes_per_second)}/s" for each in measured.rates)
    yield Finding(
        "ok" if measured.bytes_per_second >= _SLOW_DISK else "warn",
        "disk",
        f"{rate} in reads of {format_bytes(measured.record_bytes)} on {_count(measured.lanes, 'lane')} "
        f"({rates}); {measured.seconds_per_expert * 1e3:.2f} ms an expert",
        measured.as_dict(),
    )
    if store.note:
        yield Finding("warn", "pack", store.note, {"store": store.kind, "note": store.note})
    if measured.direct:
        yield Finding("ok", "direct I/O", "yes: reads go past the page cache", {"direct": True})
    else:
        yield Finding(
            "warn",
            "direct I/O",
            f"no: {store.direct_refused}; reads are buffered and their pages dropped",
            {"direct": False, "direct_refused": store.direct_refused},
        )


def _demo_is_complete() -> bool:
    from offload.models.demo import is_complete

    return is_complete(demo_folder())


def _cuda() -> tuple[bool, str]:
    """Whether torch can use CUDA here, and if not, why."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return False, f"torch cannot be imported: {error}"
    if torch.cuda.is_available():
        return True, ""
    return False, "there is a GPU, but this torch " + (
        "cannot start CUDA" if torch.version.cuda else "was built without CUDA"
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _cpu_text() -> str:
    return _count(_cpus(), "core")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
