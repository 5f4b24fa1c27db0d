"""Changing one setting in the settings file and nothing else: comments and order stay."""

from __future__ import annotations

from pathlib import Path

from offload.errors import ConfigError
from profiles.budget import Budget, exact_size
from profiles.files import assignment, parse_toml, read_text, toml_value, write_atomically
from profiles.paths import config_file
from profiles.settings import check_known, check_setting


def store_setting(name: str, raw: str) -> Path:
    """Keeps ``raw`` as setting ``name`` in the settings file, and returns the file's path.

    Raises:
        ConfigError: No such setting, or not a value for it, or the file is not one this can change.
        StorageError: The file cannot be written.
    """
    value = check_setting(check_known(name), raw, name)
    assert isinstance(value, str | int | float | Budget)
    if isinstance(value, Budget):
        value = str(value)
    elif name == "host_budget" and isinstance(value, int):
        value = exact_size(value)
    _rewrite(name, value)
    return config_file()


def remove_setting(name: str) -> bool:
    """Takes setting ``name`` out of the settings file; False if it is not in there.

    Raises:
        ConfigError: The file is not one this can change.
        StorageError: The file cannot be written.
    """
    path = config_file()
    if name not in parse_toml(read_text(path), path):
        check_known(name)
        return False
    _rewrite(name, None)
    return True


def _rewrite(name: str, value: str | int | float | None) -> None:
    path = config_file()
    before = read_text(path)
    wanted = {key: old for key, old in parse_toml(before, path).items() if key != name}
    pattern = assignment(name)
    lines = before.splitlines()
    places = [number for number, line in enumerate(lines) if pattern.match(line)]
    if value is not None:
        wanted[name] = value
        line = f"{name} = {toml_value(value)}"
        if places:
            lines[places[0]] = line
        else:
            lines.append(line)
    elif places:
        del lines[places[0]]
    after = "\n".join(lines) + "\n" if lines else ""
    try:
        written = parse_toml(after, path)
    except ConfigError:
        written = None
    if written != wanted:
        # A value over several lines, or a table: nothing that finemoe itself writes.
        raise ConfigError(f"{path} is laid out so that {name} cannot be changed by itself", "edit the file")
    write_atomically(path, after)
