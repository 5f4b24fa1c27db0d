"""Fetching a model from a Hugging Face hub, in a way that goes on where it was interrupted.

Only the transfer of file contents is done here, because huggingface_hub does not go on with a file that an
earlier process left unfinished, and a shard has gigabytes: a file is fetched into ``NAME.part``, continued there
with a range request, and gets its name when its digest is what the hub says.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from offload.errors import ChecksumMismatch, PullError, StorageError
from offload.files import Progress, locked, storage_errors, sync_folder
from offload.models.hub import HubModel, not_bfloat16, read_header
from offload.models.hub_errors import GO_ON_HINT, BrokenOff, hub_errors
from offload.models.record import RECORD_NAME, HubFile, HubRecord, read_record, write_record
from offload.units import MIB, format_bytes

_SPARE_BYTES = 64 * MIB
_CHUNK = MIB
_RETRIES = 3


def fetch_model(model: HubModel, target: Path, progress: Progress | None = None) -> bool:
    """Make sure that ``target`` is a copy of ``model`` with a record of where it came from.

    Files are fetched into a folder beside ``target`` that takes its place when all are there. What an
    interrupted pull left there is used, and so are the files of an older copy that have not changed. Of several
    pulls of one model at a time, one fetches and the others wait.

    Args:
        model: From :func:`describe`.
        target: The model's folder: new, or an earlier copy of the same repository.
        progress: Called with ``"wait"`` (seconds, 0) or ``"fetch"`` (bytes). An exception it raises ends the pull.

    Returns:
        False if all was there already.

    Raises:
        PullError: The hub cannot be reached, or something else is at ``target``.
        ChecksumMismatch: A file arrived with other bytes than the hub says it has.
        UnsupportedModel: The weights are not in bfloat16.
        StorageError: Too little space, or a file could not be written.
    """
    report = progress or (lambda stage, done, total: None)
    with storage_errors(model.repo, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(_sibling(target, "lock"), report):
            record = read_record(target)
            if os.path.lexists(target) and not (isinstance(record, HubRecord) and record.repo == model.repo):
                raise PullError(
                    f"{target} is there already and is no copy of {model.repo}",
                    "choose another name with --name, or remove that model first",
                )
            if isinstance(record, HubRecord) and record.commit == model.commit and record.is_complete(target):
                return False
            _fetch(model, target, report)
    return True


def partial_folders(target: Path) -> list[Path]:
    """What an interrupted pull to ``target`` left beside it."""
    return [path for path in (_sibling(target, "fetching"), _sibling(target, "old")) if path.exists()]


def _fetch(model: HubModel, target: Path, progress: Progress) -> None:
    work, old = _sibling(target, "fetching"), _sibling(target, "old")
    shutil.rmtree(old, ignore_errors=True)
    work.mkdir(exist_ok=True)
    _keep_usable(model, work)
    _link_unchanged(model, target, work)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    files = {file.name: file for file in model.files}
    write_record(work, HubRecord(model.repo, model.revision, model.commit, now, files))
    have = {file.name: _size(work / file.name) or _size(_part(work, file)) for file in model.files}
    _check_space(model, target.parent, model.download_bytes - sum(have.values()))
    if not any((work / file.name).is_file() for file in model.weights):
        _check_precision(model)

    total, done = model.download_bytes, sum(_size(work / file.name) for file in model.files)
    progress("fetch", done, total)
    for file in model.files:
        if (work / file.name).is_file():
            continue
        begun = done

        def advance(count: int, begun: int = begun) -> None:
            progress("fetch", begun + count, total)

        _fetch_file(model, file, work, advance)
        done += file.size
    sync_folder(work)
    if target.exists():
        target.rename(old)
    work.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _keep_usable(model: HubModel, work: Path) -> None:
    """Remove from ``work`` whatever is not a file of ``model``, whole or in part."""
    record = read_record(work)
    parts = {_part(work, file) for file in model.files}
    whole = {work / file.name for file in model.files if isinstance(record, HubRecord) and record.has(work, file)}
    for path in list(work.iterdir()):
        if path not in parts and path not in whole and path.name != RECORD_NAME:
            path.unlink()


def _link_unchanged(model: HubModel, target: Path, work: Path) -> None:
    """Take from an older copy what is the same in ``model``."""
    record = read_record(target)
    if not isinstance(record, HubRecord):
        return
    for file in model.files:
        if record.has(target, file) and not (work / file.name).exists():
            try:
                os.link(target / file.name, work / file.name)
            except OSError:
                return  # No links on this filesystem: it is fetched.


def _check_space(model: HubModel, folder: Path, missing: int) -> None:
    needed = missing + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{model.repo} needs {format_bytes(needed)} more, and {folder} has {format_bytes(free)} free",
            f"free {format_bytes(needed - free)}, or set FINEMOE_CACHE_DIR to a folder on another disk",
        )


def _check_precision(model: HubModel) -> None:
    """Refuse weights that are in no part bfloat16, before they are fetched."""
    kinds = {tensor.dtype for tensor in read_header(model.repo, model.commit, model.weights[0].name).values()}
    if kinds and "BF16" not in kinds:
        raise not_bfloat16(model.repo, ", ".join(sorted(kinds)))


def _fetch_file(model: HubModel, file: HubFile, work: Path, advance: Callable[[int], None]) -> None:
    """Fetch ``file`` to its place in ``work``, going on from what is there of it."""
    part = _part(work, file)
    failures = 0
    while True:
        before = _size(part)
        try:
            digest = _transfer(model, file, part, advance)
            break
        except PullError as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures > _RETRIES or not isinstance(error, BrokenOff):
                raise
            time.sleep(0.25 * 2**failures)
    if digest != file.digest:
        part.unlink()
        raise ChecksumMismatch(
            f"{file.name} of {model.repo} arrived as {digest}, the hub says {file.digest}",
            "run the same command again; if it stays so, the network changes what it carries",
        )
    part.rename(work / file.name)


def _transfer(model: HubModel, file: HubFile, part: Path, advance: Callable[[int], None]) -> str:
    """One request for what ``part`` lacks of ``file``; returns the digest of the whole."""
    from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    with part.open("a+b") as out:
        digest = _Digest(file)
        out.seek(0)
        while piece := out.read(_CHUNK):
            digest.update(piece)
        if digest.length > file.size:
            digest = _start_over(out, file)
        advance(digest.length)
        if digest.length < file.size:
            headers = build_hf_headers() | {"accept-encoding": "identity"}
            if digest.length:
                headers["range"] = f"bytes={digest.length}-"
            url = hf_hub_url(model.repo, file.name, revision=model.commit)
            with (
                hub_errors(model.repo, model.commit, file.name),
                get_session().stream(
                    "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
                ) as response,
            ):
                if response.status_code >= 400:
                    response.read()
                hf_raise_for_status(response)
                if digest.length and response.status_code != 206:
                    digest = _start_over(out, file)
                for piece in response.iter_bytes():
                    with storage_errors(model.repo, part.parent):
                        out.write(piece)
                        # What was fetched outlives the process, however that ends.
                        out.flush()
                    digest.update(piece)
                    advance(min(digest.length, file.size))
        if digest.length < file.size:
            raise BrokenOff(
                f"{file.name} of {model.repo} broke off after {format_bytes(digest.length)}", GO_ON_HINT
            )
        os.fsync(out.fileno())
        # Gigabytes that nobody reads now would push out what somebody does.
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return str(digest)


class _Digest:
    """The digest of a file's content in the hub's own form for that file."""

    def __init__(self, file: HubFile) -> None:
        self.length = 0
        self._kind = file.digest.partition(":")[0]
        self._hash = hashlib.sha256() if self._kind == "sha256" else hashlib.sha1(f"blob {file.size}\0".encode())

    def update(self, piece: bytes) -> None:
        self._hash.update(piece)
        self.length += len(piece)

    def __str__(self) -> str:
        return f"{self._kind}:{self._hash.hexdigest()}"


def _start_over(out: Any, file: HubFile) -> _Digest:
    out.truncate(0)
    return _Digest(file)


def _sibling(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")


def _part(work: Path, file: HubFile) -> Path:
    """Where ``file`` grows; a file of that name with another content has another place."""
    return work / f"{file.name}.{file.digest.partition(':')[2][:12]}.part"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
