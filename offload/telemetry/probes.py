"""Memory as the operating system and the driver see it: of this process, of the machine, of a GPU.

A probe never raises. What cannot be read is ``None``, and ``reason`` says why in one line: a machine without
a driver, with an old one, or with a GPU that has just been lost is a machine to run on, not an error.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil

Reading = TypeVar("Reading", covariant=True)


class MemoryProbe(Protocol[Reading]):
    """Something that can be read again and again, from any thread, and does not raise."""

    def read(self) -> Reading:
        """What is the case now."""
        ...


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """Resident memory of a process, in bytes.

    Attributes:
        rss_bytes: Now.
        peak_bytes: The most since the process began.
        anonymous_bytes: The part of ``rss_bytes`` that no file backs.
        reason: Why something is None.
    """

    rss_bytes: int | None = None
    peak_bytes: int | None = None
    anonymous_bytes: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HostReading:
    """Memory of the machine, in bytes.

    Attributes:
        total_bytes: Of the machine.
        available_bytes: What a process can still take without swapping, a control group's limit included.
        limit_bytes: The smallest limit of the control groups that this process is in; None without one.
        limit_source: The file that sets it.
        reason: Why something is None.
    """

    total_bytes: int | None = None
    available_bytes: int | None = None
    limit_bytes: int | None = None
    limit_source: str = ""
    reason: str = ""

    @property
    def usable_bytes(self) -> int | None:
        """The most that this process could ever have."""
        known = [count for count in (self.total_bytes, self.limit_bytes) if count is not None]
        return min(known, default=None)


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """Memory of a GPU, in bytes.

    Attributes:
        name: As the driver calls it.
        driver: The driver's version.
        total_bytes / used_bytes / free_bytes: Of the whole device, whoever uses it.
        process_bytes: What this process uses. Drivers leave it out in many containers.
        reason: Why something is None.
    """

    name: str | None = None
    driver: str | None = None
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    process_bytes: int | None = None
    reason: str = ""


class ProcessProbe:
    """Resident memory of this process, from ``/proc``, or through psutil where there is none.

    Args:
        status: The kernel's account of the process.
    """

    def __init__(self, status: Path = Path("/proc/self/status")) -> None:
        self._status = status

    def read(self) -> ProcessReading:
        """See :class:`MemoryProbe`."""
        try:
            fields = _kib_fields(self._status.read_text(encoding="ascii", errors="replace"))
            return ProcessReading(fields["VmRSS"], fields["VmHWM"], fields.get("RssAnon"))
        except (OSError, KeyError):
            return _process_through_psutil()


class HostProbe:
    """Memory of this machine and the limits that control groups put on this process.

    Args:
        groups: The kernel's list of the process's control groups.
        mount: Where the control group file systems are.
    """

    def __init__(self, groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> None:
        self._groups = groups
        self._mount = mount

    def read(self) -> HostReading:
        """See :class:`MemoryProbe`."""
        try:
            host = psutil.virtual_memory()
            total, available, reason = int(host.total), int(host.available), ""
        except (OSError, RuntimeError, psutil.Error) as error:
            total, available, reason = None, None, f"the machine's memory cannot be read: {error}"
        limits = [
            limit for limit in _group_limits(self._groups, self._mount) if total is None or limit.bytes < total
        ]
        left = [limit.bytes - limit.used for limit in limits if limit.used is not None]
        if available is not None:
            available = max(0, min([available, *left]))
        if not limits:
            return HostReading(total, available, reason=reason)
        tightest = min(limits, key=lambda limit: limit.bytes)
        return HostReading(total, available, tightest.bytes, str(tightest.source), reason)


class NvmlProbe:
    """Memory of one NVIDIA GPU, through the driver's management library.

    Args:
        device: The GPU's number as the driver counts them, or its UUID. CUDA may count in another order, so
            where a CUDA device is meant, give its UUID.
        nvml: The library's binding; None imports ``pynvml``.
    """

    def __init__(self, device: int | str = 0, nvml: Any = None) -> None:
        self._device = device
        self._nvml = nvml
        self._ready = False

    def read(self) -> DeviceReading:
        """See :class:`MemoryProbe`. After a failure the next reading tries afresh."""
        try:
            nvml = self._library()
        except ImportError as error:
            return DeviceReading(reason=f"the NVML binding is missing: {error}")
        reasons: list[str] = []

        def ask(what: str, question: Callable[[], Any]) -> Any:
            try:
                return question()
            except nvml.NVMLError as error:
                reasons.append(_nvml_reason(nvml, error, what))
            except (OSError, AttributeError, ValueError, UnicodeDecodeError) as error:
                reasons.append(f"{what}: {error}")
            return None

        if not self._ready:
            ask("start", nvml.nvmlInit)
            if reasons:
                return DeviceReading(reason=reasons[0])
            self._ready = True
        driver = ask("driver version", nvml.nvmlSystemGetDriverVersion)
        handle = ask(f"GPU {self._device}", lambda: self._handle(nvml))
        if handle is None:
            self._ready = False
            return DeviceReading(driver=_text(driver), reason=reasons[-1])
        name = ask("name", lambda: nvml.nvmlDeviceGetName(handle))
        memory = ask("memory", lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        processes = ask("memory by process", lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        own = _own_bytes(processes)
        if processes is not None and own is None:
            reasons.append("memory by process: the driver does not list this process")
        if name is None and memory is None:
            self._ready = False
        return DeviceReading(
            name=_text(name),
            driver=_text(driver),
            total_bytes=None if memory is None else int(memory.total),
            used_bytes=None if memory is None else int(memory.used),
            free_bytes=None if memory is None else int(memory.free),
            process_bytes=own,
            reason="; ".join(dict.fromkeys(reasons)),
        )

    def energy_j(self) -> float | None:
        """Joules that the GPU has taken since its driver was loaded, whoever used it; None where none is told."""
        try:
            nvml = self._library()
            if not self._ready:
                nvml.nvmlInit()
                self._ready = True
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle(nvml))) / 1e3
        except Exception:  # Of the binding's, the driver's, the library's: as in `count`.
            return None

    def count(self) -> int:
        """GPUs that the driver knows; 0 where it cannot be asked."""
        try:
            nvml = self._library()
            nvml.nvmlInit()
        except Exception:
            return 0
        try:
            return int(nvml.nvmlDeviceGetCount())
        except nvml.NVMLError:
            return 0

    def _library(self) -> Any:
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        return self._nvml

    def _handle(self, nvml: Any) -> Any:
        if isinstance(self._device, int):
            return nvml.nvmlDeviceGetHandleByIndex(self._device)
        return nvml.nvmlDeviceGetHandleByUUID(self._device)


@dataclass(frozen=True, slots=True)
class _Limit:
    bytes: int
    used: int | None
    source: Path


def _kib_fields(status: str) -> dict[str, int]:
    fields = {}
    for line in status.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            fields[name] = int(words[0]) * 1024
    return fields


def _process_through_psutil() -> ProcessReading:
    # Linux counts ru_maxrss in KiB, macOS in bytes.
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    try:
        return ProcessReading(int(psutil.Process().memory_info().rss), peak, reason="/proc is not there")
    except (OSError, psutil.Error) as error:
        return ProcessReading(None, peak, reason=f"resident memory cannot be read: {error}")


def _group_limits(groups: Path, mount: Path) -> list[_Limit]:
    """The memory limits of the process's control groups and of all that they are in."""
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    limits: list[_Limit] = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            for root in (mount, mount / "unified"):
                limits += _limits_upward(root, group, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            limits += _limits_upward(mount / "memory", group, *names)
    return limits


def _limits_upward(root: Path, group: str, limit: str, usage: str, reclaimable: str) -> list[_Limit]:
    """Limits from ``group`` up to ``root``. A container sees its own group at the root, whatever its name."""
    folder = root / group.lstrip("/")
    folders = [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]
    found = []
    for place in folders:
        most = _number(place / limit)
        if most is not None:
            used = _number(place / usage)
            if used is not None:
                used -= _stat(place / "memory.stat", reclaimable)
            found.append(_Limit(most, used, place / limit))
    return found


def _number(path: Path) -> int | None:
    """The number in ``path``; None if there is none, as where it says ``max``."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _stat(path: Path, field: str) -> int:
    try:
        rows = (line.split() for line in path.read_text(encoding="ascii").splitlines())
        return next((int(row[1]) for row in rows if len(row) == 2 and row[0] == field), 0)
    except (OSError, ValueError):
        return 0


def _own_bytes(processes: Any) -> int | None:
    own = [p.usedGpuMemory for p in processes or () if p.pid == os.getpid() and p.usedGpuMemory is not None]
    return sum(int(count) for count in own) if own else None


def _nvml_reason(nvml: Any, error: Exception, what: str) -> str:
    known: tuple[tuple[str, str], ...] = (
        ("NVMLError_LibraryNotFound", "no NVIDIA driver is installed"),
        ("NVMLError_DriverNotLoaded", "the NVIDIA driver is not loaded"),
        ("NVMLError_LibRmVersionMismatch", "the NVIDIA driver was updated; restart the machine"),
        ("NVMLError_GpuIsLost", "the GPU is lost: it fell off the bus or is in reset"),
        ("NVMLError_NoPermission", f"{what}: not permitted"),
        ("NVMLError_FunctionNotFound", f"{what}: this driver is too old to say"),
        ("NVMLError_NotSupported", f"{what}: this GPU does not say"),
        ("NVMLError_InvalidArgument", f"{what}: there is no such GPU"),
        ("NVMLError_NotFound", f"{what}: there is no such GPU"),
    )
    for name, reason in known:
        kind = getattr(nvml, name, None)
        if kind is not None and isinstance(error, kind):
            return reason
    return f"{what}: {error}"


def _text(value: str | bytes | None) -> str | None:
    """``value`` as text; older bindings give bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
