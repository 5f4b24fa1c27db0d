"""The bundled sample keeps what docs/datasets.md promises about it."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import pytest

from benchmarks.sample_statistics import first_turn_tokens, table
from finemoe_cli.datasets.errors import DatasetError
from finemoe_cli.datasets.sample import load_sample, split

ROOT = Path(__file__).parents[3]
SAMPLE = load_sample()


def test_every_row_has_the_schema_and_nothing_else() -> None:
    data = files("finemoe_cli.datasets").joinpath("sample.jsonl").read_bytes()
    assert data.endswith(b"}\n") and b"\r" not in data
    rows = [json.loads(line) for line in data.decode("utf-8").removesuffix("\n").split("\n")]
    assert len(rows) == len(SAMPLE)
    for row in rows:
        assert list(row) == ["id", "kind", "language", "turns"]
        assert re.fullmatch(r"sample-\d{3}", row["id"])
        assert re.fullmatch(r"[a-z]+", row["kind"])
        assert re.fullmatch(r"[a-z]{2}", row["language"])
        assert all(turn == turn.strip() and turn for turn in row["turns"])


def test_it_is_large_and_mixed() -> None:
    assert len(SAMPLE) >= 200
    assert len({one.id for one in SAMPLE}) == len(SAMPLE)
    languages = Counter(one.language for one in SAMPLE)
    assert len(languages) >= 20
    assert 0.4 <= languages["en"] / len(SAMPLE) <= 0.6
    assert len({one.kind for one in SAMPLE}) >= 25
    assert sum(len(one.turns) > 1 for one in SAMPLE) >= len(SAMPLE) / 3
    assert max(len(one.turns) for one in SAMPLE) == 5


def test_the_beginning_of_it_is_mixed_too() -> None:
    for limit in (32, 64):
        first = load_sample(limit)
        assert len({one.language for one in first}) >= limit / 5
        assert len({one.kind for one in first}) >= limit / 5


def test_a_language_is_written_in_its_own_letters() -> None:
    letters = {
        "ar": "ء-ي", "bg": "а-я", "bn": "ঀ-৿", "el": "α-ω", "fa": "ء-ی", "he": "א-ת", "ja": "ぁ-ん", "ko": "가-힣",
        "ru": "а-я", "ta": "஀-௿", "th": "ก-๛", "uk": "а-яі", "ur": "ء-ے", "zh": "一-龥",
    }  # fmt: skip
    for one in SAMPLE:
        if one.language in letters:
            assert re.search(f"[{letters[one.language]}]", one.turns[0], re.IGNORECASE), one.id


def test_no_two_are_nearly_the_same() -> None:
    def pieces(text: str) -> set[str]:
        plain = re.sub(r"\W+", " ", text.casefold()).strip()
        return {plain[start : start + 4] for start in range(max(len(plain) - 3, 1))}

    first = [(one.id, pieces(one.turns[0])) for one in SAMPLE]
    alike = [
        (name, other)
        for (name, mine), (other, theirs) in combinations(first, 2)
        if len(mine & theirs) > 0.4 * len(mine | theirs)
    ]
    assert alike == []
    turns = Counter(" ".join(turn.casefold().split()) for one in SAMPLE for turn in one.turns)
    assert [turn for turn, count in turns.items() if count > 1] == []


def test_there_is_nobody_in_it() -> None:
    everything = "\n".join(turn for one in SAMPLE for turn in one.turns)
    assert re.findall(r"[\w.]+@[\w-]+\.\w+", everything) == []
    hosts = re.findall(r"\w+://([\w.-]+)", everything)
    assert [host for host in hosts if not host.endswith("example.com")] == []


def test_lengths_are_those_of_what_people_type(demo_model: Path) -> None:
    tokens = first_turn_tokens(SAMPLE, demo_model / "tokenizer.json")
    assert 40 <= statistics.mean(tokens) <= 70
    assert 20 <= statistics.median(tokens) <= 35
    assert sum(300 <= count <= 1000 for count in tokens) >= 5
    assert 1 <= sum(count > 1000 for count in tokens) <= 2
    assert min(tokens) <= 2


def test_the_document_has_the_statistics_of_this_sample(demo_model: Path) -> None:
    document = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert table(SAMPLE, first_turn_tokens(SAMPLE, demo_model / "tokenizer.json")) in document


def test_a_seed_shuffles_and_says_how() -> None:
    assert load_sample() == SAMPLE
    assert load_sample(seed=3) == load_sample(seed=3) != load_sample(seed=4)
    assert sorted(load_sample(seed=3), key=lambda one: one.id) == SAMPLE
    assert load_sample(10, seed=3) == load_sample(seed=3)[:10]
    # Figures are compared across machines and versions of Python: the order itself must not change.
    assert [one.id for one in load_sample(3, seed=0)] == ["sample-113", "sample-190", "sample-081"]


def test_split_leaves_nothing_out_and_nothing_twice() -> None:
    history, held_out = split(SAMPLE)
    assert len(history) == round(0.7 * len(SAMPLE))
    assert sorted(one.id for one in history + held_out) == [one.id for one in SAMPLE]
    assert split(SAMPLE) == (history, held_out) != split(SAMPLE, seed=1)


@pytest.mark.parametrize(("count", "share", "first"), [(2, 0.7, 1), (2, 0.01, 1), (3, 0.99, 2), (10, 0.5, 5)])
def test_split_gives_each_part_one(count: int, share: float, first: int) -> None:
    history, held_out = split(SAMPLE[:count], share)
    assert (len(history), len(held_out)) == (first, count - first)


def test_split_refuses_what_cannot_be_divided() -> None:
    with pytest.raises(DatasetError, match="two conversations at least"):
        split(SAMPLE[:1])
    for share in (0, 1, -0.5, 7, float("nan")):
        with pytest.raises(DatasetError, match="not between 0 and 1"):
            split(SAMPLE, share)
