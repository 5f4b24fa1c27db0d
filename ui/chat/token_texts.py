"""The text of a model's tokens, from its tokenizer, without what runs the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


class TokenTexts:
    """Gives the text of tokens once the tokenizer is loaded; until then, and without one, none.

    Attributes:
        folder: The model's; None for one that is not known.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._tokenizer: Any = None

    def load(self) -> None:
        """Loads the tokenizer, which takes a moment; in a thread, say."""
        path = self.folder / "tokenizer.json" if self.folder is not None else None
        if path is None or not path.is_file():
            return
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception:  # The library raises nothing more exact; numbers do in the place of text.
            self._tokenizer = None

    def __call__(self, token_id: int) -> str | None:
        """The text of a token; None where that is not known."""
        return str(self._tokenizer.decode([token_id])) if self._tokenizer is not None else None

    def of(self, token_ids: Iterable[int]) -> dict[int, str]:
        """The texts of those tokens that are known."""
        texts = {token_id: self(token_id) for token_id in set(token_ids)}
        return {token_id: text for token_id, text in texts.items() if text is not None}
