"""Models on a Hugging Face hub: what one is, told from its small files alone.

Everything goes through huggingface_hub: the endpoint (``HF_ENDPOINT``), the token, offline mode and proxies are
those the user has set up for it.

What a pull would fetch is decided by name: the safetensors files that the index lists, the index, configuration,
tokenizer, chat template and licence. Nothing that runs code when it is loaded.
"""

from __future__ import annotations

import fnmatch
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offload.errors import (
    CorruptCheckpoint,
    PullError,
    UnsupportedModel,
)
from offload.models.hub_errors import hub_errors
from offload.models.record import HubFile
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

    with hub_errors(repo, revision):
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
        raise not_bfloat16(repo, precision)
    wanted: tuple[str, ...] = _SMALL_FILES
    if _SINGLE_FILE in files:
        weights: tuple[HubFile, ...] = (files[_SINGLE_FILE],)
        header = read_header(repo, info.sha, _SINGLE_FILE)
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
    with hub_errors(repo, commit, file.name):
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


def read_header(repo: str, commit: str, name: str) -> dict[str, Any]:
    """The tensors of one safetensors file, by a range request for its header."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    with hub_errors(repo, commit, name):
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


def not_bfloat16(repo: str, precision: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{repo} keeps its weights as {precision}; finemoe reads bfloat16",
        "name a repository or revision in bfloat16",
    )
