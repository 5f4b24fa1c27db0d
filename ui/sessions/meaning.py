"""The embedder that a search by meaning uses: a child process, so that this one never imports torch.

Its memory does not count for the engine's budget: some 600 MiB, as long as it is open.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from offload.child import child_command, child_environment
from offload.errors import ModelError
from profiles.embedder import find_embedder
from profiles.environment import DEFAULTS
from ui.sessions.rows import valid_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


class Embedder(Protocol):
    """What :meth:`SessionStore.search_by_meaning` is given."""

    @property
    def name(self) -> str:
        """The same for two embedders only if they make the same vectors."""
        ...

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """Vectors of ``texts``, [n, d]."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


def open_embedder() -> Embedder | None:
    """The embedder that is here, starting, or None if there is none; its first answer takes some seconds.

    Raises:
        ConfigError: ``FINEMOE_EMBEDDER`` names something that is none.
    """
    folder = find_embedder()
    return None if folder is None else ChildEmbedder(folder)


class ChildEmbedder:
    """An embedder in a child process. May be called from several threads, one call at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._facts: dict[str, Any] = {}
        self._child = subprocess.Popen(
            child_command("ui.sessions.embed_worker", str(folder)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=child_environment(DEFAULTS | os.environ | _OFFLINE),
            # Ctrl-C is for whoever started it, who then closes it.
            start_new_session=True,
        )

    @property
    def name(self) -> str:
        """A digest of the model's files; waits until the model is loaded.

        Raises:
            ModelError: It cannot be.
        """
        with self._lock:
            return str(self._started()["name"])

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """Vectors of ``texts``, [n, d].

        Raises:
            ModelError: The model cannot be loaded, or failed.
        """
        import numpy as np

        assert self._child.stdin is not None
        with self._lock:
            dimensions = self._started()["dimensions"]
            try:
                self._child.stdin.write(json.dumps([valid_text(text) for text in texts]) + "\n")
                self._child.stdin.flush()
            except (OSError, ValueError) as error:
                raise self._failed("it ended") from error
            data = base64.b64decode(self._answer()["vectors"])
        return np.frombuffer(data, "<f4").astype(np.float32).reshape(-1, dimensions)

    def close(self) -> None:
        """Ends the process, in the middle of its work if need be; closing it again does nothing."""
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass  # What was not sent yet has no reader any more.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> dict[str, Any]:
        if not self._facts:
            self._facts = self._answer()
        return self._facts

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        try:
            line = self._child.stdout.readline()
        except (OSError, ValueError) as error:
            raise self._failed("it was closed") from error
        if not line:
            raise self._failed("it ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._failed(answer["error"])
        return answer

    def _failed(self, why: str) -> ModelError:
        return ModelError(f"the embedder in {self.folder} failed: {why}", "search for words instead")
