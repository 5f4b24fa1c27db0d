"""Statistics of the bundled prompts, or of a file of one's own, as a table in Markdown.

    python -m benchmarks.sample_statistics [--prompts FILE] [--tokenizer PATH]

Tokens are those of a conversation's first turn, without the chat template. The tokenizer is the pulled demo
model's; ``--tokenizer`` names another ``tokenizer.json``. A few seconds.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from finemoe_cli.datasets.conversation import Conversation
from finemoe_cli.datasets.reader import read_prompts
from finemoe_cli.datasets.sample import load_sample
from profiles.paths import models_dir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, help="a file of prompts; the bundled sample by default")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; the pulled demo model's by default")
    options = parser.parse_args()
    tokenizer = options.tokenizer or models_dir() / "demo" / "tokenizer.json"
    conversations = read_prompts(options.prompts).conversations if options.prompts else load_sample()
    print(table(conversations, first_turn_tokens(conversations, tokenizer)), end="")


def first_turn_tokens(conversations: Iterable[Conversation], tokenizer: Path) -> list[int]:
    """How many tokens each conversation's first turn has."""
    opened = Tokenizer.from_file(str(tokenizer))
    return [len(opened.encode(one.turns[0], add_special_tokens=False).ids) for one in conversations]


def table(conversations: Sequence[Conversation], tokens: Sequence[int]) -> str:
    """The statistics, one a row."""
    lengths = Counter(len(one.turns) for one in conversations)
    several = sum(count for turns, count in lengths.items() if turns > 1)
    ordered = sorted(tokens)
    rows = {
        "conversations": f"{len(conversations)}",
        "turns of the user": f"{sum(turns * count for turns, count in lengths.items())}",
        "with more than one turn": f"{several} ({several / len(conversations):.0%})",
        "turns: conversations": ", ".join(f"{turns}: {count}" for turns, count in sorted(lengths.items())),
        "languages": _counted(one.language for one in conversations),
        "kinds": _counted(one.kind for one in conversations),
        "tokens of the first turn, mean": f"{statistics.mean(tokens):.1f}",
        "median": f"{statistics.median(tokens):g}",
        "90 % have at most": f"{ordered[max(-(-len(ordered) * 9 // 10) - 1, 0)]}",
        "least, most": f"{ordered[0]}, {ordered[-1]}",
        "300 tokens and more": f"{sum(count >= 300 for count in tokens)}",
    }
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def _counted(names: Iterable[str]) -> str:
    counts = Counter(name or "not given" for name in names)
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return f"{len(counts)}: " + ", ".join(f"{name} {count}" for name, count in ordered)


if __name__ == "__main__":
    main()
