"""Models by name: where pulled ones are, and what a user may mean by a name or a path."""

from __future__ import annotations

import os
from pathlib import Path

from offload.errors import ModelNotFound
from profiles.paths import models_dir

DEMO = "demo"
"""The model that ``finemoe pull demo`` builds, and that runs where none is configured."""


def pulled_models() -> list[str]:
    """Names of the folders in the models folder that look like models."""
    try:
        return sorted(path.name for path in models_dir().iterdir() if (path / "config.json").is_file())
    except OSError:
        return []


def demo_folder() -> Path:
    """Where the demo model is kept, pulled or not."""
    from offload.models.demo import DEMO_NAME

    return models_dir() / DEMO_NAME


def is_demo(name: str) -> bool:
    """Whether ``name`` means the demo model."""
    return name == DEMO


def find_model(name: str) -> Path:
    """The folder meant by ``name``: the demo, a model in the models folder, or a path.

    The demo's folder is returned whether it is there or not; who needs it pulls it.

    Raises:
        ModelNotFound: There is no such model and no such folder.
    """
    if is_demo(name):
        return demo_folder()
    if os.sep not in name and name in pulled_models():
        return models_dir() / name
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelNotFound(f"{name} is not a folder", "give the folder that has the model's config.json")
    known = ", ".join(dict.fromkeys([DEMO, *pulled_models()]))
    raise ModelNotFound(f"no model or folder called '{name}'", f"known models: {known}; or give a folder's path")
