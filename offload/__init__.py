"""The engine of finemoe: experts on a slow tier, brought into a bounded fast tier just in time.

Importing this package imports nothing heavy; torch and transformers come with the first use of ``Engine``.

Example::

    from pathlib import Path
    from offload import Engine, EngineConfig

    with Engine(EngineConfig(model=Path("Qwen1.5-MoE-A2.7B-Chat"), budget_bytes=8 << 30)) as engine:
        print(engine.chat([{"role": "user", "content": "Hello!"}]).text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from offload.config import EngineConfig, Sampling
from offload.errors import FinemoeError

if TYPE_CHECKING:
    from offload.runtime.engine import Engine
    from offload.telemetry.snapshot import Completion, Snapshot

__all__ = ["Completion", "Engine", "EngineConfig", "FinemoeError", "Sampling", "Snapshot"]

_LAZY = {
    "Engine": "offload.runtime.engine",
    "Completion": "offload.telemetry.snapshot",
    "Snapshot": "offload.telemetry.snapshot",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'offload' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
