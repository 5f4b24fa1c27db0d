"""Perplexity of a text: how well each combination foretells it, which has to be the same for all of them.

The text is cut into windows that overlap by half. Each token but the first is counted once: in the first window all
that have a token before them, in each later one those at its end that no window before had, with half a window
before them, as transformers' documentation does it. Windows go through the model as prompts do.
"""

from __future__ import annotations

import codecs
import hashlib
import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offload.child import run_child
from offload.errors import ConfigError, CorruptCheckpoint, FinemoeError, ModelError
from offload.units import format_bytes

WINDOW = 1024
"""Tokens in a window; fewer if the context is smaller."""

LARGEST = 8 << 20
"""Bytes of a text. It is turned into tokens as a whole, which takes some hundred bytes of memory for each."""

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Text:
    """A file whose perplexity is asked for.

    Attributes:
        path: Where it is.
        size_bytes: Without a byte order mark.
        digest: Stands for its content.
    """

    path: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text.

    Attributes:
        begin / end: Of its tokens, those from `begin` to before `end`.
        first: The first that is counted, from `begin` on.
    """

    begin: int
    end: int
    first: int


def read_text(path: Path) -> Text:
    """See that a file is a text, whatever its size.

    Raises:
        ConfigError: It cannot be read, has nothing in it, is not text in UTF-8, or is too large.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    digest, size, blank = hashlib.sha256(), 0, True
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                if not size:
                    block = block.removeprefix(codecs.BOM_UTF8)
                text = decoder.decode(block)
                if "\0" in text:
                    raise ConfigError(f"{path} is not text", "--perplexity needs a text in UTF-8")
                digest.update(block)
                size += len(block)
                if size > LARGEST:
                    raise ConfigError(f"{path} is larger than {format_bytes(LARGEST)}", "give a part of it")
                blank = blank and not text.strip()
            decoder.decode(b"", final=True)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror or error}", "--perplexity needs a text file"
        ) from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8", "--perplexity needs one") from None
    if blank:
        raise ConfigError(f"{path} has no text", "--perplexity needs some")
    return Text(str(path), size, digest.hexdigest()[:16])


def tokenise(text: Text, model: Path, out: Path) -> None:
    """Write the text's token ids to `out`, in a process of its own: tokenizers take memory, and no engine has it.

    Raises:
        ConfigError: They are too few.
        ModelError: The model has no tokenizer that can be used.
    """
    why = run_child("finemoe_cli.evaluation.perplexity", str(model), text.path, str(out))
    if why:
        raise ModelError(f"{text.path} could not be turned into tokens: {why}")
    if out.stat().st_size < 2 * array("i").itemsize:
        raise ConfigError(f"{text.path} has fewer than two tokens", "--perplexity needs a longer text")


def count_tokens(path: Path) -> int:
    """How many there are in a file of `tokenise`."""
    return path.stat().st_size // array("i").itemsize


def read_window(path: Path, window: Window) -> list[int]:
    """The token ids of a window."""
    ids = array("i")
    with path.open("rb") as file:
        file.seek(window.begin * ids.itemsize)
        ids.fromfile(file, window.end - window.begin)
    return ids.tolist()


def windows(tokens: int, context: int) -> list[Window]:
    """All windows of a text of so many tokens."""
    size = min(WINDOW, context)
    stride = max(size // 2, 1)
    found: list[Window] = []
    counted = 1
    begin = 0
    while counted < tokens:
        end = min(begin + size, tokens)
        found.append(Window(begin, end, counted - begin))
        counted = end
        begin += stride
    return found


def perplexity_of(rows: Sequence[Mapping[str, Any]], text: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """What the windows of one combination come to.

    Args:
        rows: Of ``perplexity.jsonl``: `tokens` counted and their `nll`, in nats.
        text: With its `size_bytes`.
        whole: Whether these are all of its windows.
    """
    tokens = sum(row["tokens"] for row in rows)
    nll = math.fsum(row["nll"] for row in rows)
    mean = nll / tokens if tokens else None
    return {
        "perplexity": None if mean is None else _exp(mean),
        "nll_per_token": mean,
        "bits_per_byte": nll / math.log(2) / text["size_bytes"] if whole and rows else None,
        "tokens": tokens,
        "windows": len(rows),
        "peak_bytes": max((row["peak_bytes"] for row in rows), default=None),
    }


def _exp(value: float) -> float | None:
    try:
        return math.exp(value)
    except OverflowError:
        return None


def _main(model: Path, text: Path, out: Path) -> None:
    from offload.runtime.text import ChatTokenizer
    from profiles.files import write_atomically

    tokenizer = ChatTokenizer.open(model)
    if tokenizer is None:
        raise CorruptCheckpoint(f"{model} has no tokenizer")
    ids = array("i", tokenizer.encode(text.read_text(encoding="utf-8-sig")))
    write_atomically(out, ids.tobytes())


if __name__ == "__main__":
    try:
        _main(*(Path(argument) for argument in sys.argv[1:]))
    except FinemoeError as error:
        sys.exit(error.message)
