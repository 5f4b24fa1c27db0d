"""Runs of ``finemoe eval`` on a tiny model, made once for all tests of a module."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.finemoe_cli.conftest import ROOT, Finemoe, Result
from tests.support.checkpoints import tiny_checkpoint
from tests.support.tokenizers import CHATML, CHATML_TOKENS, tiny_tokenizer

TALKS = [
    {"id": "one", "turns": ["Hello", "And then?"]},
    {"id": "two", "prompt": "Why?", "system": "Be brief."},
    {"id": "long", "turns": ["Short", "x" * 900]},
    {"id": "three", "prompt": "What is it?"},
    {"id": "four", "prompt": "Name a river."},
]

Evaluate = Callable[..., Result]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")
    return tiny_tokenizer(folder, special=CHATML_TOKENS, eos="<|endoftext|>", template=CHATML)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Finemoe:
    """``finemoe`` with folders that all tests of the module share."""
    root = tmp_path_factory.mktemp("finemoe")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FINEMOE_")}
    folders = {f"FINEMOE_{name.upper()}_DIR": str(root / name) for name in ("config", "cache", "data")}
    return Finemoe(environment | folders | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"})


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(talk) + "\n" for talk in TALKS) + '"  "\n')
    return path


@pytest.fixture(scope="module")
def arguments(tiny: Path, prompts: Path) -> tuple[str, ...]:
    """Everything but policies and budgets; the split leaves one conversation for the history."""
    of_engine = ("--model", str(tiny), "--kernels", "reference", "--lanes", "1", "--context", "400")
    return ("eval", "--data", str(prompts), *of_engine, "-n", "5", "--split", "1:4", "--json")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run."""
    return [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]


def answers(folder: Path) -> dict[tuple[str, str, int], list[int]]:
    """Token ids by combination, conversation and turn."""
    return {
        (row["combination"], row["conversation"], row["turn"]): row.get("token_ids", []) for row in rows_of(folder)
    }


def cut(path: Path, lines: int) -> None:
    """Leave so many lines of a file, and half of the next: as a process that is killed while it writes."""
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:lines]) + kept[lines][: len(kept[lines]) // 2])


def begun_again(folder: Path) -> None:
    """Make a complete run one that is not."""
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"complete": False}))
