"""A store over real files, a small arena, and lanes between them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from offload.memory.arena import HostArena
from offload.models.spec import read_spec
from offload.store.safetensors_index import CheckpointIndex
from offload.store.safetensors_store import SafetensorsStore
from tests.support.checkpoints import tiny_checkpoint

SLOTS = 16


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    return tiny_checkpoint(tmp_path_factory.mktemp("lanes") / "model", experts=16)


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy that the test may spoil."""
    return shutil.copytree(folder, tmp_path / "model")


@pytest.fixture
def open_store():
    """``open_store(folder)``: a store that is closed after the test."""
    stores = []

    def open_(folder: Path) -> SafetensorsStore:
        stores.append(SafetensorsStore.open(read_spec(folder), CheckpointIndex.open(folder)))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


@pytest.fixture
def store(folder: Path, open_store) -> SafetensorsStore:
    return open_store(folder)


@pytest.fixture
def arena(store: SafetensorsStore):
    arena = HostArena(store.slot_bytes, SLOTS)
    yield arena
    arena.close()
