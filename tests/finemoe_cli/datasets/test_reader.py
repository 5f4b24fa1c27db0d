"""Reading a user's prompts: every form, every encoding, and what is wrong with a row or a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from finemoe_cli.datasets.conversation import Conversation
from finemoe_cli.datasets.errors import DatasetError
from finemoe_cli.datasets.reader import PROBLEMS_KEPT, ReadResult, RowProblem, read_prompts
from finemoe_cli.datasets.text_rows import LONGEST_ROW
from finemoe_cli.exit_codes import ExitCode, exit_code_of

LMSYS = {
    "conversation_id": "c0ffee",
    "model": "some-model",
    "conversation": [
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Elbe."},
        {"role": "user", "content": "Another?"},
        {"role": "assistant", "content": ""},
    ],
    "turn": 2,
    "language": "English",
    "openai_moderation": [{"flagged": False}],
    "redacted": False,
}
SHAREGPT = {
    "id": "abc_0",
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Wie spät ist es?"},
        {"from": "gpt", "value": "Das weiß ich nicht."},
        {"from": "user", "value": "Schade."},
    ],
}
ROWS: list[tuple[Any, Conversation]] = [
    (
        {"id": "a", "kind": "code", "language": "en", "turns": ["one", " two\n"], "system": "s"},
        Conversation("a", ("one", " two\n"), "code", "en", "s"),
    ),
    ({"turns": ["one"]}, Conversation("row-2", ("one",))),
    (LMSYS, Conversation("c0ffee", ("Name a river.", "Another?"), language="English")),
    (SHAREGPT, Conversation("abc_0", ("Wie spät ist es?", "Schade."), system="Be brief.")),
    (
        {"id": 17, "messages": [{"role": "system", "content": " "}, {"role": "user", "content": "Hi"}]},
        Conversation("17", ("Hi",)),
    ),
    ({"prompt": "1 + 1?"}, Conversation("row-6", ("1 + 1?",))),
    ({"prompt": None, "id": None, "system": None, "turns": ["x"]}, Conversation("row-7", ("x",))),
    ("just a\u2028string 🦆", Conversation("row-8", ("just a\u2028string 🦆",))),
]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def read_lines(path: Path, *rows: str) -> ReadResult:
    return read_prompts(write(path / "rows.jsonl", "\n".join(rows)))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_array_of_rows_of_every_form(tmp_path: Path, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps([row for row, _ in ROWS], indent=indent, ensure_ascii=ascii_only)
    found = read_prompts(write(tmp_path / "rows.json", f"\n \t{text}\n"))
    assert found == ReadResult(tuple(conversation for _, conversation in ROWS), (), 0)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.NDJSON", "rows.json"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_json_lines_of_every_form(tmp_path: Path, name: str, end: str) -> None:
    text = end.join(json.dumps(row, ensure_ascii=False) for row, _ in ROWS)
    found = read_prompts(write(tmp_path / name, text))
    assert found == ReadResult(tuple(conversation for _, conversation in ROWS), (), 0)


def test_an_array_may_be_called_json_lines(tmp_path: Path) -> None:
    assert read_prompts(write(tmp_path / "rows.jsonl", '["a", "b"]')).conversations[1].turns == ("b",)


def test_plain_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.txt", 'first\r\n\n   \n[not JSON]\n "quoted"\nlast, with\u2028a mark')
    found = read_prompts(path)
    assert [(one.id, *one.turns) for one in found.conversations] == [
        ("row-1", "first"),
        ("row-4", "[not JSON]"),
        ("row-5", ' "quoted"'),
        ("row-6", "last, with\u2028a mark"),
    ]
    assert found.skipped == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.json"])
def test_encodings_that_say_what_they_are(tmp_path: Path, encoding: str, name: str) -> None:
    prompts = ["Grüß Gott 🦆", "你好"]
    text = {"p.txt": "\n".join(prompts), "p.jsonl": '"Grüß Gott 🦆"\n"你好"', "p.json": json.dumps(prompts)}[name]
    found = read_prompts(write(tmp_path / name, text, encoding))
    assert [one.turns[0] for one in found.conversations] == prompts


@pytest.mark.parametrize("order", ["le", "be"])
def test_either_order_of_bytes(tmp_path: Path, order: str) -> None:
    found = read_prompts(write(tmp_path / "p.txt", "\ufeffWhy?\nHow?", f"utf-16-{order}"))
    assert [one.turns[0] for one in found.conversations] == ["Why?", "How?"]


@pytest.mark.parametrize("row", [LMSYS, SHAREGPT], ids=["LMSYS", "ShareGPT"])
def test_parquet(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "part.parquet"
    without = {**row, ("conversation" if row is LMSYS else "conversations"): []}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, without] * 100), path, row_group_size=70)
    found = read_prompts(path)
    conversation = next(conversation for one, conversation in ROWS if one is row)
    assert found.conversations == (conversation,) * 100
    assert found.skipped[:2] == (
        RowProblem(2, "it has no turn of a user"),
        RowProblem(4, "it has no turn of a user"),
    )
    assert found.skipped_rows == 100
    assert len(read_prompts(path, 3).conversations) == 3


def test_a_row_of_parquet_may_be_no_text(tmp_path: Path) -> None:
    texts = pyarrow.array([b"one", b"\xff\xfe", b"three"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts}), tmp_path / "p.parquet")
    found = read_prompts(tmp_path / "p.parquet")
    assert [one.turns[0] for one in found.conversations] == ["one", "three"]
    assert found.skipped == (RowProblem(2, "it is not valid UTF-8"),)


def test_parquet_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    table = pyarrow.table({"prompt": [f"prompt {number} {number**9}" for number in range(9000)]})
    pyarrow.parquet.write_table(table, path, row_group_size=1000, compression="gzip")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    found = read_prompts(path)
    assert 1000 <= len(found.conversations) < 9000
    (problem,) = found.skipped
    assert problem.row == len(found.conversations) + 1
    assert problem.reason.startswith("the file is damaged: ")
    path.write_bytes(data[:3000])
    with pytest.raises(DatasetError, match="is not a Parquet file"):
        read_prompts(path)


def test_parquet_without_prompts(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "text": ["x"]}), tmp_path / "p.parquet")
    with pytest.raises(DatasetError, match="has no column with prompts"):
        read_prompts(tmp_path / "p.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match="pyarrow, which reads it, is not installed") as caught:
        read_prompts(tmp_path / "p.parquet")
    assert caught.value.hint == "pip install 'finemoe[data]'"


BAD: list[tuple[str, str]] = [
    ("17", "it is a number, neither an object nor a string"),
    ("null", "it is null, neither an object nor a string"),
    ("true", "it is true or false, neither an object nor a string"),
    ('["a"]', "it is a list, neither an object nor a string"),
    ('""', "the prompt is empty"),
    ("{}", "it has none of turns, conversation, conversations, messages, prompt"),
    ('{"prompt": " \\n"}', "prompt is empty"),
    ('{"prompt": ["a"]}', "prompt is a list, not a string"),
    ('{"prompt": "a", "id": []}', "the id is a list, not a string"),
    ('{"prompt": "a", "id": true}', "the id is true or false, not a string"),
    ('{"prompt": "a", "language": 3}', "language is a number, not a string"),
    ('{"turns": "a"}', "turns is a string, not a list"),
    ('{"turns": []}', "it has no turn of a user"),
    ('{"turns": ["a", ""]}', "turn 2 is empty"),
    ('{"turns": ["a", 1.5]}', "turn 2 is a number, not a string"),
    ('{"conversation": {}}', "conversation is an object, not a list"),
    ('{"conversation": ["a"]}', "message 1 of conversation is a string, not an object"),
    ('{"conversation": [{"content": "a"}]}', "message 1 of conversation does not say whose it is"),
    ('{"conversation": [{"role": 1, "content": "a"}]}', "message 1 of conversation does not say whose it is"),
    ('{"conversation": [{"role": "assistant", "content": "a"}]}', "it has no turn of a user"),
    ('{"conversations": [{"from": "human"}]}', "message 1 of conversations is null, not a string"),
    ('{"messages": [{"role": "user", "content": ""}]}', "message 1 of messages is empty"),
    (
        '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
        "message 1 of messages is a list, not a string",
    ),
    ('{"prompt": "\\ud800"}', "prompt is not valid Unicode"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_row_is_skipped_and_told(tmp_path: Path, row: str, reason: str) -> None:
    found = read_lines(tmp_path, '"before"', "", row, '"after"')
    assert [one.turns[0] for one in found.conversations] == ["before", "after"]
    assert found.skipped == (RowProblem(3, reason),)
    found = read_prompts(write(tmp_path / "rows.json", f'["before", {row}, "after"]'))
    assert [one.turns[0] for one in found.conversations] == ["before", "after"]
    assert found.skipped == (RowProblem(2, reason),)


@pytest.mark.parametrize(
    "row", ['{"prompt": "a"', "{'prompt': 'a'}", "nonsense", '"a" "b"', "[" * 200_000, "9" * 5000, '"tab\t"']
)
def test_a_line_that_is_not_json_is_skipped(tmp_path: Path, row: str) -> None:
    found = read_lines(tmp_path, '"before"', row, '"after"')
    assert [one.turns[0] for one in found.conversations] == ["before", "after"]
    (problem,) = found.skipped
    assert problem.row == 2
    assert problem.reason.startswith("it is not JSON")
    assert len(problem.reason) < 250


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (', {"prompt": nonsense}, "after"]', "it is not JSON, or the file breaks off within it"),
        (', {"prompt": "a', "it is not JSON, or the file breaks off within it: Unterminated string"),
        (",", "it is not JSON, or the file breaks off within it"),
        (",]", "it is not JSON, or the file breaks off within it"),
        (' "after"]', "a comma or the end of the array is missing before it"),
        ("", "a comma or the end of the array is missing before it"),
        ('] ["after"]', "it stands behind the end of the array"),
        (", " + "[" * 200_000, "it is not JSON that can be read"),
        (", " + "9" * 5000 + "]", "it is not JSON that can be read"),
        (', "' + "x" * (3 * LONGEST_ROW), "it is not JSON (Unterminated string starting at), or longer than"),
    ],
    ids=lambda value: value[:24],
)
def test_what_ends_an_array_is_told(tmp_path: Path, rest: str, reason: str) -> None:
    found = read_prompts(write(tmp_path / "rows.json", f'["before"{rest}'))
    assert [one.turns[0] for one in found.conversations] == ["before"]
    (problem,) = found.skipped
    assert problem.row == 2
    assert problem.reason.startswith(reason)
    assert problem.reason.endswith("; nothing after it was read")


@pytest.mark.parametrize(
    ("name", "form"), [("p.txt", b"%s\n%s\n%s"), ("p.jsonl", b'"%s"\n"%s"\n"%s"'), ("p.json", b'["%s","%s","%s"]')]
)
@pytest.mark.parametrize("bytes_", [b"caf\xe9", b"\xed\xa0\x80", b"\xff", b"\xe4\xbd"])
def test_bytes_that_are_not_utf8_cost_their_row_only(tmp_path: Path, name: str, form: bytes, bytes_: bytes) -> None:
    (tmp_path / name).write_bytes(form % ("é".encode(), bytes_, "ü".encode()))
    found = read_prompts(tmp_path / name)
    assert [one.turns[0] for one in found.conversations] == ["é", "ü"]
    assert found.skipped == (RowProblem(2, "it is not valid Unicode"),)


def test_a_file_that_ends_within_a_character(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("one\ntwo".encode("utf-16") + b"\x20")
    found = read_prompts(tmp_path / "p.txt")
    assert [one.turns[0] for one in found.conversations] == ["one"]
    assert found.skipped == (RowProblem(2, "it is not valid Unicode"),)


def test_a_binary_file_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\x7fELF\0\1" * 50)
    with pytest.raises(DatasetError, match="NUL character"):
        read_prompts(tmp_path / "p.txt")


@pytest.mark.parametrize(
    ("name", "form"), [("p.txt", "a\n%s\nb"), ("p.jsonl", '"a"\n"%s"\n"b"'), ("p.json", '["a","%s","b"]')]
)
@pytest.mark.parametrize("length", [LONGEST_ROW - 2, LONGEST_ROW + 1])
def test_a_row_may_be_long_but_not_endless(tmp_path: Path, name: str, form: str, length: int) -> None:
    found = read_prompts(write(tmp_path / name, form % ("x" * length)))
    assert [one.turns[0][0] for one in found.conversations] == (
        ["a", "b"] if length > LONGEST_ROW else ["a", "x", "b"]
    )
    assert found.skipped_rows == (length > LONGEST_ROW)


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.json"])
def test_a_limit_ends_reading(tmp_path: Path, name: str) -> None:
    rows = [f"prompt {number}" for number in range(50)]
    text = {"p.txt": "\n".join(rows), "p.jsonl": "\n".join(map(json.dumps, rows)), "p.json": json.dumps(rows)}[name]
    write(tmp_path / name, text.removesuffix("]") + "\n17\n{")  # whoever reads on would trip
    found = read_prompts(tmp_path / name, 7)
    assert [one.turns[0] for one in found.conversations] == rows[:7]
    assert found.skipped_rows == 0


def test_only_some_problems_are_kept(tmp_path: Path) -> None:
    found = read_lines(tmp_path, *["{}"] * 500, '"good"')
    assert (len(found.conversations), len(found.skipped), found.skipped_rows) == (1, PROBLEMS_KEPT, 500)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"a": 1}\n[]', "none of the 2 rows of .* can be used: row 1: it has none of turns"),
        ("p.jsonl", "\n\n{}", "the only row of .* cannot be used: row 3: it has none of turns"),
        ("p.json", '{\n  "prompts": []\n}', "none of the 3 rows of .* can be used: row 1: it is not JSON"),
        ("p.json", "[]", "has no prompts"),
        ("p.json", "", "has no prompts"),
        ("p.txt", " \n\n", "has no prompts"),
        ("p.csv", "a,b", "the name of .* does not say what it is"),
        ("p", "a", "the name of .* does not say what it is"),
        ("p.parquet", "PAR1", "is not a Parquet file"),
        ("p.parquet", "", "is not a Parquet file"),
    ],
)
def test_a_file_without_a_prompt_is_an_error(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read_prompts(write(tmp_path / name, text))
    assert exit_code_of(caught.value) == ExitCode.FAILURE
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["missing.txt", "missing.parquet", "folder.json", "folder.parquet"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    if name.startswith("folder"):
        (tmp_path / name).mkdir()
    with pytest.raises(DatasetError, match=r"^cannot read .*: (No such file|Is a directory)"):
        read_prompts(tmp_path / name)


def test_a_limit_is_at_least_one(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="0 conversations"):
        read_prompts(write(tmp_path / "p.txt", "a"), 0)


def test_the_sample_is_a_file_that_can_be_read() -> None:
    from finemoe_cli.datasets import sample

    found = read_prompts(Path(sample.__file__).with_name("sample.jsonl"))
    assert list(found.conversations) == sample.load_sample()


def test_importing_the_reader_is_light() -> None:
    script = "import finemoe_cli.datasets.reader, finemoe_cli.datasets.sample, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"pyarrow", "torch", "numpy", "transformers"} & set(done.stdout.split()) == set()
