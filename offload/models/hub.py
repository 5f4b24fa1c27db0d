"""Models on a Hugging Face hub: what one is, from its small files alone, and how to have it.

Everything goes through huggingface_hub: the endpoint (``HF_ENDPOINT``), the token, offline mode and proxies are
those the user has set up for it. Only the transfer of file contents is done here, because huggingface_hub does not
go on with a file that an earlier process left unfinished, and a shard has gigabytes: a file is fetched into
``NAME.part``, continued there with a range request, and gets its name when its digest is what the hub says.

What is fetched is decided by name: the safetensors files that the index lists, the index, configuration, tokenizer,
chat template and licence. Nothing that runs code when it is loaded.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from offload.errors import (
    ChecksumMismatch,
    CorruptCheckpoint,
    FinemoeError,
    ModelNotFound,
    PullError,
    StorageError,
    UnsupportedModel,
)
from offload.files import Progress, locked, storage_errors, sync_folder
from offload.models.record import RECORD_NAME, HubFile, HubRecord, read_record, write_record
from offload.models.spec import ModelSpec, spec_from_config
from offload.units import MIB, format_bytes

_SINGLE_FILE = "model.safetensors"
_SHARD_INDEX = "model.safetensors.index.json"
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
    "NOTICE*",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_NOT_READ = ("float16", "float32", "float64")

_LARGEST_JSON = 64 * MIB
_SPARE_BYTES = 64 * MIB
_CHUNK = MIB
_RETRIES = 3
_AGAIN = "run the same command again: it goes on where it stopped"
_LOGIN = "run 'hf auth login' or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub at one commit, as far as can be told without its weights.

    Attributes:
        repo: ``owner/name``.
        revision: What was asked for; None for the default branch.
        commit: What that is now.
        spec: The model's facts, from its ``config.json``; its folder is only the repository's name.
        weights: The safetensors files.
        others: Every other file that a pull fetches.
        tensor_bytes: Bytes of all tensors.
    """

    repo: str
    revision: str | None
    commit: str
    spec: ModelSpec
    weights: tuple[HubFile, ...]
    others: tuple[HubFile, ...]
    tensor_bytes: int

    @property
    def files(self) -> tuple[HubFile, ...]:
        """Everything a pull fetches, the small files first."""
        return (*self.others, *self.weights)

    @property
    def download_bytes(self) -> int:
        """Bytes of all these files."""
        return sum(file.size for file in self.files)


def describe(repo: str, revision: str | None = None) -> HubModel:
    """What ``repo`` is at ``revision``, from its list of files, ``config.json`` and safetensors index.

    A repository with a single safetensors file has no index; there the header at the beginning of that file is
    read. No other byte of a weight file is asked for.

    Raises:
        ModelNotFound: There is no such repository or revision.
        PullError: It may not be read with this token, or the hub cannot be reached.
        UnsupportedModel: finemoe does not run this model, or it has pickle files only.
        CorruptCheckpoint: Its files contradict one another.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT

    with _hub_errors(repo, revision):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=HF_HUB_DOWNLOAD_TIMEOUT)
    if not info.sha:
        raise PullError(f"the hub names no commit for {repo}", "check HF_ENDPOINT")
    files = {file.name: file for file in map(_hub_file, info.siblings or ()) if file is not None}
    if "config.json" not in files:
        raise UnsupportedModel(
            f"{repo} has no config.json: it is no model in Hugging Face layout", "name another repository"
        )
    config = _fetch_json(repo, info.sha, files["config.json"])
    spec = spec_from_config(Path(repo), config)
    precision = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    if precision in _NOT_READ:
        raise _not_bfloat16(repo, precision)
    wanted: tuple[str, ...] = _SMALL_FILES
    if _SINGLE_FILE in files:
        weights: tuple[HubFile, ...] = (files[_SINGLE_FILE],)
        header = _header(repo, info.sha, _SINGLE_FILE)
        tensor_bytes = max((int(tensor.data_offsets[1]) for tensor in header.values()), default=0)
    elif _SHARD_INDEX in files:
        index = _fetch_json(repo, info.sha, files[_SHARD_INDEX])
        weights = _shards(repo, index, files)
        tensor_bytes = _total_size(index) or sum(file.size for file in weights)
        wanted = (*wanted, _SHARD_INDEX)
    else:
        raise _no_weights(repo, files)
    others = tuple(
        file for name, file in sorted(files.items()) if any(fnmatch.fnmatch(name, kind) for kind in wanted)
    )
    return HubModel(repo, revision, info.sha, spec, weights, others, tensor_bytes)


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
    kinds = {tensor.dtype for tensor in _header(model.repo, model.commit, model.weights[0].name).values()}
    if kinds and "BF16" not in kinds:
        raise _not_bfloat16(model.repo, ", ".join(sorted(kinds)))


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
            if failures > _RETRIES or not isinstance(error, _BrokenOff):
                raise
            time.sleep(0.25 * 2**failures)
    if digest != file.digest:
        part.unlink()
        raise ChecksumMismatch(
            f"{file.name} of {model.repo} arrived as {digest}, the hub says {file.digest}",
            "run the same command again; if it stays so, the network changes what it carries",
        )
    part.rename(work / file.name)


class _BrokenOff(PullError):
    """A transfer that may be gone on with at once."""


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
                _hub_errors(model.repo, model.commit, file.name),
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
            raise _BrokenOff(f"{file.name} of {model.repo} broke off after {format_bytes(digest.length)}", _AGAIN)
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


def _hub_file(sibling: Any) -> HubFile | None:
    """What the hub says of a file; None for one in a folder, or of which it does not say enough."""
    name, size = str(sibling.rfilename), sibling.size
    digest = f"sha256:{sibling.lfs.sha256}" if sibling.lfs else f"git:{sibling.blob_id}" if sibling.blob_id else ""
    if "/" in name or "\\" in name or name.startswith(".") or type(size) is not int or size < 0 or not digest:
        return None
    return HubFile(name, size, digest)


def _fetch_json(repo: str, commit: str, file: HubFile) -> dict[str, Any]:
    """The object that a small JSON file of the repository holds."""
    from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if file.size > _LARGEST_JSON:
        raise CorruptCheckpoint(f"{file.name} of {repo} has {format_bytes(file.size)}", "name another repository")
    url = hf_hub_url(repo, file.name, revision=commit)
    with _hub_errors(repo, commit, file.name):
        response = get_session().get(url, headers=build_hf_headers(), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        hf_raise_for_status(response)
    try:
        content = json.loads(response.content)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(
            f"{file.name} of {repo} cannot be read: {error}", "name another revision"
        ) from error
    if not isinstance(content, dict):
        raise CorruptCheckpoint(f"{file.name} of {repo} is not a JSON object", "name another revision")
    return content


def _header(repo: str, commit: str, name: str) -> dict[str, Any]:
    """The tensors of one safetensors file, by a range request for its header."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    with _hub_errors(repo, commit, name):
        try:
            return dict(HfApi().parse_safetensors_file_metadata(repo, name, revision=commit).tensors)
        except SafetensorsParsingError as error:
            raise CorruptCheckpoint(f"{name} of {repo} is no safetensors file", "name another revision") from error


