"""Holding conversations while a recorder watches, with a real engine in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from finemoe_cli.datasets.conversation import Conversation
from finemoe_cli.recording import Recording, record
from offload import Engine, Sampling
from offload.telemetry.counters import Phase
from offload.trace.file import Trace, TraceHeader
from offload.trace.records import TraceRequest
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import open_engine
from tests.support.tokenizers import CHATML, CHATML_TOKENS, tiny_tokenizer

TALKS = (Conversation("one", ("Hello", "And then?")), Conversation("two", ("Why?",), system="Be brief."))
WHAT = Recording(
    conversations=TALKS,
    dataset="talks",
    turns=None,
    system=None,
    sampling=Sampling(max_new_tokens=4),
    residuals=False,
    prompt_residuals=False,
    texts=True,
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Iterator[Engine]:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")
    tiny_tokenizer(folder, special=CHATML_TOKENS, eos="<|endoftext|>", template=CHATML)
    with open_engine(folder, 0.5, "reference", context=200) as engine:
        yield engine


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "t.trace"


def recorded(
    engine: Engine, path: Path, what: Recording, *, stop_after: int = 1 << 30, told: list[str] | None = None
) -> tuple[TraceHeader, list[TraceRequest]]:
    """What a recording is that is stopped during answer ``stop_after``."""
    answers = 0

    def stopped() -> bool:
        nonlocal answers
        answers += 1
        return answers > stop_after

    record(
        engine,
        what,
        path,
        replace_file=True,
        profile="low",
        stopped=stopped,
        progress=lambda done: None,
        left_out=(told if told is not None else []).append,
    )
    with Trace.open(path) as trace:
        assert trace.warning == ""
        return trace.header, list(trace)


def prompt_of(request: TraceRequest) -> list[int]:
    return [int(token) for each in request.passes if each.phase == Phase.PREFILL for token in each.token_ids]


def text_of(engine: Engine, request: TraceRequest) -> str:
    return str(engine._require_tokenizer()._tokenizer.decode(prompt_of(request), skip_special_tokens=False))


def test_turn_by_turn(engine, path):
    header, (first, second, other) = recorded(engine, path, WHAT)
    names = [(request.name, request.text) for request in (first, second, other)]
    assert names == [("one/1", "Hello"), ("one/2", "And then?"), ("two/1", "Why?")]
    # The second turn goes on from what the first one left in the cache; another conversation begins anew.
    begun = len(prompt_of(first))
    assert [request.passes[0].position for request in (first, other)] == [0, 0]
    assert begun <= second.passes[0].position <= begun + 3
    assert all(len(request.passes) == 4 for request in (first, second, other))
    assert (header.dataset, header.profile, header.slots, header.sampling["seed"]) == ("talks", "low", 12, 0)


def test_what_was_recorded_before_changes_nothing(engine, path):
    _, (*_, last) = recorded(engine, path, WHAT)
    _, (only,) = recorded(engine, path, replace(WHAT, conversations=TALKS[1:]))
    assert ids(only) == ids(last)


def test_the_same_seed_gives_the_same(engine, path):
    def answers(seed: int | None) -> list[list[int]]:
        sampling = Sampling(max_new_tokens=8, temperature=3.0, seed=seed)
        header, requests = recorded(engine, path, replace(WHAT, sampling=sampling))
        assert header.sampling["seed"] == (seed or 0)
        return [ids(request) for request in requests]

    assert answers(None) == answers(0)
    assert answers(7) == answers(7) != answers(0)


def ids(request: TraceRequest) -> list[int]:
    return [int(token) for each in request.passes for token in each.token_ids]


def test_only_first_turns_without_texts(engine, path):
    _, requests = recorded(engine, path, replace(WHAT, turns=1, texts=False))
    assert [(request.name, request.text) for request in requests] == [("one/1", ""), ("two/1", "")]


def test_system_prompts(engine, path):
    _, (first, _, other) = recorded(engine, path, replace(WHAT, system="Be kind."))
    texts = [text_of(engine, request) for request in (first, other)]
    assert ["Be kind." in text for text in texts] == [True, False]
    assert ["Be brief." in text for text in texts] == [False, True]


def test_what_does_not_fit_is_left_out_and_told(engine, path):
    talks = (Conversation("long", ("a", "b" * 200, "c")), Conversation("short", ("d",)))
    told: list[str] = []
    _, requests = recorded(engine, path, replace(WHAT, conversations=talks), told=told)
    assert [request.name for request in requests] == ["long/1", "short/1"]
    assert len(told) == 1 and told[0].startswith("long: the prompt has ")


def test_an_answer_that_was_cut_short_is_not_kept(engine, path):
    _, requests = recorded(engine, path, WHAT, stop_after=1)
    assert [request.name for request in requests] == ["one/1"]
    _, requests = recorded(engine, path, WHAT)  # and the engine is watched no more by the first recorder
    assert len(requests) == 3


def test_an_error_keeps_what_is_complete_and_the_engine(engine, path):
    class Wrong(Exception):
        pass

    def fail(done: int) -> None:
        if done == 1:
            raise Wrong

    with pytest.raises(Wrong):
        record(
            engine, WHAT, path, replace_file=False, profile="", stopped=lambda: False, progress=fail, left_out=print
        )  # fmt: skip
    with Trace.open(path) as trace:
        assert (len(trace), trace.warning) == (2, "")
    assert engine._loaded.watch._observers == []
