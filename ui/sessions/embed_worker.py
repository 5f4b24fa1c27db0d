"""Turns text into vectors in a process of its own, because what does that imports torch.

Started by :mod:`ui.sessions.meaning` with the model's folder as its argument. Each line of stdin is a JSON list of
texts, each line of stdout a JSON object: first ``name`` and ``dimensions`` of the embedder, then for each line of
stdin ``vectors`` (base64 of float32, little endian, row by row), or ``error`` where something failed. It ends when
stdin does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import IO, Any


def main() -> None:
    """Answers until stdin ends."""
    # Whatever a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    folder = Path(sys.argv[1])
    try:
        name = embedder_name(folder)
        model = _load(folder)
        _answer(answers, {"name": name, "dimensions": model.get_embedding_dimension()})
    except Exception as error:
        _answer(answers, {"error": _one_line(error)})
        return
    for line in sys.stdin:
        try:
            vectors = model.encode(json.loads(line), convert_to_numpy=True, show_progress_bar=False)
            data = vectors.astype("<f4").tobytes()
            _answer(answers, {"vectors": base64.b64encode(data).decode("ascii")})
        except Exception as error:
            _answer(answers, {"error": _one_line(error)})


def embedder_name(folder: Path) -> str:
    """A name that two embedders share only if their files are the same, so that their vectors are."""
    digest = hashlib.sha256()
    found = (path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".txt"))
    files = {folder / "modules.json", *found}  # the one that there must be
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"


def _load(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    # Pickled weights are never read, nor is a checkpoint's code run.
    return SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
    )


def _answer(stream: IO[str], what: dict[str, Any]) -> None:
    stream.write(json.dumps(what) + "\n")
    stream.flush()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    main()
