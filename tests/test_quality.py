"""What keeps the code in shape: lint, format, types, which room may import which, and what the wheel carries."""

from __future__ import annotations

import ast
import fnmatch
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("offload", "profiles", "ui", "finemoe_cli")
"""Each may import those before it, and none behind it."""

CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "arguments",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)],
    ids=" ".join,
)
def test_the_tools_have_nothing_to_say(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    forbidden = set(ROOMS[ROOMS.index(room) + 1 :]) | {"tests", "benchmarks"}
    found = {
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources(room)
        for line, module in imports(path)
        if module.partition(".")[0] in forbidden
    }
    assert not found


def test_importing_the_user_interface_needs_no_torch() -> None:
    heavy = {"torch", "transformers", "numba", "accelerate"}
    found = {
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources("ui")
        for line, module in imports(path)
        if module.partition(".")[0] in heavy
    }
    assert not found


def test_the_engine_neither_prints_nor_asks() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} calls {node.func.id}"
        for path in sources("offload")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input")
    ]
    assert not found


def test_the_wheel_has_every_package() -> None:
    folders = {path.parent.relative_to(ROOT) for room in ROOMS for path in sources(room)}
    listed = CONFIGURATION["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(".".join(folder.parts) for folder in folders)
    assert [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []


def test_the_wheel_has_every_data_file() -> None:
    patterns: dict[str, list[str]] = CONFIGURATION["tool"]["setuptools"]["package-data"]
    packages = sorted(CONFIGURATION["tool"]["setuptools"]["packages"], key=len, reverse=True)
    left_out = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*")):
            if path.is_dir() or path.suffix == ".py" or "__pycache__" in path.parts:
                continue
            dotted = ".".join(path.relative_to(ROOT).parts)
            package = next(name for name in packages if dotted.startswith(f"{name}."))
            inside = path.relative_to(ROOT / Path(*package.split("."))).as_posix()
            wanted = (*patterns.get("*", ()), *patterns.get(package, ()))
            if not any(fnmatch.fnmatch(inside, pattern) for pattern in wanted):
                left_out.append(str(path.relative_to(ROOT)))
    assert left_out == []


def sources(room: str) -> list[Path]:
    """The Python files of a room."""
    found = sorted((ROOT / room).rglob("*.py"))
    assert found
    return found


def parsed(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module that a file imports, wherever in it."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield node.lineno, ".".join((*above, *(node.module or "").split("."))).strip(".")
