"""Models by name: what was pulled or registered, and what a user may mean by a name or a path.

Each model is a folder in the models folder. It holds the model itself, or, for a model folder somewhere else that
was given a name, only the record of where that is.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from offload.errors import ConfigError, ModelNotFound, PullError
from offload.files import storage_errors
from offload.models.record import FolderRecord, HubRecord, Record, read_record, write_record
from profiles.paths import ensure_folder, models_dir

DEMO = "demo"
"""The model that ``finemoe pull demo`` builds, and that runs where none is configured."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """One model that can be named.

    Attributes:
        name: What ``--model`` takes: ``owner/name`` for a hub model that was given no other name.
        place: Its folder in the models folder.
        folder: Where the model is: ``place``, or the folder that was registered.
        record: Where it came from; None if nothing says so.
    """

    name: str
    place: Path
    folder: Path
    record: Record | None

    @property
    def registered(self) -> bool:
        """Whether the model is a folder of the user's that only got a name here."""
        return isinstance(self.record, FolderRecord)


def installed_models() -> list[InstalledModel]:
    """Every model in the models folder, by name."""
    try:
        places = [path for path in models_dir().iterdir() if not path.name.startswith(".")]
    except OSError:
        return []
    found = (_installed(place) for place in places)
    return sorted((model for model in found if model is not None), key=lambda model: model.name)


def partial_models() -> list[InstalledModel]:
    """Models of which an interrupted pull left a part; their folders are those that they are to have."""
    try:
        works = sorted(models_dir().glob(".*.fetching"))
    except OSError:
        return []
    found = []
    for work in works:
        record = read_record(work)
        if isinstance(record, HubRecord):
            place = work.with_name(work.name.removeprefix(".").removesuffix(".fetching"))
            found.append(InstalledModel(_name_of(place, record), place, work, record))
    return found


def pulled_models() -> list[str]:
    """Their names."""
    return [model.name for model in installed_models()]


def installed_model(name: str) -> InstalledModel:
    """The model called ``name``, whole or in part.

    Raises:
        ModelNotFound: There is none; a path names none either.
    """
    for model in [*installed_models(), *partial_models()]:
        if name in (model.name, model.place.name):
            return model
    hint = f"models: {', '.join(pulled_models())}" if pulled_models() else "none was pulled: finemoe pull demo"
    raise ModelNotFound(f"no model called '{name}'", hint)


def demo_folder() -> Path:
    """Where the demo model is kept, pulled or not."""
    from offload.models.demo import DEMO_NAME

    return models_dir() / DEMO_NAME


def is_demo(name: str) -> bool:
    """Whether ``name`` means the demo model."""
    return name == DEMO


def is_repo(name: str) -> bool:
    """Whether ``name`` has the form of a hub repository's name, ``owner/name``."""
    return bool(_REPO.fullmatch(name))


def find_model(name: str) -> Path:
    """The folder meant by ``name``: the demo, a model in the models folder, or a path.

    The demo's folder is returned whether it is there or not; who needs it pulls it.

    Raises:
        ModelNotFound: There is no such model and no such folder.
    """
    if is_demo(name):
        return demo_folder()
    for model in installed_models():
        if name in (model.name, model.place.name):
            if not model.folder.is_dir():
                raise ModelNotFound(
                    f"the folder of model '{model.name}' is gone: {model.folder}",
                    f"bring it back, or forget it: finemoe models rm {model.name}",
                )
            return model.folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelNotFound(f"{name} is not a folder", "give the folder that has the model's config.json")
    known = ", ".join(dict.fromkeys([DEMO, *pulled_models()]))
    hint = f"known models: {known}; or give a folder's path"
    if is_repo(name):
        hint = f"fetch it first: finemoe pull {name}; or see what it would take: finemoe plan {name}"
    raise ModelNotFound(f"no model or folder called '{name}'", hint)


def model_place(name: str) -> Path:
    """The folder in the models folder for a model called ``name``, there or not.

    Raises:
        ConfigError: No model can be called that.
    """
    folder = name.replace("/", "--") if is_repo(name) else name
    if not _NAME.fullmatch(folder) or is_demo(name):
        raise ConfigError(
            f"a model cannot be called '{name}'", "use letters, digits, '.', '_' and '-', and not 'demo'"
        )
    return models_dir() / folder


def register_folder(folder: Path, name: str) -> bool:
    """Makes ``name`` mean the model in ``folder``, which stays where it is; False if it did already.

    Raises:
        ConfigError: No model can be called that.
        PullError: Another model is called so.
        StorageError: The models folder cannot be written.
    """
    place = model_place(name)
    record = FolderRecord(folder)
    if read_record(place) == record:
        return False
    if os.path.lexists(place):
        raise PullError(f"there is a model called '{name}' already", "choose another name with --name")
    ensure_folder(models_dir())
    with storage_errors("the model's name", place):
        place.mkdir()
        write_record(place, record)
    return True


def remove_model(model: InstalledModel) -> None:
    """Deletes a model and what interrupted pulls left of it; of a registered one only the name.

    Raises:
        StorageError: Something could not be deleted.
    """
    from offload.models.hub_fetch import partial_folders

    with storage_errors("the models folder", model.place):
        if model.place.is_symlink():
            model.place.unlink()
        elif model.place.exists():
            shutil.rmtree(model.place)
        for left in partial_folders(model.place):
            shutil.rmtree(left)


def _installed(place: Path) -> InstalledModel | None:
    record = read_record(place)
    if isinstance(record, FolderRecord):
        return InstalledModel(place.name, place, record.path, record)
    if not (place / "config.json").is_file():
        return None
    return InstalledModel(_name_of(place, record), place, place, record)


def _name_of(place: Path, record: Record | None) -> str:
    """What the model in ``place`` is called: like its repository, unless it was given another name."""
    if isinstance(record, HubRecord) and record.repo.replace("/", "--") == place.name:
        return record.repo
    return place.name
