"""The folder of a run: rows that stay, and rows that are made again."""

from __future__ import annotations

import pytest

from finemoe_cli.evaluation.folder import REQUESTS, RUN, RunFolder
from offload.errors import ConfigError, DamagedFile


def row(combination: str, number: int, turn: int = 1, turns: int = 1, **more: object) -> dict[str, object]:
    return {"combination": combination, "number": number, "turn": turn, "turns": turns, **more}


@pytest.fixture
def folder(tmp_path):
    with RunFolder.open(tmp_path / "run") as folder:
        yield folder


def test_conversations_that_were_broken_off_are_held_again(folder):
    rows = [row("a", 0), row("b", 0, 1, 2), row("a", 1, 1, 3), row("b", 0, 2, 2), row("b", 1, 1, 3, error="no")]
    for one in rows:
        folder.append(one)
    assert folder.rows() == rows
    assert folder.drop_unfinished() == {("a", 0), ("b", 0), ("b", 1)}
    assert folder.rows() == [one for one in rows if one is not rows[2]]


def test_every_way_a_last_row_can_be_cut(folder):
    folder.append(row("a", 0))
    whole = (folder.path / REQUESTS).read_bytes()
    folder.append(row("a", 1))
    both = (folder.path / REQUESTS).read_bytes()
    for end in range(len(whole), len(both) - 1):
        (folder.path / REQUESTS).write_bytes(both[:end])
        assert folder.drop_unfinished() == {("a", 0)}
        assert (folder.path / REQUESTS).read_bytes() == whole
    (folder.path / REQUESTS).write_bytes(both[:-1])
    assert folder.drop_unfinished() == {("a", 0), ("a", 1)}
    assert (folder.path / REQUESTS).read_bytes() == both


def test_a_damaged_row_is_told_by_its_line(folder):
    (folder.path / REQUESTS).write_text('{"combination": "a", "number": 0, "turn": 1, "turns": 1}\nhm\n{}\n')
    with pytest.raises(DamagedFile, match=r"line 2 of .* is damaged"):
        folder.rows()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(ConfigError, match="is not the folder of a run"), RunFolder.open(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_one_process_at_a_time(folder):
    with pytest.raises(ConfigError, match="another finemoe is evaluating"), RunFolder.open(folder.path):
        pass


def test_a_run_of_another_version(tmp_path):
    (tmp_path / RUN).write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="another version"), RunFolder.open(tmp_path):
        pass
