"""Clients of real engines, and a tiny model for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from offload.service.client import EngineClient
from offload.service.messages import Changed, Ready
from tests.offload.service.listening import Listening, config
from tests.support.checkpoints import tiny_checkpoint
from tests.support.tokenizers import CHATML, CHATML_TOKENS, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that goes on talking: its tokenizer's end of text is no token that it could choose."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_checkpoint(folder, eos_token_id=None, max_position_embeddings=8192)
    return tiny_tokenizer(folder, special=CHATML_TOKENS, eos="<|endoftext|>", template=CHATML)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    """A client whose process has not been started."""
    client = EngineClient(os.environ, tmp_path / "logs" / "engine.log", tmp_path / "boards")
    yield Listening(client)
    client.kill()
    assert list((tmp_path / "boards").glob("*")) == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    folder = tmp_path_factory.mktemp("shared")
    listening = Listening(EngineClient(os.environ, folder / "engine.log", folder / "boards"))
    yield listening
    listening.client.close()
    assert list((folder / "boards").iterdir()) == []


@pytest.fixture
def running(shared: Listening, model: Path) -> Listening:
    """A client with the model open, shared by tests: opening takes seconds."""
    shared.deaths.clear()
    if not shared.client.alive:
        shared.client.start()
        shared.events.clear()
        shared.ready = shared.wait(Ready, shared.client.open(config(model), profile="low"))
    else:
        shared.wait(Changed, shared.client.set_budget(experts_fraction=0.5, profile="low"))
        shared.events.clear()
    return shared
