from __future__ import annotations

import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from ui.sessions import SessionStore
from ui.sessions.search import PIECE, match_expression, pieces


@pytest.fixture
def talk(store):
    """Contents by a word: ids of messages."""
    session = store.create("talk")
    texts = {
        "sky": "Why is the sky blue in the morning?",
        "bread": "How do I bake a sourdough bread?",
        "naive": "A naïve café, don't you think?",
        "both": "sky sky sky bread",
        "code": 'print("hello-world") # C++',
    }
    return store, {name: store.add(session.id, None, "user", text).id for name, text in texts.items()}


def found(store: SessionStore, query: str) -> list[int]:
    return [hit.message.id for hit in store.search(query)]


def test_all_words_count_and_the_last_may_be_a_beginning(talk):
    store, ids = talk
    assert set(found(store, "sky")) == {ids["sky"], ids["both"]}
    assert found(store, "bread sk") == [ids["both"]]
    assert found(store, "blue SKY mor") == [ids["sky"]]
    assert found(store, "sour") == [ids["bread"]]
    assert found(store, "sour bread") == []  # only the last
    assert found(store, "naive cafe") == [ids["naive"]]
    assert found(store, "nothing") == []


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ('"hello-world"', "code"),
        ("don't", "naive"),
        ("hello-wor", "code"),
        ('print("hel', "code"),
        ("( sky ) blue", "sky"),
    ],
)
def test_no_character_has_a_meaning(talk, query, name):
    store, ids = talk
    assert found(store, query) == [ids[name]]


@pytest.mark.parametrize(
    "query", ["", "  ", "*", '"', "NEAR(", "sky AND", "-", "\0", "!!! ???", "content:sky", "^"]
)
def test_operators_are_words(talk, query):
    store, _ = talk
    assert found(store, query) == []


@settings(max_examples=200, deadline=None)
@given(strategies.text(max_size=30))
def test_any_query_is_safe_and_finds_its_own_text(query):
    with SessionStore.in_memory() as store:
        message = store.add(store.create().id, None, "user", query)
        hits = found(store, query)
        # Not every alphanumeric character of Python's is one of SQLite's, which knows an older Unicode.
        if match_expression(query) and query.isascii():
            assert hits == [message.id]
        assert set(hits) <= {message.id}


def test_the_best_comes_first_with_its_place(store):
    session = store.create()
    weak = store.add(session.id, None, "user", "bread and much else " + "word " * 300 + "end")
    strong = store.add(session.id, None, "user", "bread, bread and bread")
    first, second = store.search("bread")
    assert (first.message.id, second.message.id) == (strong.id, weak.id)
    assert first.score > second.score > 0
    assert first.session == store.get(session.id)
    assert first.snippet == "bread, bread and bread"
    assert second.snippet.startswith("bread and much else word") and second.snippet.endswith("…")
    (hit,) = store.search("end")
    assert hit.snippet.startswith("…") and hit.snippet.endswith("end")
    assert len(store.search("bread", limit=1)) == 1


def test_snippets_are_one_line(store):
    store.add(store.create().id, None, "user", "a\n\n  bread\tand\nbutter")
    assert store.search("bread")[0].snippet == "a bread and butter"


def test_an_answer_is_found_once_it_is_whole_and_as_it_is(store):
    session = store.create()
    answer = store.add(session.id, None, "assistant", "sourdough")
    assert found(store, "sourdough") == []
    store.append(answer.id, " bread")
    store.finish(answer.id, "stop", None)
    assert found(store, "sourdough bread") == [answer.id]
    store.replace(answer.id, "croissant")
    assert (found(store, "sourdough"), found(store, "croissant")) == ([], [answer.id])
    store.finish(answer.id, "length", None)
    store.append(answer.id, "s")
    assert (found(store, "croissants"), len(found(store, "croi"))) == ([answer.id], 1)
    store.delete(session.id)
    assert found(store, "croi") == []


