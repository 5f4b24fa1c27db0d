"""From conversations to token ids and back, with the model's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from offload.errors import CorruptCheckpoint, ModelError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


class ChatTokenizer:
    """A model's tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, folder: Path) -> ChatTokenizer | None:
        """The tokenizer in a model folder; None if there is none.

        Raises:
            CorruptCheckpoint: There is one, and it cannot be read.
        """
        if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            return None
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers and tokenizers raise whatever they come upon
            raise CorruptCheckpoint(f"the tokenizer in {folder} cannot be read: {error}") from error
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens the model puts around it."""
        return list(self._tokenizer(text)["input_ids"])

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the answer begins.

        Raises:
            ModelError: The model has no chat template, or the template refuses the conversation.
        """
        if not self._tokenizer.chat_template:
            raise ModelError("the model has no chat template", "use --raw to continue plain text")
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates raise what their authors chose
            raise ModelError(f"the chat template refuses this conversation: {error}") from error
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def stream(self, on_text: Callable[[str], None]) -> TextStream:
        """A decoder of tokens that come one by one."""
        return TextStream(self._tokenizer, on_text)


class TextStream:
    """Turns tokens into text as they come; a piece is passed on as soon as no later token can change it."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._decoder = DecodeStream(skip_special_tokens=True) if self._backend is not None else None
        self._on_text = on_text
        self._token_ids: list[int] = []
        self._sent = ""

    def push(self, token: int) -> None:
        """Take one token."""
        self._token_ids.append(token)
        if self._decoder is None or self._backend is None:
            return
        piece = self._decoder.step(self._backend, token)
        if piece:
            self._sent += piece
            self._on_text(piece)

    def finish(self) -> str:
        """The whole text; what was still held back is passed on first."""
        text = str(
            self._tokenizer.decode(self._token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        if text.startswith(self._sent):
            if len(text) > len(self._sent):
                self._on_text(text[len(self._sent) :])
            return text
        return self._sent
