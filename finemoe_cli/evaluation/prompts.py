"""Where the prompts of an evaluation come from, and saying so: the sample never passes for another data set."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from finemoe_cli.datasets.conversation import Conversation
from finemoe_cli.datasets.reader import read_prompts
from finemoe_cli.datasets.sample import load_sample
from offload.errors import ConfigError, FinemoeError, NotFound
from offload.models.hub_errors import hub_errors

BUNDLED = "bundled sample"
SAMPLE = "sample"
POOL = 4096
"""Conversations of a large file that the seed draws from: the first ones."""


@dataclass(frozen=True, slots=True)
class HubData:
    """A data set on the Hugging Face hub.

    Attributes:
        repo: ``owner/name``.
        file: The file that is read, as a pattern: some names have a part that changes.
        access: How to get it.
    """

    repo: str
    file: str
    access: str


HUB = {
    "lmsys": HubData(
        "lmsys/lmsys-chat-1m",
        "data/train-00000-of-*.parquet",
        "accept its terms at huggingface.co/datasets/lmsys/lmsys-chat-1m, log in with 'hf auth login', fetch it "
        "with 'hf download --repo-type dataset lmsys/lmsys-chat-1m', or give a copy with --data",
    ),
    "sharegpt": HubData(
        "anon8231489123/ShareGPT_Vicuna_unfiltered",
        "ShareGPT_V3_unfiltered_cleaned_split.json",
        "fetch it with 'hf download --repo-type dataset anon8231489123/ShareGPT_Vicuna_unfiltered "
        "ShareGPT_V3_unfiltered_cleaned_split.json', or give a copy with --data",
    ),
}


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts, and where they are from.

    Attributes:
        dataset: As it was asked for.
        source: ``bundled sample``, ``file``, ``Hugging Face cache`` or ``Hugging Face hub``: what was really used.
        path: The file that was read; empty for the sample.
        conversations: In the order in which they are taken.
        skipped_rows: Rows that could not be used.
        skipped: The first of them, in words.
        note: Why it is not what was asked for; empty if it is.
    """

    dataset: str
    source: str
    path: str
    conversations: Sequence[Conversation]
    skipped_rows: int = 0
    skipped: tuple[str, ...] = ()
    note: str = ""


def find_prompts(dataset: str, data: Path | None, limit: int, seed: int) -> Prompts:
    """The conversations of `dataset`, `limit` of them at most, drawn by `seed`.

    Args:
        dataset: ``sample``, ``lmsys``, ``sharegpt`` or a file.
        data: A file to take in its place, in any form that docs/datasets.md has.

    Raises:
        ConfigError: There is no such data set.
        DatasetError: A file of one's own cannot be used.
    """
    if dataset not in (SAMPLE, *HUB) and data is None:
        data = Path(dataset)
        if not data.exists():
            raise ConfigError(f"there is no dataset '{dataset}'", f"{SAMPLE}, {', '.join(HUB)}, or a file")
    if data is not None:
        return _of_file(dataset, "file", data, limit, seed)
    if dataset == SAMPLE:
        return Prompts(dataset, BUNDLED, "", load_sample(limit, seed))
    wanted = HUB[dataset]
    found, source, why = _on_the_hub(wanted)
    if found is not None:
        try:
            return _of_file(dataset, source, found, limit, seed)
        except FinemoeError as error:
            why = f"{error.message}: {error.hint}" if error.hint else error.message
    note = f"{dataset} cannot be had ({why}), so these are the prompts that come with finemoe; {wanted.access}"
    return Prompts(dataset, BUNDLED, "", load_sample(limit, seed), note=note)


def _of_file(dataset: str, source: str, path: Path, limit: int, seed: int) -> Prompts:
    read = read_prompts(path, max(limit, POOL))
    drawn = list(read.conversations)
    Random(seed).shuffle(drawn)
    skipped = tuple(str(problem) for problem in read.skipped)
    return Prompts(dataset, source, str(path), drawn[:limit], read.skipped_rows, skipped)


def _on_the_hub(wanted: HubData) -> tuple[Path | None, str, str]:
    """The file in the cache of Hugging Face or, if ``HF_HUB_OFFLINE=0`` says so, fetched; its source; why there is
    none."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"datasets--{wanted.repo.replace('/', '--')}" / "snapshots"
    copies = sorted(folder.glob(f"*/{wanted.file}"), key=lambda path: path.stat().st_mtime)
    if copies:
        return copies[-1], "Hugging Face cache", ""
    if os.environ.get("HF_HUB_OFFLINE", "").strip().upper() not in ("0", "NO", "FALSE", "OFF"):
        return None, "", "it is not in the Hugging Face cache, and nothing is fetched unless HF_HUB_OFFLINE=0"
    try:
        return _fetched(wanted), "Hugging Face hub", ""
    except FinemoeError as error:
        return None, "", error.message
    except Exception as error:  # Of the hub's, of the system's: none of them is worth more than a line.
        return None, "", " ".join(str(error).split())[:200] or type(error).__name__


def _fetched(wanted: HubData) -> Path:
    """The file, downloaded into the cache of Hugging Face."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT

    with hub_errors(wanted.repo, None):
        # `snapshot_download` asks this too, and waits for the answer for ever.
        info = HfApi().dataset_info(wanted.repo, timeout=HF_HUB_DOWNLOAD_TIMEOUT)
        names = sorted(fnmatch.filter((file.rfilename for file in info.siblings or ()), wanted.file))
        if not names:
            raise NotFound(f"{wanted.repo} has no {wanted.file} any more")
        return Path(hf_hub_download(wanted.repo, names[0], repo_type="dataset", revision=info.sha))