def _shards(repo: str, index: dict[str, Any], files: dict[str, HubFile]) -> tuple[HubFile, ...]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpoint(f"{_SHARD_INDEX} of {repo} has no weight map", "name another revision")
    names = sorted({str(name) for name in weight_map.values()})
    missing = [name for name in names if name not in files or not name.endswith(".safetensors")]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CorruptCheckpoint(f"{repo} lacks the shard {missing[0]}{more}", "name another revision")
    return tuple(files[name] for name in names)


def _total_size(index: dict[str, Any]) -> int:
    metadata = index.get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    return int(size) if isinstance(size, int | float) and size > 0 else 0


def _no_weights(repo: str, files: dict[str, HubFile]) -> UnsupportedModel:
    pickles = sorted(name for name in files if any(fnmatch.fnmatch(name, kind) for kind in _PICKLES))
    if pickles:
        return UnsupportedModel(
            f"{repo} has its weights only as pickle ({pickles[0]}), which runs code when it is loaded; "
            "finemoe does not load it",
            "name a repository or revision with safetensors files",
        )
    return UnsupportedModel(
        f"{repo} has neither {_SINGLE_FILE} nor {_SHARD_INDEX}", "name a repository with safetensors weights"
    )


def _not_bfloat16(repo: str, precision: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{repo} keeps its weights as {precision}; finemoe reads bfloat16",
        "name a repository or revision in bfloat16",
    )


@contextmanager
def _hub_errors(repo: str, revision: str | None, file: str = "") -> Iterator[None]:
    """Turns what huggingface_hub and its HTTP client raise within the block into one line and a hint."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    # The base of all errors of the HTTP client, whichever huggingface_hub is built on.
    http_error: type[Exception] = HfHubHTTPError.__mro__[1]
    try:
        yield
    except FinemoeError:
        raise
    except HFValidationError as error:
        raise ModelNotFound(f"'{repo}' cannot be the name of a hub repository", "write owner/name") from error
    except OfflineModeIsEnabled as error:
        raise PullError(
            f"{repo} cannot be asked for: HF_HUB_OFFLINE is set", "unset it, or use a model that is pulled already"
        ) from error
    except HfHubHTTPError as error:
        raise _refusal(error, repo, revision, file) from error
    except http_error as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if file:
            raise _BrokenOff(f"{file} of {repo} broke off: {reason}", _AGAIN) from error
        raise PullError(
            f"the hub cannot be reached to look up {repo}: {reason}", "check the network, proxies and HF_ENDPOINT"
        ) from error


def _refusal(error: Any, repo: str, revision: str | None, file: str) -> FinemoeError:
    """The error for an answer of the hub that is not the wanted one."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return PullError(
            f"{repo} is gated: its owner gives access to those who ask for it",
            f"ask for access on the model's page on the hub, then {_LOGIN}",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(f"{repo} has no revision '{revision}'", "name a branch, a tag or a whole commit hash")
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFound(
            f"the hub has no model '{repo}', or it is private", f"check the name; for a private model {_LOGIN}"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return PullError(f"{repo} lacks {file} that it lists", "name another revision")
    if status in (401, 403):
        return PullError(f"the hub refuses access to {repo} ({status})", f"the token may be wrong or old: {_LOGIN}")
    if status == 429 or status >= 500:
        return _BrokenOff(f"the hub answers {status} for {file or repo}", "try again later")
    return PullError(f"the hub answers {status} for {file or repo}", "check HF_ENDPOINT")


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
