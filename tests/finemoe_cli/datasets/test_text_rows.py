"""Text in pieces, wherever they end, gives the same rows; a large file takes no more memory than a small one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finemoe_cli.datasets.errors import BadRow
from finemoe_cli.datasets.text_rows import decoded, json_array, json_lines, lines

MIB = 2**20

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | unicode_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(unicode_text, inner, max_size=3),
    max_leaves=8,
)


def cut(text: str, sizes: list[int]) -> list[str]:
    """The text in pieces of these sizes, over and over; some are empty."""
    pieces, place, turn = [], 0, 0
    while place < len(text):
        size = sizes[turn % len(sizes)]
        pieces.append(text[place : place + size])
        place, turn = place + size, turn + 1
    return pieces


sizes = st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any)


@given(st.lists(values, max_size=6), st.sampled_from([None, 0, 2]), st.booleans(), sizes)
def test_an_array_in_pieces(array: list[object], indent: int | None, ascii_only: bool, sizes: list[int]) -> None:
    text = " " + json.dumps(array, indent=indent, ensure_ascii=ascii_only) + "\n"
    assert list(json_array(iter(cut(text, sizes)))) == list(enumerate(array, 1))


@given(st.lists(values, max_size=6), st.sampled_from(["\n", "\r\n", "\n \n"]), sizes)
def test_json_lines_in_pieces(rows: list[object], end: str, sizes: list[int]) -> None:
    text = end.join(json.dumps(row, ensure_ascii=False) for row in rows)
    step = end.count("\n")
    expected = [(1 + place * step, row) for place, row in enumerate(rows)]
    assert list(json_lines(iter(cut(text, sizes)))) == expected


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), sizes)
def test_lines_in_pieces(text: str, sizes: list[int]) -> None:
    expected = [
        (number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()
    ]
    assert list(lines(iter(cut(text, sizes)))) == expected


@given(st.text('[]{}",:\\ \nab1', max_size=40), sizes)
def test_whatever_stands_in_an_array_ends(rubbish: str, sizes: list[int]) -> None:
    found = list(json_array(iter(cut("[" + rubbish, sizes))))
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    try:
        whole = json.loads("[" + rubbish)
    except ValueError:
        assert isinstance(found[-1][1], BadRow)
    else:
        assert [value for _, value in found] == whole


@given(st.binary(max_size=60))
def test_any_bytes_give_text(data: bytes) -> None:
    text = "".join(decoded(io.BytesIO(data)))
    if "\udc80" not in text and data[:2] not in (b"\xff\xfe", b"\xfe\xff") and data[:4] != b"\0\0\xfe\xff":
        assert text.encode() == data.removeprefix(b"\xef\xbb\xbf")


@settings(max_examples=30)
@given(st.integers(0, 6), st.sampled_from(["é", "你", "🦆"]))
def test_a_character_across_two_reads(shift: int, character: str) -> None:
    text = "a" * (256 * 1024 - shift) + character * 4
    assert "".join(decoded(io.BytesIO(text.encode()))) == text


MEASURE = """
import sys
from pathlib import Path
from finemoe_cli.datasets.reader import read_prompts

def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

path, small, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
read_prompts(small, limit)
before = peak()
found = read_prompts(path, limit)
print(peak() - before, len(found.conversations), found.skipped_rows)
"""


def write_large(path: Path, mebibytes: int) -> int:
    """A file of rows without a user's turn, and three good ones at its end. Returns how many are bad."""
    filler = "Ein langer Absatz, in dem nichts geschieht. " * 40
    bad = json.dumps({"conversation": [{"role": "assistant", "content": filler}]}, ensure_ascii=False)
    good = json.dumps({"prompt": "Und jetzt?"})
    count = mebibytes * MIB // len(bad)
    array = path.suffix == ".json"
    between = ",\n" if array else "\n"
    with path.open("w", encoding="utf-8") as file:
        file.write("[" if array else "")
        for _ in range(count):
            file.write(bad + between)
        file.write(between.join([good] * 3) + ("]" if array else "\n"))
    return count


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("mebibytes", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_a_large_file_takes_no_more_memory(tmp_path: Path, name: str, mebibytes: int) -> None:
    large, small = tmp_path / name, tmp_path / f"small-{name}"
    count = write_large(large, mebibytes)
    write_large(small, 2)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large), str(small), "3"], capture_output=True, text=True, check=True
    )
    grown, conversations, skipped = map(int, done.stdout.split())
    assert (conversations, skipped) == (3, count)
    assert grown < 8 * MIB


def test_one_row_without_an_end_takes_no_more_memory(tmp_path: Path) -> None:
    large, small = tmp_path / "rows.json", tmp_path / "small.json"
    small.write_text('["a"]')
    with large.open("w") as file:
        file.write('["a", "')
        for _ in range(60):
            file.write("x" * MIB)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large), str(small), "3"], capture_output=True, text=True, check=True
    )
    grown, conversations, skipped = map(int, done.stdout.split())
    assert (conversations, skipped) == (1, 1)
    assert grown < 40 * MIB
