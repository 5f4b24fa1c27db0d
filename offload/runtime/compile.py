"""Compiling the kernels of decoding and of policies, once a machine, in a process of its own.

Compiling takes about half a minute and 300 MiB that no budget should have to hold, so it happens beside the
engine; the engine then takes the compiled code from Numba's cache folder (``NUMBA_CACHE_DIR``). The decode kernels
of a precision are compiled when it is first used.
"""

from __future__ import annotations

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
_COMPILE = "import offload.runtime.kernels.{precision}, offload.policy.kernels.gates, offload.policy.kernels.auto"


def kernels_compiled(precision: Precision = BF16) -> bool:
    """Whether this version of the kernels was compiled into the cache folder before."""
    return _marker(precision).is_file()


def compile_kernels(progress: Progress | None = None, precision: Precision = BF16) -> bool:
    """Compile the kernels of policies and of a precision if that was not done before; whether anything was
    compiled.

    Raises:
        EngineBroken: The compilation failed.
        StorageError: The cache folder cannot be written.
    """
    marker = _marker(precision)
    if marker.is_file():
        return False
    if progress is not None:
        progress("compile", 0, 1)
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        with locked(marker.parent / ".finemoe-kernels.lock", lambda stage, done, total: None):
            if not marker.is_file():
                _compile(precision)
                marker.touch()
    except OSError as error:
        raise StorageError(f"the kernel cache cannot be written: {error}", "set NUMBA_CACHE_DIR") from error
    if progress is not None:
        progress("compile", 1, 1)
    return True


def _compile(precision: Precision) -> None:
    if not any(_marker(other).is_file() for other in PRECISIONS):
        _forget_other_versions()
    if why := run_code(_COMPILE.format(precision=precision)):
        raise EngineBroken(f"the decode kernels cannot be compiled: {why}", "use --kernels reference")


def _forget_other_versions() -> None:
    """Make Numba compile anew: it looks at the file that a function is in, and not at those that it uses."""
    folder = os.environ.get("NUMBA_CACHE_DIR")
    for source in _SOURCES:
        # Numba's own names for its folders and indices.
        places = Path(folder).glob(f"{source.parent.name}_*") if folder else [source.parent / "__pycache__"]
        for place in places:
            for index in place.glob(f"{source.stem}.*.nbi"):
                index.unlink(missing_ok=True)


def _marker(precision: Precision) -> Path:
    """A file that stands for one state of everything Numba's cache depends on."""
    parts = (
        *(str(source) for source in _SOURCES),
        *(source.read_text(encoding="utf-8") for source in _SOURCES),
        *(str(source.stat().st_mtime_ns) for source in _SOURCES),
        sys.version,
        version("numba"),
        version("llvmlite"),
        _processor(),
    )
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    folder = os.environ.get("NUMBA_CACHE_DIR")
    base = Path(folder) if folder else _HERE / "__pycache__"
    return base / f"finemoe-kernels-{digest}-{precision}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    wanted = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
