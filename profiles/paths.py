"""Every path that finemoe keeps something at.

Three roots, each where the platform expects it and each movable by an environment variable: configuration
(``FINEMOE_CONFIG_DIR``), cache (``FINEMOE_CACHE_DIR``) and data (``FINEMOE_DATA_DIR``). Nothing is created by
asking for a path; whoever writes calls :func:`ensure_folder` first.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from offload.errors import StorageError

APP = "finemoe"
CONFIG_VARIABLE = "FINEMOE_CONFIG_DIR"
CACHE_VARIABLE = "FINEMOE_CACHE_DIR"
DATA_VARIABLE = "FINEMOE_DATA_DIR"


def config_dir() -> Path:
    """What the user writes: settings and profiles."""
    return _root(CONFIG_VARIABLE, platformdirs.user_config_path(APP))


def cache_dir() -> Path:
    """What can be fetched or built again: models, packed experts and compiled kernels."""
    return _root(CACHE_VARIABLE, platformdirs.user_cache_path(APP))


def data_dir() -> Path:
    """What cannot be made again, such as conversations."""
    return _root(DATA_VARIABLE, platformdirs.user_data_path(APP))


def config_file() -> Path:
    """The settings file."""
    return config_dir() / "config.toml"


def user_profiles_dir() -> Path:
    """The user's own profiles, one TOML file each."""
    return config_dir() / "profiles"


def models_dir() -> Path:
    """Pulled models, one folder each."""
    return cache_dir() / "models"


def packs_dir() -> Path:
    """Packed experts of models whose own folders cannot be written."""
    return cache_dir() / "packs"


def kernels_dir() -> Path:
    """Compiled decode kernels (Numba's cache)."""
    return cache_dir() / "kernels"


def sessions_file() -> Path:
    """The conversations, an SQLite database."""
    return data_dir() / "sessions.db"


def knowledge_dir() -> Path:
    """What policies have learnt about models, one folder each."""
    return data_dir() / "knowledge"


def draft_file() -> Path:
    """What was written in the chat's prompt and not sent."""
    return data_dir() / "draft.txt"


def recordings_dir() -> Path:
    """Recordings of chats."""
    return data_dir() / "recordings"


def runs_dir() -> Path:
    """Evaluations, one folder each."""
    return data_dir() / "runs"


def embedders_dir() -> Path:
    """Models that turn text into vectors, one folder each."""
    return cache_dir() / "embedders"


def simulations_dir() -> Path:
    """What simulated policies have learnt from traces, so that it need not be learnt again."""
    return cache_dir() / "simulations"


def plotting_dir() -> Path:
    """What matplotlib keeps about fonts."""
    return cache_dir() / "matplotlib"


def boards_dir() -> Path:
    """Live counters of running engines, a file each, gone when its engine ends."""
    return cache_dir() / "boards"


def ensure_folder(folder: Path) -> Path:
    """``folder``, created if need be and writable.

    Raises:
        StorageError: It cannot be created or written; the hint names the variable that moves it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise unwritable(folder, PermissionError(13, "Permission denied"))
    return folder


def existing_parent(path: Path) -> Path:
    """``path``, or the nearest of its parents that there is."""
    return path if os.path.lexists(path) else existing_parent(path.parent)


def check_folder(folder: Path) -> None:
    """Raises what :func:`ensure_folder` would, as far as can be told without creating anything."""
    place = existing_parent(folder)
    if not place.is_dir():
        raise unwritable(folder, NotADirectoryError(20, "Not a directory"))
    if not os.access(place, os.W_OK | os.X_OK):
        raise unwritable(folder, PermissionError(13, "Permission denied"))


def unwritable(path: Path, error: OSError) -> StorageError:
    """The error for a failed write at ``path``, with the way out as its hint."""
    for variable, root in (
        (CACHE_VARIABLE, cache_dir()),
        (CONFIG_VARIABLE, config_dir()),
        (DATA_VARIABLE, data_dir()),
    ):
        if path.is_relative_to(root):
            hint = f"set {variable} to a folder that you can write to"
            break
    else:
        hint = "choose a folder that can be written"
    return StorageError(f"cannot write to {path}: {error.strerror or error}", hint)


def _root(variable: str, default: Path) -> Path:
    chosen = os.environ.get(variable)
    return Path(chosen).expanduser().absolute() if chosen else default
