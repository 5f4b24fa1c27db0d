"""What a synthetic checkpoint says of itself: which shape, how much of it, and how it was made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from offload.models.synthetic.recipe import Recipe

CARD_NAME = "finemoe-synthetic.json"
BUILDER_VERSION = 1
"""Raised whenever the same recipe makes other bytes than before."""


@dataclass(frozen=True, slots=True)
class SyntheticCard:
    """The record in a synthetic checkpoint's folder, written last of all its files.

    Attributes:
        shape: The published model whose shape it has.
        layers / all_layers: Decoder layers that it has, and that the whole model has.
        seed / skew / persistence: See :class:`~offload.models.synthetic.recipe.Recipe`.
        builder: Version of the code that made it.
        files: Bytes of each other file.
    """

    shape: str
    layers: int
    all_layers: int
    seed: int
    skew: float
    persistence: float
    builder: int
    files: dict[str, int]

    @property
    def extent(self) -> str:
        """How much of the whole model there is, in words: ``4 of 24 layers``."""
        return f"{self.layers} of {self.all_layers} layers"

    def is_of(self, recipe: Recipe) -> bool:
        """Whether this is what ``recipe`` makes."""
        mine = (self.shape, self.layers, self.all_layers, self.seed, self.skew, self.persistence, self.builder)
        return mine == (
            recipe.shape,
            recipe.layers,
            recipe.all_layers,
            recipe.seed,
            recipe.skew,
            recipe.persistence,
            BUILDER_VERSION,
        )

    def is_whole(self, folder: Path) -> bool:
        """Whether every file of it is in ``folder``, with the size that it had."""
        try:
            return all((folder / name).stat().st_size == size for name, size in self.files.items())
        except OSError:
            return False


def write_card(recipe: Recipe, folder: Path) -> SyntheticCard:
    """Records the files that are in ``folder`` now.

    Raises:
        OSError: It could not be written.
    """
    card = SyntheticCard(
        shape=recipe.shape,
        layers=recipe.layers,
        all_layers=recipe.all_layers,
        seed=recipe.seed,
        skew=recipe.skew,
        persistence=recipe.persistence,
        builder=BUILDER_VERSION,
        files={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    )
    (folder / CARD_NAME).write_text(json.dumps(asdict(card), indent=1) + "\n", encoding="utf-8")
    return card


def read_card(folder: Path) -> SyntheticCard | None:
    """The card of the checkpoint in ``folder``; None where there is none that can be read."""
    try:
        return SyntheticCard(**json.loads((folder / CARD_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
