"""What has to be in the process's environment before torch, numba and tokenizers are imported."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from offload.errors import StorageError
from profiles.paths import CACHE_VARIABLE, ensure_folder, kernels_dir

DEFAULTS = {
    # OpenMP threads that wait by spinning would take the cores from the lanes that read experts.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Otherwise tokenizers starts a thread pool for one short text.
    "TOKENIZERS_PARALLELISM": "false",
}


def prepare_process() -> list[str]:
    """Sets environment defaults; what is set already stays. Calling it again changes nothing.

    Returns:
        Warnings for the user, one line each.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or kernels_dir())
    warnings: list[str] = []
    try:
        ensure_folder(folder)
    except StorageError as error:
        folder = Path(tempfile.mkdtemp(prefix="finemoe-kernels-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        warnings.append(
            f"{error.message}; compiled kernels are not kept, so every start compiles them "
            f"(set {CACHE_VARIABLE} to a folder that you can write to)"
        )
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    return warnings
