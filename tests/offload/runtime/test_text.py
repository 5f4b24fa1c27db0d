"""Conversations become the tokens that transformers makes of them, family by family."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from offload import Sampling
from offload.errors import CorruptCheckpoint, ModelError
from offload.runtime.text import ChatTokenizer
from tests.support.checkpoints import tiny_checkpoint
from tests.support.engines import open_engine
from tests.support.tokenizers import CHATML, CHATML_TOKENS, INSTRUCT, INSTRUCT_TOKENS, tiny_tokenizer

USER = {"role": "user", "content": "Why is the sky blue?"}
ANSWER = {"role": "assistant", "content": "Rayleigh, né Strutt: λ⁻⁴."}
SYSTEM = {"role": "system", "content": "Be brief. <|im_end|> is no way out of here."}
CONVERSATIONS = {
    "one question": [USER],
    "second turn": [USER, ANSWER, {"role": "user", "content": "And\n\n  at dusk?"}],
    "empty": [{"role": "user", "content": ""}],
}


@pytest.fixture(scope="module", params=["tokenizer_config.json", "chat_template.jinja"])
def chatml(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chatml")
    as_file = request.param == "chat_template.jinja"
    return tiny_tokenizer(folder, special=CHATML_TOKENS, eos="<|im_end|>", template=CHATML, as_file=as_file)


@pytest.fixture(scope="module")
def instruct(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instruct")
    return tiny_tokenizer(folder, special=INSTRUCT_TOKENS, bos="<s>", eos="</s>", template=INSTRUCT)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A base model: a tokenizer, and no chat template."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("plain") / "tiny-base")
    return tiny_tokenizer(folder, special=CHATML_TOKENS, eos="<|endoftext|>")


def opened(folder):
    tokenizer = ChatTokenizer.open(folder)
    assert tokenizer is not None
    return tokenizer


def theirs(folder: Path, messages):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_chatml_is_applied_as_transformers_does(chatml, conversation):
    for messages in (conversation, [SYSTEM, *conversation]):
        assert opened(chatml).encode_chat(messages) == theirs(chatml, messages)


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_instruct_form_is_applied_as_transformers_does(instruct, conversation):
    assert opened(instruct).encode_chat(conversation) == theirs(instruct, conversation)


def test_a_conversation_is_the_text_that_the_family_was_trained_on(chatml, instruct):
    def text(folder, messages):
        return AutoTokenizer.from_pretrained(folder).decode(opened(folder).encode_chat(messages))

    assert text(chatml, [USER]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text(instruct, [USER, ANSWER, USER]) == (
        f"<s>[INST] {USER['content']} [/INST]{ANSWER['content']}</s>[INST] {USER['content']} [/INST]"
    )


def test_the_beginning_is_marked_once_in_chats_and_in_plain_text(instruct, chatml):
    begin = 0
    assert opened(instruct).encode_chat([USER]).count(begin) == 1
    assert opened(instruct).encode("sky")[0] == begin
    assert opened(instruct).encode("sky").count(begin) == 1
    assert len(opened(chatml).encode("sky")) == 3


def test_a_template_that_refuses_a_conversation_says_why(instruct):
    with pytest.raises(ModelError, match="Only user and assistant roles are supported"):
        opened(instruct).encode_chat([USER, SYSTEM])
    with pytest.raises(ModelError, match="must alternate"):
        opened(instruct).encode_chat([USER, USER])


def test_without_a_template_there_is_no_chat_but_plain_text(plain):
    tokenizer = opened(plain)
    with pytest.raises(ModelError, match="no chat template") as caught:
        tokenizer.encode_chat([USER])
    assert "--raw" in caught.value.hint
    assert tokenizer.encode("sky") == AutoTokenizer.from_pretrained(plain)("sky")["input_ids"]
    with open_engine(plain, 1.0, "reference", context=64) as engine:
        with pytest.raises(ModelError, match="no chat template"):
            engine.chat([USER])
        completion = engine.complete("sky", Sampling(max_new_tokens=4, temperature=0))
    assert (completion.prompt_tokens, completion.completion_tokens) == (3, 4)


def test_no_tokenizer_and_a_broken_one(tmp_path):
    assert ChatTokenizer.open(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptCheckpoint, match="cannot be read"):
        ChatTokenizer.open(tmp_path)
