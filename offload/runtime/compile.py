"""Compiling the kernels of decoding and of policies, once a machine, in a process of its own.

Compiling takes about half a minute and 300 MiB that no budget should have to hold, so it happens beside the
engine; the engine then takes the compiled code from Numba's cache folder (``NUMBA_CACHE_DIR``). The decode kernels
of a precision are compiled when it is first used, those of policies also without them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from offload.child import run_code
from offload.errors import EngineBroken, StorageError
from offload.files import locked
from offload.precision import BF16, PRECISIONS, Precision

Progress = Callable[[str, int, int], None]

_HERE = Path(__file__).parent
_KERNELS = _HERE / "kernels"
_POLICY_KERNELS = _HERE.parent / "policy" / "kernels"
_SOURCES = (
    *sorted(_KERNELS.glob("*.py")),
    _HERE.parent / "precision.py",
    *sorted(_POLICY_KERNELS.glob("*.py")),
)
_POLICIES = "policies"
_MODULES = {precision: (f"offload.runtime.kernels.{precision}",) for precision in PRECISIONS} | {
    _POLICIES: ("offload.policy.kernels.gates", "offload.policy.kernels.auto")
}
"""What is compiled together: importing it is what compiles it."""


def kernels_compiled(precision: Precision = BF16) -> bool:
    """Whether this version of the kernels was compiled into the cache folder before."""
    return not _missing(precision)


def compile_kernels(progress: Progress | None = None, precision: Precision | None = BF16) -> bool:
    """Compile the kernels of policies and of a precision if that was not done before; whether anything was
    compiled.

    Args:
        precision: None for the kernels of policies alone.

    Raises:
        EngineBroken: The compilation failed.
        StorageError: The cache folder cannot be written.
    """
    if not _missing(precision):
        return False
    if progress is not None:
        progress("compile", 0, 1)
    try:
        folder = _marker(_POLICIES).parent
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".finemoe-kernels.lock", lambda stage, done, total: None):
            if missing := _missing(precision):
                _compile(missing)
    except OSError as error:
        raise StorageError(f"the kernel cache cannot be written: {error}", "set NUMBA_CACHE_DIR") from error
    if progress is not None:
        progress("compile", 1, 1)
    return True


def _missing(precision: Precision | None) -> list[str]:
    """What is not compiled yet of a precision's kernels and of the policies'."""
    wanted = [_POLICIES] if precision is None else [_POLICIES, precision]
    return [name for name in wanted if not _marker(name).is_file()]


def _compile(names: list[str]) -> None:
    if not any(_marker(name).is_file() for name in _MODULES):
        _forget_other_versions()
    modules = [module for name in names for module in _MODULES[name]]
    if why := run_code(f"import {', '.join(modules)}"):
        raise EngineBroken(f"the kernels cannot be compiled: {why}", "use --kernels reference --policy demand")
    for name in names:
        _marker(name).touch()


def _forget_other_versions() -> None:
    """Make Numba compile anew: it looks at the file that a function is in, and not at those that it uses."""
    folder = os.environ.get("NUMBA_CACHE_DIR")
    for source in _SOURCES:
        # Numba's own names for its folders and indices.
        places = Path(folder).glob(f"{source.parent.name}_*") if folder else [source.parent / "__pycache__"]
        for place in places:
            for index in place.glob(f"{source.stem}.*.nbi"):
                index.unlink(missing_ok=True)


def _marker(name: str) -> Path:
    """A file that stands for one state of everything Numba's cache depends on."""
    folder = os.environ.get("NUMBA_CACHE_DIR")
    base = Path(folder) if folder else _HERE / "__pycache__"
    return base / f"finemoe-kernels-{_state()}-{name}"


@functools.cache
def _state() -> str:
    parts = (
        *(str(source) for source in _SOURCES),
        *(source.read_text(encoding="utf-8") for source in _SOURCES),
        *(str(source.stat().st_mtime_ns) for source in _SOURCES),
        sys.version,
        version("numba"),
        version("llvmlite"),
        _processor(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    wanted = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
