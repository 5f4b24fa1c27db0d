"""A client of an engine's process, and what came from it; for the tests beside this file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from offload.config import EngineConfig, Sampling
from offload.service.client import EngineClient

ROOT = Path(__file__).parents[3]
HELLO = [{"role": "user", "content": "Hello"}]
LONG = Sampling(max_new_tokens=4000, temperature=0)


class Listening:
    """A client, and what came from it."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self.events: list[Any] = []
        self.deaths: list[str] = []
        self.ready: Any = None
        self._changed = threading.Condition()
        client.events(self._take, self._died)

    def _take(self, event: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def _died(self, reason: str) -> None:
        with self._changed:
            self.deaths.append(reason)
            self._changed.notify_all()

    def wait(self, kind: type[Any], number: int | None = None, count: int = 1) -> Any:
        """The first event of a kind, or as many as `count`."""
        found: list[Any] = []

        def there() -> bool:
            found[:] = [e for e in self.events if type(e) is kind and number in (None, e.number)]
            return len(found) >= count or bool(self.deaths)

        with self._changed:
            assert self._changed.wait_for(there, 120), self.events
        assert len(found) >= count, (self.deaths, self.events)
        return found[0] if count == 1 else found

    def wait_for_death(self) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: self.deaths, 60)
        return self.deaths[0]


def config(model: Path, **more: Any) -> EngineConfig:
    values = {"experts_fraction": 0.5, "kernels": "reference", "device": "cpu", "context": 4096, "lanes": 1}
    return EngineConfig(model=model, **(values | more))


def gone(pid: int | None) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
