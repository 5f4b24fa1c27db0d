"""Expert map stores as the paper's own demo writes them: one .npy file of embeddings and one of maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from offload.errors import KnowledgeError
from offload.policy.maps.file import StoreModel
from offload.policy.maps.store import MapStore


def add_paper_files(store: MapStore, embeddings: Path, maps: Path) -> int:
    """Add the entries of a pair of files; returns how many were new.

    Args:
        embeddings: [N, H] or [N, 1, H], float16 or float32.
        maps: [N, L, E], the same.

    Raises:
        KnowledgeError: A file cannot be read, has pickled objects, or does not go with the model or the other file.
    """
    model = store.model
    vectors, rows = _read(embeddings), _read(maps)
    if vectors.ndim == 3 and vectors.shape[1] == 1:
        vectors = vectors[:, 0]
    _check_shape(embeddings, vectors, (len(rows), model.hidden), model)
    _check_shape(maps, rows, (len(rows), model.layers, model.experts), model)
    if len(rows) and rows.min() < 0:
        raise KnowledgeError(
            f"{maps} has negative numbers, and probabilities are not", "choose a file of expert maps"
        )
    return sum(store.add(vector, row) for vector, row in zip(vectors, rows, strict=True))


def _check_shape(path: Path, array: NDArray[Any], expected: tuple[int, ...], model: StoreModel) -> None:
    if array.shape != expected:
        raise KnowledgeError(
            f"{path} has shape {_shown(array.shape)}, and it would have to be {_shown(expected)}",
            f"the model {model.name} has {model.layers} layers of {model.experts} experts and hidden size "
            f"{model.hidden}; give the embeddings first, then the maps",
        )


def _read(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
    except OSError as error:
        raise KnowledgeError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, MemoryError) as error:
        if "allow_pickle" in str(error):
            raise KnowledgeError(
                f"{path} holds pickled objects, which could run any code; it is not read",
                "save it as an array of numbers: numpy.save(path, array, allow_pickle=False)",
            ) from error
        raise KnowledgeError(f"{path} is no whole .npy file: {error}", "save it again") from error
    if array.dtype not in (np.float16, np.float32) or array.ndim < 2:
        raise KnowledgeError(f"{path} holds {array.dtype} {_shown(array.shape)}, not float16 or float32 numbers")
    if not np.isfinite(array).all():
        raise KnowledgeError(f"{path} has numbers that are not finite")
    return array


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
