"""transformers' list of what its models export, kept from one start to the next.

While it is imported, transformers reads the source of all its models, thousands of files, twice, only to list the
names in them: a tenth of a start. The list changes with the version alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

_LISTER = "transformers.utils.import_utils"
_FUNCTION = "create_import_structure_from_path"
_BACKENDS, _NAMES = "backends", "names"


@contextmanager
def kept_module_lists() -> Iterator[None]:
    """While transformers is imported here, its list comes from Numba's cache folder (``NUMBA_CACHE_DIR``), and goes
    there. Without such a folder, or with a transformers that lists otherwise, nothing changes.
    """
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finds the one module whose function is replaced once it has been executed."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _LISTER:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_replace(module: ModuleType) -> None:
            execute(module)
            if original := getattr(module, _FUNCTION, None):
                setattr(module, _FUNCTION, _keeping(original))

        spec.loader.exec_module = execute_and_replace  # type: ignore[method-assign]
        return spec


def _keeping(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`original`, which for the folder of all models is asked once a version."""

    def listed(path: str | Path) -> Any:
        folder = Path(path).parent if Path(path).is_file() else Path(path)
        kept = _file(folder)
        if kept is None:
            return original(path)
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            return from_json(json.loads(kept.read_text(encoding="utf-8")))
        found = original(path)
        with suppress(OSError, TypeError):  # what is broken off half-way is no JSON, and written again
            kept.write_text(json.dumps(to_json(found)), encoding="utf-8")
        return found

    return listed


def _file(folder: Path) -> Path | None:
    """Where the list of a folder is kept; None where it is not."""
    cache_folder = os.environ.get("NUMBA_CACHE_DIR")
    if not cache_folder or folder.parts[-2:] != ("transformers", "models"):
        return None
    release = version("transformers")
    if "dev" in release:
        return None
    key = "\0".join((str(folder), release, str(folder.stat().st_mtime_ns), sys.version))
    return Path(cache_folder) / f"finemoe-transformers-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def to_json(structure: Any) -> Any:
    """A list, which has sets as keys and as values, as JSON can say it."""
    if isinstance(structure, dict):
        return [
            [{_BACKENDS: sorted(key)} if isinstance(key, frozenset) else key, to_json(value)]
            for key, value in structure.items()
        ]
    if not isinstance(structure, set):
        raise TypeError(f"a {type(structure).__name__} in transformers' list of models")
    return {_NAMES: sorted(structure)}


def from_json(content: Any) -> Any:
    """What `to_json` was given."""
    if isinstance(content, list):
        return {
            key if isinstance(key, str) else frozenset(key[_BACKENDS]): from_json(value) for key, value in content
        }
    return set(content[_NAMES])
