"""Tokenizer files in Hugging Face layout, of byte-level BPE vocabularies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
"""GPT-2's way from text to bytes and back."""


def write_tokenizer_files(
    folder: Path,
    *,
    tokens: Sequence[str],
    merges: Sequence[Any],
    special: Mapping[int, str],
    pre_tokenizer: Mapping[str, Any],
    config: Mapping[str, Any],
) -> tuple[Path, Path]:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``; returns their paths.

    Args:
        tokens: By id.
        merges: In order; none for bytes alone.
        special: Special tokens by id, among `tokens` or behind them.
        pre_tokenizer: How a text is split first.
        config: What ``tokenizer_config.json`` has beside the class.

    Raises:
        OSError: They could not be written.
    """
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, content) for number, content in special.items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    contents = tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    paths = folder / "tokenizer.json", folder / "tokenizer_config.json"
    for path, content in zip(paths, contents, strict=True):
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return paths


def _added(number: int, content: str) -> dict[str, Any]:
    return {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
