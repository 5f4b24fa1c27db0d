"""Where the prompt comes from: the argument, a pipe, a file, a terminal, and what they hold."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, sys
from finemoe_cli.output import Output
from finemoe_cli.prompt import read_prompt
from offload.errors import ConfigError
argument = sys.argv[1] if len(sys.argv) > 1 else None
try:
    print(json.dumps({"prompt": read_prompt(argument, Output())}))
except ConfigError as error:
    print(json.dumps({"error": error.message, "hint": error.hint}))
"""


def ask(finemoe, *arguments: str | bytes, **options: Any) -> tuple[dict[str, str], str]:
    """What became of the prompt, and what was said about it."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        env=finemoe.environment,
        check=True,
        **options,
    )
    return json.loads(done.stdout), done.stderr.decode()


@pytest.mark.parametrize("text", [b"One\n\nTwo", b"One\n\nTwo\n", b"One\n\nTwo\r\n"])
@pytest.mark.parametrize("arguments", [[], ["-"]], ids=["nothing", "dash"])
def test_all_of_it_piped_in(finemoe, arguments, text):
    assert ask(finemoe, *arguments, input=text) == ({"prompt": "One\n\nTwo"}, "")


def test_a_question_and_what_it_is_about(finemoe, tmp_path):
    assert ask(finemoe, "Summarise:", input=b"Notes\n")[0] == {"prompt": "Summarise:\n\nNotes"}
    (tmp_path / "notes.txt").write_text("Notes\n")
    with (tmp_path / "notes.txt").open() as notes:
        assert ask(finemoe, "Summarise:", stdin=notes)[0] == {"prompt": "Summarise:\n\nNotes"}


@pytest.mark.parametrize("nothing", [b"", b"  \n"])
def test_an_empty_pipe_adds_nothing(finemoe, nothing):
    assert ask(finemoe, "Hello ", input=nothing)[0] == {"prompt": "Hello "}
    assert ask(finemoe, input=nothing)[0]["error"] == "the prompt is empty"


def test_a_terminal_is_not_read_unless_asked_for(finemoe):
    master, slave = pty.openpty()
    assert ask(finemoe, "Hello", stdin=slave)[0] == {"prompt": "Hello"}
    assert ask(finemoe, stdin=slave)[0]["error"] == "no prompt"
    os.write(master, b"Typed\n\x04")
    assert ask(finemoe, "-", stdin=slave)[0] == {"prompt": "Typed"}
    os.close(slave)
    os.close(master)


def test_bytes_that_are_not_utf8(finemoe):
    replaced = ({"prompt": "a\ufffdb"}, "warning: the prompt is not all UTF-8; what is not was replaced\n")
    assert ask(finemoe, input=b"a\xffb") == replaced
    assert ask(finemoe, b"a\xffb", stdin=subprocess.DEVNULL) == replaced


def test_a_stream_without_end_is_cut_off(finemoe):
    with Path("/dev/zero").open("rb") as zeros:
        assert "longer than" in ask(finemoe, "-", stdin=zeros)[0]["error"]


def test_no_stdin_at_all(finemoe):
    command = ["sh", "-c", f'"{sys.executable}" -c "$0" <&-', SCRIPT]
    done = subprocess.run(command, capture_output=True, env=finemoe.environment, check=True)
    assert json.loads(done.stdout)["error"] == "no prompt"
