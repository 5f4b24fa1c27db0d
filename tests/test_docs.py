"""The documents name what there is: every command, option, exit code, variable and field, and no others."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from finemoe_cli.cli import app
from finemoe_cli.exit_codes import MEANINGS
from offload.models.demo import DEMO_NAME
from offload.telemetry.counters import LayerCounts, PhaseCounts
from offload.telemetry.snapshot import Completion, ExpertCounts, IoFacts, MemoryUse, Snapshot
from profiles.paths import CACHE_VARIABLE, CONFIG_VARIABLE, DATA_VARIABLE
from profiles.settings import SETTINGS
from profiles.store import PRESETS

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
TELEMETRY = (ROOT / "docs" / "telemetry.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [target.partition("#")[0] for target in targets if "://" not in target]
    assert [target for target in local if target and not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_shown_exist(path: Path) -> None:
    for line in shown_commands(path.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        command, names = typer.main.get_command(app), []
        for word in words[1:]:
            if word in getattr(command, "commands", {}):
                command = command.commands[word]
                names.append(word)
        options = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        options |= {"--help", "-h"}
        given = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
        assert names or given, f"{line}: no such command"
        assert given <= options, line


def test_the_readme_lists_every_command() -> None:
    listed = {" ".join(row[0].strip("`").split()[1:3]) for row in table(README, "command")}
    known = set(leaves(typer.main.get_command(app)))
    assert {name if name in known else name.split()[0] for name in listed} == known


def test_the_readme_lists_every_exit_code() -> None:
    assert {int(row[0]) for row in table(README, "code")} == {code.value for code in MEANINGS}


def test_the_readme_lists_every_preset() -> None:
    assert [row[0].strip("`") for row in table(README, "profile")] == list(PRESETS)


def test_the_readme_lists_every_variable() -> None:
    listed = {name for row in table(README, "variable") for name in re.findall(r"FINEMOE_[A-Z_]+", row[0])}
    assert {CONFIG_VARIABLE, CACHE_VARIABLE, DATA_VARIABLE, "FINEMOE_DEBUG"} <= listed
    assert listed & {f"FINEMOE_{name.upper()}" for name in SETTINGS}


@pytest.mark.parametrize(
    "kind",
    [Completion, MemoryUse, IoFacts, ExpertCounts, PhaseCounts, LayerCounts, Snapshot],
    ids=lambda c: c.__name__,
)
def test_every_field_is_defined(kind: Any) -> None:
    names = {field.name for field in fields(kind)}
    if kind is PhaseCounts:
        names = set(PhaseCounts().to_dict())
    if kind is Completion:
        names.add("profile")  # put in by the command
    assert [name for name in sorted(names) if f"`{name}`" not in TELEMETRY] == []


def test_every_benchmark_is_described() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    scripts = [path.name for path in sorted((ROOT / "benchmarks").glob("*.py"))]
    assert [name for name in scripts if f"benchmarks/{name}" not in text] == []


def test_the_readme_program_runs(demo_model: Path, tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / DEMO_NAME).symlink_to(demo_model)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, CACHE_VARIABLE: str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "tok/s, hit rate " in done.stdout
    assert done.stdout.endswith("900 experts may be resident now\n")


def shown_commands(text: str) -> Iterator[str]:
    """The ``finemoe`` commands in a document's blocks of shell commands."""
    for block in re.findall(r"^```(?:console|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            for part in re.split(r"\s*(?:\||&&)\s*", line.removeprefix("$ ")):
                words = part.split()
                if words and words[0].rpartition("/")[2] == "finemoe":
                    yield part.partition(" < ")[0].partition(" > ")[0]


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the table whose first column is called ``first``."""
    match = re.search(rf"^\| {first} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert match, f"there is no table of {first}s"
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in match.group(1).splitlines()]


def leaves(command: Any, name: str = "") -> Iterator[str]:
    """The names of a command's subcommands that do something."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield name
        return
    if name and command.invoke_without_command:
        yield name
    for word, subcommand in subcommands.items():
        yield from leaves(subcommand, f"{name} {word}".strip())
