"""Modules of this project run in processes of their own: the same Python, and the same source tree."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from offload.telemetry.log import logger

_PR_SET_PDEATHSIG = 1
_ROOT = str(Path(__file__).parents[1])


def child_command(module: str, *arguments: str) -> list[str]:
    """What runs `module`. What lies in the folder that the user happens to be in is nothing to import (``-P``)."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`env`, in which this very source tree is found even where it is not installed."""
    if _ROOT in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(env)
    return {**env, "PYTHONPATH": os.pathsep.join(filter(None, (_ROOT, env.get("PYTHONPATH"))))}


def run_child(module: str, *arguments: str) -> str:
    """Run `module` to its end. Returns why it failed, in its own last words; empty if it did not."""
    return _run(child_command(module, *arguments))


def run_code(code: str) -> str:
    """Run a line of Python to its end. Returns as `run_child`."""
    return _run([sys.executable, "-P", "-c", code])


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    if not done.returncode:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def ends_with_parent(parent: int, how: signal.Signals = signal.SIGKILL) -> bool:
    """Have the kernel end this process when its parent ends, however that does. For the child to call.

    Args:
        parent: The parent's process id, as the parent says it.
        how: The signal that comes then.

    Returns:
        Whether the parent is still there; if not, there is nobody to work for.
    """
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, how):
        logger.warning("the end of the parent process will not be told: %s", os.strerror(ctypes.get_errno()))
    return os.getppid() == parent
