"""Making a synthetic checkpoint's folder: all of it or nothing.

The folder is made beside its target, under a lock, and moved into place when every byte is on the disk. What is
interrupted is removed; what was killed leaves only that side folder, which the next run removes.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from offload.errors import PullError, StorageError
from offload.files import Progress, locked, storage_errors, sync_folder
from offload.models.synthetic.card import SyntheticCard, read_card
from offload.models.synthetic.checkpoint import checkpoint_bytes, write_checkpoint
from offload.models.synthetic.recipe import Recipe
from offload.units import MIB, format_bytes

_SPARE_BYTES = 32 * MIB
"""Headers, tokenizer, and what filesystems need beside the data."""


@dataclass(frozen=True, slots=True)
class Made:
    """What was done.

    Attributes:
        card: What the checkpoint says of itself.
        nbytes: Bytes of all its files.
        changed: False if it was there already.
    """

    card: SyntheticCard
    nbytes: int
    changed: bool


def make_model(recipe: Recipe, target: Path, progress: Progress | None = None) -> Made:
    """Make sure that ``target`` holds what ``recipe`` makes.

    Args:
        target: A folder that is not there, is empty, or holds just that already. Its parents are made.
        progress: Called with ``"write"`` and bytes, or ``"wait"`` (seconds, 0) while another process makes it. An
            exception it raises ends the work, and nothing stays.

    Raises:
        PullError: Something else is at ``target``.
        StorageError: Too little space, or a file could not be written.
    """
    report = progress or (lambda stage, done, total: None)
    folder = Path(os.path.realpath(target))
    with storage_errors("the model", folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(_sibling(folder, "lock"), report):
            return _there(recipe, folder) or _make(recipe, folder, report)


def _there(recipe: Recipe, folder: Path) -> Made | None:
    """The checkpoint that is there, if it is the one."""
    card = read_card(folder)
    if card is not None and card.is_of(recipe) and card.is_whole(folder):
        return Made(card, sum(card.files.values()), False)
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        what = f"{card.shape}, {card.extent}, seed {card.seed}" if card is not None else "something else"
        raise PullError(f"{folder} is there already: {what}", "remove it, or choose another folder")
    return None


def _make(recipe: Recipe, folder: Path, progress: Progress) -> Made:
    work = _sibling(folder, "making")
    if work.exists():
        shutil.rmtree(work)
    _check_space(recipe, folder)
    try:
        work.mkdir()
        write_checkpoint(recipe, work, lambda done, total: progress("write", done, total))
        for path in work.iterdir():
            if path.suffix != ".safetensors":  # Those are on the disk already.
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        sync_folder(work)
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    card = read_card(folder)
    assert card is not None
    return Made(card, sum(card.files.values()), True)


def _check_space(recipe: Recipe, folder: Path) -> None:
    needed = checkpoint_bytes(recipe) + _SPARE_BYTES
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise StorageError(
            f"{recipe.shape}, {recipe.layers} layers, needs {format_bytes(needed)}, and {folder.parent} has "
            f"{format_bytes(free)} free",
            f"free {format_bytes(needed - free)}, choose another disk, or fewer --layers",
        )


def _sibling(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")
