"""A tokenizer for synthetic checkpoints: bytes in, made-up words out.

A text is read byte by byte; the model, whose tokens mean nothing, writes words that can at least be pronounced.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from offload.models.tokenizer_files import BYTE_LEVEL, write_tokenizer_files

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CONSONANTS = "bdfghjklmnprstv"
_VOWELS = "aeiou"
_SYLLABLES = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
_STEP = 7919  # Has no divisor with the number of words of three syllables, so that no two words are alike.


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which token is what: bytes first, then words, then the special tokens, then rows that are no tokens.

    Attributes:
        size: Rows of the embedding table.
        first_word / end_of_words: The words' ids.
        special: Id of each of :data:`SPECIAL`.
    """

    size: int
    first_word: int
    end_of_words: int
    special: tuple[int, int, int]

    @classmethod
    def of_size(cls, size: int, end_of_text: int) -> Vocabulary:
        """With ``end_of_text`` as the first special token, as Qwen has it."""
        assert 256 < end_of_text <= size - len(SPECIAL)
        return cls(size, 256, end_of_text, (end_of_text, end_of_text + 1, end_of_text + 2))


def word(number: int) -> str:
    """A word of three syllables, another one for each number below 421,875."""
    base = len(_SYLLABLES)
    rest = number * _STEP % base**3
    return _SYLLABLES[rest // base**2] + _SYLLABLES[rest // base % base] + _SYLLABLES[rest % base]


def byte_letters() -> list[str]:
    """The printable stand-in for each byte that byte-level tokenizers use, by its place in the alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return sorted([chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))])


def write_tokenizer(vocabulary: Vocabulary, max_context: int, folder: Path) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``.

    Raises:
        OSError: They could not be written.
    """
    tokens = [*byte_letters(), *(f"\u0120{word(n)}" for n in range(vocabulary.first_word, vocabulary.end_of_words))]
    config = {
        "bos_token": None,
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "additional_special_tokens": list(SPECIAL[1:]),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_context,
        "chat_template": CHAT_TEMPLATE,
    }
    write_tokenizer_files(
        folder,
        tokens=tokens,
        merges=[],
        special=dict(zip(vocabulary.special, SPECIAL, strict=True)),
        pre_tokenizer=BYTE_LEVEL,
        config=config,
    )
