"""What must answer at once must not import what takes seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "numba", "accelerate", "sentence_transformers", "textual", "numpy")

SCRIPT = """
import sys
from finemoe_cli.app import main
try:
    main(sys.argv[1:])
finally:
    print("IMPORTED", *sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["chat", "--help"],
        ["chat", "--profile", "nope"],
        ["doctor", "--help"],
        ["plan", "--help"],
        ["pull", "nothing"],
        ["models", "list"],
        ["models", "rm", "nothing"],
        ["pack", "--help"],
        ["pack", "nope"],
        ["profiles", "list"],
        ["profiles", "show", "low"],
        ["config", "show", "--origin"],
        ["config", "path"],
        ["run", "--profile", "nope", "hi"],
        ["run", "--model", "nope", "hi"],
        ["run", "--budget", "lots", "hi"],
        ["--show-completion", "bash"],
    ],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(finemoe, arguments):
    assert heavy_imports(finemoe, arguments) == set()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["chat", "--help"], ["models", "list"], ["run"]], ids=lambda words: " ".join(words)
)
def test_what_was_not_given_is_not_converted(finemoe, arguments):
    assert "pydantic" not in imported(finemoe, arguments)


def test_a_command_imports_no_other(finemoe):
    commands = {name for name in imported(finemoe, ["config", "path"]) if name.startswith("finemoe_cli.commands.")}
    assert commands == {"finemoe_cli.commands.config"}


@pytest.mark.parametrize("words", ["finemoe run --pro", "finemoe run --profile b", "finemoe run -m d"])
def test_completion_imports_nothing_heavy(finemoe, words):
    finemoe.environment |= {
        "_FINEMOE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    assert heavy_imports(finemoe, []) == set()


def test_the_engines_names_are_there_without_torch(finemoe):
    script = "import offload, sys; offload.EngineConfig; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=finemoe.environment, check=True
    )
    assert not set(HEAVY) - {"numpy"} & set(done.stdout.split())


def heavy_imports(finemoe, arguments):
    return imported(finemoe, arguments) & set(HEAVY)


def imported(finemoe, arguments):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        env=finemoe.environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("IMPORTED")]
    return set(line.split())
