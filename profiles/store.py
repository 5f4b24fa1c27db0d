"""Profiles: named memory budgets, with settings that go with them.

Presets come with the program and stay as they are; the user's own profiles are files in the configuration
folder. Both have the same form::

    description = "what it is for"
    budget = "900MiB"        # or a share of the experts, "25%", or "minimum"
    context = 8192           # optional, as are kernels, precision, policy, lanes and host_budget

A file with a key that is not one of these, or a value that cannot be used, is refused as a whole.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path

from offload.errors import ConfigError, FinemoeError, ProfileNotFound
from profiles import values
from profiles.budget import Budget, exact_size
from profiles.files import line_of, parse_toml, read_toml, toml_value, write_atomically
from profiles.paths import unwritable, user_profiles_dir

DEFAULT_PROFILE = "balanced"
PRESETS = ("minimal", "low", "balanced", "roomy", "resident")
"""The profiles that come with the program, smallest first."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Profile:
    """A named memory budget.

    Attributes:
        name: What ``--profile`` takes.
        description: One line.
        budget: Memory that the model may use.
        host_budget: On CUDA, bytes of host memory.
        context / kernels / precision / policy / lanes: Settings that go with it; None leaves them alone.
        path: The user's file; None for a preset.
    """

    name: str
    description: str
    budget: Budget
    host_budget: int | None = None
    context: int | None = None
    kernels: str | None = None
    precision: str | None = None
    policy: str | None = None
    lanes: int | None = None
    path: Path | None = field(default=None, compare=False)

    @property
    def is_preset(self) -> bool:
        """Whether it comes with the program."""
        return self.path is None

    def carried(self) -> dict[str, values.Raw]:
        """The settings that choosing this profile sets."""
        chosen = {name: getattr(self, name) for name in _CHECKERS if name != "description"}
        return {name: value for name, value in chosen.items() if value is not None}

    def to_dict(self) -> dict[str, object]:
        """For ``--json``: values as a profile's file has them."""
        return {"name": self.name, "preset": self.is_preset, "description": self.description} | {
            name: str(value) if isinstance(value, Budget) else value for name, value in self.carried().items()
        }

    def to_toml(self) -> str:
        """The content of a profile's file."""
        lines = [f"description = {toml_value(self.description)}"]
        for name, value in self.carried().items():
            if name == "host_budget" and isinstance(value, int):
                value = exact_size(value)
            lines.append(f"{name} = {toml_value(str(value) if isinstance(value, Budget) else value)}")
        return "\n".join(lines) + "\n"


_CHECKERS: Mapping[str, values.Checker] = {
    "description": values.any_text,
    "budget": values.budget,
    "host_budget": values.size,
    "context": values.CONTEXT,
    "kernels": values.KERNELS,
    "precision": values.PRECISION,
    "policy": values.POLICY,
    "lanes": values.LANES,
}
assert set(_CHECKERS) == {f.name for f in fields(Profile)} - {"name", "path"}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every profile there is.

    Attributes:
        profiles: Presets, smallest first, then the user's by name.
        problems: Why a file in the user's folder is not among them.
    """

    profiles: tuple[Profile, ...]
    problems: tuple[FinemoeError, ...]


def list_profiles() -> Catalogue:
    """Every profile; files that cannot be used are told, not hidden and not fatal."""
    found = [load_profile(name) for name in PRESETS]
    problems: list[FinemoeError] = []
    for path in sorted(_user_files()):
        try:
            if path.stem in PRESETS:
                raise ConfigError(f"{path} has a preset's name and is not used", "rename the file")
            found.append(load_profile(check_name(path.stem)))
        except FinemoeError as error:
            problems.append(error)
    return Catalogue(tuple(found), tuple(problems))


def profile_names() -> list[str]:
    """Names for completion and hints, without reading the files."""
    own = (path.stem for path in sorted(_user_files()))
    return [*PRESETS, *(name for name in own if name not in PRESETS and _NAME.fullmatch(name))]


def load_profile(name: str) -> Profile:
    """The profile called ``name``.

    Raises:
        ProfileNotFound: There is none.
        ConfigError: Its file cannot be used.
    """
    if name in PRESETS:
        preset = files("profiles") / "presets" / f"{name}.toml"
        where = Path(str(preset))
        return _from_table(name, parse_toml(preset.read_text(encoding="utf-8"), where), where, preset=True)
    path = profile_path(name) if _NAME.fullmatch(name) else None
    if path is None or not path.is_file():
        names = profile_names()
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"profiles: {', '.join(names)}"
        raise ProfileNotFound(f"no profile called '{name}'", hint)
    return _from_table(name, read_toml(path), path, preset=False)


def create_profile(profile: Profile, *, replace: bool = False) -> Path:
    """Writes ``profile`` into the user's folder and returns its path.

    Raises:
        ConfigError: The name is not allowed, or is taken and ``replace`` is False.
        StorageError: The folder cannot be written.
    """
    path = profile_path(_own_name(profile.name, "overwritten"))
    if path.exists() and not replace:
        raise ConfigError(f"profile '{profile.name}' exists already", "give --replace to write it anew")
    write_atomically(path, profile.to_toml())
    return path


def delete_profile(name: str) -> Path:
    """Removes the user's profile ``name``, even one whose content is unusable, and returns where it was.

    Raises:
        ConfigError: It is a preset.
        ProfileNotFound: There is none.
        StorageError: It cannot be removed.
    """
    path = profile_path(_own_name(name, "deleted"))
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        raise ProfileNotFound(f"no profile called '{name}'", "see: finemoe profiles list") from None
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def profile_path(name: str) -> Path:
    """Where the user's profile ``name`` is kept."""
    return user_profiles_dir() / f"{name}.toml"


def check_name(name: str) -> str:
    """``name`` if a profile may be called that.

    Raises:
        ConfigError: It may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot be the name of a profile",
            "use up to 64 lower-case letters, digits, '-', '_' and '.', starting with a letter or digit",
        )
    return name


def _own_name(name: str, verb: str) -> str:
    if name in PRESETS:
        raise ConfigError(f"'{name}' is a preset and cannot be {verb}", "choose another name")
    return check_name(name)


def _user_files() -> list[Path]:
    try:
        return [path for path in user_profiles_dir().iterdir() if path.suffix == ".toml" and path.is_file()]
    except OSError:
        return []


def _from_table(name: str, table: Mapping[str, object], path: Path, *, preset: bool) -> Profile:
    checked: dict[str, object] = {}
    for key, raw in table.items():
        if key not in _CHECKERS:
            close = difflib.get_close_matches(key, _CHECKERS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(_CHECKERS)}"
            raise ConfigError(f"{_at(path, key)}: unknown key '{key}'", hint)
        try:
            checked[key] = _CHECKERS[key](raw)
        except values.BadValue as error:
            raise ConfigError(f"{_at(path, key)}: {key} is {raw!r}", error.remedy) from error
    if "budget" not in checked:
        raise ConfigError(f"{path}: no budget", 'a profile needs one, such as: budget = "25%"')
    checked.setdefault("description", "")
    return Profile(name=name, path=None if preset else path, **checked)  # type: ignore[arg-type]


def _at(path: Path, key: str) -> str:
    line = line_of(key, path)
    return f"{path}, line {line}" if line else str(path)
