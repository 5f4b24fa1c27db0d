"""Tokenizer files in Hugging Face layout, written from a GGUF vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from offload.models.demo.source import Vocabulary

END_OF_TEXT, TURN_START, TURN_END = 0, 1, 2
"""Ids of ``<|endoftext|>``, ``<|im_start|>`` and ``<|im_end|>``."""


def write_tokenizer(vocabulary: Vocabulary, max_context: int, folder: Path) -> tuple[Path, Path]:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``; returns their paths.

    Raises:
        OSError: They could not be written.
    """
    tokens = vocabulary.tokens
    added = [_added_token(token, tokens[token]) for token in vocabulary.special]
    # Each digit is a token of its own, then GPT-2's byte-level splitting: what SmolLM was trained with.
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": vocabulary.merges,
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
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
    paths = folder / "tokenizer.json", folder / "tokenizer_config.json"
    for path, content in zip(paths, (tokenizer, config), strict=True):
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return paths


def _added_token(index: int, content: str) -> dict[str, Any]:
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
