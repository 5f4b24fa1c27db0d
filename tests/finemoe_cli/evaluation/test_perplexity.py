"""Texts and their windows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finemoe_cli.evaluation.perplexity import (
    Window,
    count_tokens,
    perplexity_of,
    read_text,
    read_window,
    tokenise,
    windows,
)
from offload.errors import ConfigError, ModelError


@given(st.integers(2, 6000), st.integers(2, 4096))
def test_every_token_is_counted_once(tokens, context):
    found = windows(tokens, context)
    counted = [token for one in found for token in range(one.begin + one.first, one.end)]
    assert counted == list(range(1, tokens))
    size = min(1024, context)
    assert all(one.end - one.begin <= size for one in found)
    assert all(one.first >= size - size // 2 for one in found[1:])


def test_what_windows_come_to():
    rows = [{"tokens": 3, "nll": 6.0, "peak_bytes": 5}, {"tokens": 1, "nll": 2.0, "peak_bytes": 4}]
    found = perplexity_of(rows, {"size_bytes": 4}, whole=True)
    assert (found["perplexity"], found["nll_per_token"]) == (math.exp(2), 2)
    assert found["bits_per_byte"] == pytest.approx(2 / math.log(2))
    assert (found["tokens"], found["windows"], found["peak_bytes"]) == (4, 2, 5)
    assert perplexity_of(rows, {"size_bytes": 4}, whole=False)["bits_per_byte"] is None
    assert perplexity_of([], {"size_bytes": 4}, whole=True)["perplexity"] is None
    assert (
        perplexity_of([{"tokens": 1, "nll": 1e4, "peak_bytes": 1}], {"size_bytes": 4}, whole=True)["perplexity"]
        is None
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no text"),
        (b"\xef\xbb\xbf", "has no text"),
        (b" \n\t\n", "has no text"),
        (b"caf\xe9", "is not text in UTF-8"),
        (b"caf\xc3", "is not text in UTF-8"),
        (b"\x7fELF\0\0\0", "is not text"),
        (b"word " * (2 << 20), "is larger than 8"),
        (b"x" * ((1 << 20) - 1) + "ä".encode() + b"\0", "is not text"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, said):
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(ConfigError, match=said) as raised:
        read_text(tmp_path / "text")
    assert "\n" not in raised.value.message


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_text(tmp_path)


def test_a_text_is_known_by_its_content(tmp_path):
    (tmp_path / "a").write_text("Grüße", encoding="utf-8")
    (tmp_path / "b").write_text("Grüße", encoding="utf-8-sig")
    a, b = read_text(tmp_path / "a"), read_text(tmp_path / "b")
    assert (a.size_bytes, a.digest) == (b.size_bytes, b.digest) == (7, a.digest)


def test_tokens_are_read_window_by_window(tiny, tmp_path):
    (tmp_path / "text").write_text("Hello there, hello.", encoding="utf-8-sig")
    text, out = read_text(tmp_path / "text"), tmp_path / "run" / "tokens"
    tokenise(text, tiny, out)
    whole = read_window(out, Window(0, count_tokens(out), 1))
    assert len(whole) == count_tokens(out) > 10
    assert read_window(out, Window(3, 7, 1)) == whole[3:7]
    (tmp_path / "text").write_text("H")
    with pytest.raises(ConfigError, match="fewer than two tokens"):
        tokenise(text, tiny, out)
    with pytest.raises(ModelError, match="has no tokenizer"):
        tokenise(text, tmp_path, out)
