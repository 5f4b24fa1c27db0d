"""The files of the paper's demo: what is taken, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offload.errors import KnowledgeError
from offload.policy.maps import MapStore
from offload.policy.maps.paper_files import add_paper_files
from tests.offload.policy.maps.stores import MODEL

GOOD = np.full((2, MODEL.layers, MODEL.experts), 1 / MODEL.experts, np.float32)
OBJECTS = np.array([print, "x"], object)


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    return save(tmp_path / "embeddings.npy", np.eye(2, MODEL.hidden, dtype=np.float32))


def save(path: Path, array: NDArray[Any]) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(3, MODEL.hidden), (3, 1, MODEL.hidden)])
def test_both_forms_are_taken(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=shape)
    maps = draw.dirichlet(np.ones(MODEL.experts), (3, MODEL.layers))
    store = MapStore(MODEL)
    files = save(tmp_path / "e.npy", vectors.astype(dtype)), save(tmp_path / "m.npy", maps.astype(dtype))
    assert (add_paper_files(store, *files), add_paper_files(store, *files)) == (3, 0)
    assert store.maps[:, :3].transpose(1, 0, 2) == pytest.approx(maps, abs=1e-3)
    unit = vectors.reshape(3, -1) / np.linalg.norm(vectors.reshape(3, -1), axis=1, keepdims=True)
    assert store.embeddings[:3] == pytest.approx(unit, abs=2e-3)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (OBJECTS, "holds pickled objects"),
        (np.full_like(GOOD, np.nan), "not finite"),
        (-GOOD, "negative numbers"),
        (GOOD.astype(np.int64), "not float16 or float32"),
        (GOOD[:, :-1], "has shape 2 x 3 x 6, and it would have to be 2 x 4 x 6"),
        (np.concatenate([GOOD, GOOD]), "has shape 2 x 5, and it would have to be 4 x 5"),
        (np.float32(1), "not float16 or float32 numbers"),
    ],
    ids=["objects", "nan", "negative", "integers", "layers", "more", "scalar"],
)
def test_what_is_no_maps_is_refused(tmp_path: Path, embeddings: Path, array: NDArray[Any], why: str) -> None:
    store = MapStore(MODEL)
    with pytest.raises(KnowledgeError, match=why):
        add_paper_files(store, embeddings, save(tmp_path / "maps.npy", array))
    assert len(store) == 0


@pytest.mark.parametrize("content", [pickle.dumps(GOOD), b"", b"\x93NUMPY\x01\x00", None])
def test_what_is_no_file_of_numpy_is_refused(tmp_path: Path, embeddings: Path, content: bytes | None) -> None:
    path = tmp_path / "maps.npy"
    with pytest.raises(KnowledgeError, match="cannot be read"):
        add_paper_files(MapStore(MODEL), embeddings, path)
    if content is None:
        content = save(path, GOOD).read_bytes()[:-3]
    path.write_bytes(content)
    with pytest.raises(KnowledgeError, match=r"no whole \.npy file"):
        add_paper_files(MapStore(MODEL), embeddings, path)


def test_the_wrong_order_is_told(tmp_path: Path, embeddings: Path) -> None:
    with pytest.raises(KnowledgeError) as told:
        add_paper_files(MapStore(MODEL), save(tmp_path / "maps.npy", GOOD), embeddings)
    assert "give the embeddings first, then the maps" in told.value.hint
