"""What goes to the model when not all of a conversation fits."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.errors import ContextOverflow
from ui.chat.context import fit, left_out


def size(conversation):
    """A message is as many tokens as it has words, and four."""
    return sum(4 + len(message["content"].split()) for message in conversation)


def fitted(conversation, context, max_new_tokens=10, first=0):
    calls = []

    async def count(part):
        calls.append(part)
        return size(part)

    window = asyncio.run(fit(conversation, count, context, max_new_tokens, first))
    return window, calls


def talk(turns, words=10, system=""):
    said = [{"role": "system", "content": system}] if system else []
    for turn in range(turns):
        said.append({"role": "user", "content": f"question {turn} " + "word " * words})
        said.append({"role": "assistant", "content": "answer " * words})
    return [*said, {"role": "user", "content": "the last question"}]


def test_all_of_it_if_it_fits():
    conversation = talk(3)
    window, calls = fitted(conversation, 200)
    assert (window.messages, window.turns, len(calls)) == (conversation, 0, 1)
    assert left_out(conversation, window, 200) == ""


def test_the_oldest_turns_go_and_it_is_said_which():
    conversation = talk(20, system="be brief")
    window, _ = fitted(conversation, 200)
    assert window.messages[0] == conversation[0]
    assert window.messages[-1] == conversation[-1]
    assert window.messages[1:] == conversation[1 + window.first :]
    assert window.messages[1]["role"] == "user"
    assert window.tokens + 10 <= 200
    told = left_out(conversation, window, 200)
    assert f"the first {window.turns} turns are left out" in told
    assert f"{size(conversation):,} tokens" in told
    assert "200" in told


def test_the_next_reply_begins_with_the_same_messages():
    conversation = talk(20)
    window, _ = fitted(conversation, 300)
    longer = [*conversation, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}]
    again, _ = fitted(longer, 300, first=window.first)
    assert again.first == window.first
    assert again.messages[: len(window.messages)] == window.messages


def test_what_fits_again_is_sent_again():
    conversation = talk(3)
    assert fitted(conversation, 1000, first=4)[0].first == 0


def test_a_message_that_is_too_long_alone_is_refused():
    conversation = [*talk(2), {"role": "user", "content": "word " * 500}]
    with pytest.raises(ContextOverflow) as caught:
        fitted(conversation, 200)
    assert "504 tokens" in caught.value.message
    assert "200" in caught.value.message


def test_a_long_message_may_leave_less_room_for_the_reply():
    conversation = [*talk(2), {"role": "user", "content": "word " * 180}]
    window, _ = fitted(conversation, 200, max_new_tokens=100)
    assert [message["content"][:4] for message in window.messages] == ["word"]


@given(
    words=st.lists(st.integers(0, 60), min_size=1, max_size=41).filter(lambda words: len(words) % 2 == 1),
    system=st.booleans(),
    context=st.integers(8, 600),
    new=st.integers(1, 300),
    first=st.integers(0, 40),
)
def test_a_window_is_the_end_of_the_conversation_and_fits(words, system, context, new, first):
    said = [{"role": "system", "content": "be brief"}] if system else []
    said += [
        {"role": "user" if place % 2 == 0 else "assistant", "content": "w " * count}
        for place, count in enumerate(words)
    ]
    least = said[: 1 if system else 0] + said[-1:]
    try:
        window, calls = fitted(said, context, new, first)
    except ContextOverflow:
        assert size(least) >= context
        return
    assert len(calls) <= 10
    assert window.tokens == size(window.messages) < context
    assert window.messages[-1] == said[-1]
    head = 1 if system else 0
    assert window.messages[:head] == said[:head]
    assert window.messages[head:] == said[head + window.first :]
    assert window.messages[head]["role"] == "user"
    assert window.turns == sum(message["role"] == "user" for message in said[head : head + window.first])
    if size(said) + min(new, context // 4) <= context:
        assert window.first == 0
