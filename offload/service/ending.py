"""Why a process ended, in words."""

from __future__ import annotations

import signal
from pathlib import Path


def ended_because(status: int, last_line: str, memory_ran_out: bool) -> str:
    """One line for a process that ended unasked.

    Args:
        status: As `subprocess` gives it: negative for a signal.
        last_line: The last that it said on stderr.
        memory_ran_out: Whether the kernel has killed something for want of memory meanwhile.
    """
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        if status == -signal.SIGKILL:
            return f"the engine was killed by {name}: out of memory" + ("" if memory_ran_out else "?")
        return f"the engine was killed by {name}"
    said = f": {last_line[:300]}" if last_line else ""
    return f"the engine ended with status {status}{said}"


def out_of_memory_kills(
    groups: Path = Path("/proc/self/cgroup"),
    mount: Path = Path("/sys/fs/cgroup"),
    host: Path = Path("/proc/vmstat"),
) -> int:
    """How often the kernel has killed a process for want of memory: in this one's control group, else anywhere.

    0 where it does not say.
    """
    for path in [*_event_files(groups, mount), host]:
        try:
            rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        except (OSError, ValueError):
            continue
        for row in rows:
            if len(row) == 2 and row[0] == "oom_kill" and row[1].isdigit():
                return int(row[1])
    return 0


def _event_files(groups: Path, mount: Path) -> list[Path]:
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        group = group.lstrip("/")
        # A container sees its own group at the root, whatever its name.
        if number == "0" and not controllers:
            found += [root / name / "memory.events" for root in (mount, mount / "unified") for name in (group, "")]
        elif "memory" in controllers.split(","):
            found += [mount / "memory" / name / "memory.oom_control" for name in (group, "")]
    return found
