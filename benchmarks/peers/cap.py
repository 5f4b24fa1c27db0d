"""A hard limit on the memory of a whole process, page cache included.

A control group is made below the one that this process is in (version 1 or 2), the limit is written, and the
command puts itself into it before it becomes what is measured. Where that is refused, a helper process takes and
locks the rest of the machine's memory instead; then the limit holds for everything that runs, and the result says
so.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

_ROOT = Path("/sys/fs/cgroup")
_ENTER = "import os,sys; open(sys.argv[1],'w').write(str(os.getpid())); os.execvp(sys.argv[2],sys.argv[2:])"
_LIMITS = {1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), 2: ("memory.max", "memory.swap.max")}
_PEAKS = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}


class CapRefused(Exception):
    """No limit can be had; the message says why."""


class Cap:
    """A limit of `limit` bytes, for the length of a ``with`` block.

    Args:
        how: ``cgroup``, ``balloon`` (memory held by a locked helper process), or ``auto``: the first that works.

    Attributes:
        kind: ``cgroup`` or ``balloon``, once entered.

    Raises:
        CapRefused: On entering: neither works, and why.
    """

    def __init__(self, limit: int, how: str = "auto") -> None:
        self.limit = limit
        self.kind = ""
        self._how = how
        self._version = 0
        self._group: Path | None = None
        self._balloon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Cap:
        try:
            if self._how in ("auto", "cgroup"):
                self._make_group()
                return self
        except OSError as error:
            self._remove_group()
            if self._how == "cgroup":
                raise CapRefused(f"no control group can be made: {error}; try --cap-with balloon") from error
        self._inflate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_group()
        if self._balloon is not None:
            self._balloon.kill()
            self._balloon.wait()

    def command(self, command: Sequence[str]) -> list[str]:
        """`command`, under the limit."""
        if self._group is None:
            return list(command)
        return [sys.executable, "-S", "-c", _ENTER, str(self._group / "cgroup.procs"), *command]

    @property
    def peak_bytes(self) -> int | None:
        """The most that was taken, page cache included; None where only the machine as a whole is limited."""
        if self._group is None:
            return None
        try:
            return int((self._group / _PEAKS[self._version]).read_text())
        except OSError:
            return None  # Older kernels keep no peak for version 2.

    def _make_group(self) -> None:
        self._version, parent = _memory_controller()
        group = parent / f"finemoe-{os.getpid()}"
        group.mkdir(exist_ok=True)
        self._group = group
        limit, swap = _LIMITS[self._version]
        (group / limit).write_text(str(self.limit))
        try:
            (group / swap).write_text(str(self.limit if self._version == 1 else 0))
        except OSError:
            pass  # Swap is not counted on this machine.
        self.kind = "cgroup"

    def _remove_group(self) -> None:
        if self._group is None:
            return
        for _ in range(100):
            try:
                self._group.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.1)  # The processes in it are still ending.
        self._group = None

    def _inflate(self) -> None:
        self._balloon = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.cap", str(self.limit)], stdout=subprocess.PIPE
        )
        assert self._balloon.stdout is not None
        if self._balloon.stdout.readline().strip() != b"full":
            self._balloon.wait()
            raise CapRefused(
                "neither a control group nor locked memory is allowed; run as root, or raise ulimit -l"
            )
        self.kind = "balloon"


def _memory_controller() -> tuple[int, Path]:
    """The version of control groups and the group that a new one can be made in."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            inside = _ROOT / "memory" / path.lstrip("/")
            return 1, inside if inside.exists() else _ROOT / "memory"
        if not controllers and (_ROOT / "cgroup.controllers").exists():
            group = _ROOT / path.lstrip("/")
            if "memory" not in (group / "cgroup.subtree_control").read_text().split():
                (group / "cgroup.subtree_control").write_text("+memory")
            return 2, group
    raise FileNotFoundError("there is no memory controller")


def _hold(leave: int) -> None:
    """Lock all memory but `leave` bytes, say so, and wait to be killed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL)
    held = []
    while (rest := psutil.virtual_memory().available - leave) > 16 << 20:
        piece = mmap.mmap(-1, min(rest, 256 << 20) // mmap.PAGESIZE * mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(piece))
        if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(piece))) != 0:
            print("refused", flush=True)
            return
        held.append(piece)
    print("full", flush=True)
    signal.pause()


if __name__ == "__main__":
    _hold(int(sys.argv[1]))
