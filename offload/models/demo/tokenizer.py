"""Tokenizer files in Hugging Face layout, written from a GGUF vocabulary."""

from __future__ import annotations

from pathlib import Path

from offload.models.demo.source import Vocabulary
from offload.models.tokenizer_files import BYTE_LEVEL, write_tokenizer_files

END_OF_TEXT, TURN_START, TURN_END = 0, 1, 2
"""Ids of ``<|endoftext|>``, ``<|im_start|>`` and ``<|im_end|>``."""


def write_tokenizer(vocabulary: Vocabulary, max_context: int, folder: Path) -> tuple[Path, Path]:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``; returns their paths.

    Raises:
        OSError: They could not be written.
    """
    tokens = vocabulary.tokens
    config = {
        "bos_token": tokens[TURN_START],
        "eos_token": tokens[TURN_END],
        "pad_token": tokens[TURN_END],
        "unk_token": tokens[END_OF_TEXT],
        "additional_special_tokens": [tokens[TURN_START], tokens[TURN_END]],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_context,
        "chat_template": vocabulary.chat_template,
    }
    # Each digit is a token of its own, then GPT-2's byte-level splitting: what SmolLM was trained with.
    digits = {"type": "Digits", "individual_digits": True}
    return write_tokenizer_files(
        folder,
        tokens=tokens,
        merges=vocabulary.merges,
        special={token: tokens[token] for token in vocabulary.special},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, BYTE_LEVEL]},
        config=config,
    )