class Words:
    """An embedder that counts words: texts with the same words are near. Keeps what it was asked."""

    def __init__(self, name: str | None = "words", dimensions: int = 64) -> None:
        if name is not None:
            self.name = name
        self.dimensions = dimensions
        self.asked: list[str] = []

    def __call__(self, texts: list[str]):
        self.asked += texts
        vectors = np.zeros((len(texts), self.dimensions))
        for row, text in zip(vectors, texts, strict=True):
            for word in text.lower().replace("?", "").split():
                row[zlib.crc32(word.encode()) % self.dimensions] += 1
        return vectors


def test_the_nearest_comes_first(talk):
    store, ids = talk
    for embed in (Words(), Words(name=None)):
        hits = store.search_by_meaning("sky bread", embed)
        assert hits[0].message.id == ids["both"]
        assert hits[0].score == pytest.approx(4 / np.sqrt(2 * 10))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert {hit.message.id for hit in hits} == set(ids.values())
        assert len(store.search_by_meaning("sky", embed, limit=2)) == 2
    assert store.search_by_meaning("  ", Words()) == []


def test_only_what_is_new_is_embedded(talk, path):
    store, ids = talk
    embed = Words()
    store.search_by_meaning("sky", embed)
    assert len(embed.asked) == 1 + len(ids)
    embed.asked.clear()
    store.search_by_meaning("bread", embed)
    assert embed.asked == ["bread"]
    session = store.find("talk")
    store.add(session.id, None, "user", "new")
    half = store.add(session.id, None, "assistant", "half")
    store.replace(ids["sky"], "grey")
    told = []
    embed.asked.clear()
    store.search_by_meaning("bread", embed, progress=lambda done, total: told.append((done, total)))
    assert sorted(embed.asked) == ["bread", "grey", "new"]
    assert told == [(2, 2)]
    store.append(half.id, "way")
    store.finish(half.id, "stop", None)
    with SessionStore.open(path) as other:
        embed.asked.clear()
        hits = other.search_by_meaning("halfway", embed)
        assert embed.asked == ["halfway", "halfway"]
        assert (hits[0].message.id, hits[0].score) == (half.id, pytest.approx(1))
    store.delete(session.id)
    assert store.search_by_meaning("sky", embed) == []


def test_each_embedder_has_vectors_of_its_own(talk):
    store, ids = talk
    for embed in (Words("one"), Words("two"), Words("one", dimensions=32), Words("one", dimensions=32)):
        assert store.search_by_meaning("sky bread", embed)[0].message.id == ids["both"]
    assert len(embed.asked) == 1


def test_a_long_message_is_found_by_what_stands_at_its_end(store):
    session = store.create()
    long = store.add(session.id, None, "user", "filler and more filler. " * 100 + "sourdough bread recipe")
    store.add(session.id, None, "user", "filler " * 5)
    hit = store.search_by_meaning("sourdough bread recipe", Words())[0]
    assert hit.message == long
    assert hit.snippet.startswith("…filler")


def test_an_interrupted_search_keeps_what_it_embedded(store):
    session = store.create()
    with store._database.writing() as connection:
        connection.executemany(
            "INSERT INTO messages (session, role, content, created) VALUES (?, 'user', ?, 0)",
            [(session.id, f"message {number}") for number in range(300)],
        )
    embed = Words()

    def stop_after(done: int, total: int) -> None:
        if done >= 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.search_by_meaning("x", embed, progress=stop_after)
    embed.asked.clear()
    assert len(store.search_by_meaning("x", embed, limit=1000)) == 300
    assert 100 < len(embed.asked) <= 300 - 64


@settings(max_examples=200)
@given(strategies.text(alphabet="ab. \n", max_size=5000))
def test_pieces_cover_all_that_is_not_blank(text):
    spans = pieces(text)
    assert all(0 <= start < stop <= start + PIECE for start, stop in spans)
    assert all(before <= after for (_, before), (after, _) in pairwise(spans))
    covered = {place for span in spans for place in range(*span)}
    assert all(place in covered for place, character in enumerate(text) if not character.isspace())
