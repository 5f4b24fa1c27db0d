"""A fixed history to draw, and the pictures that are kept."""

from __future__ import annotations

import pytest

from tests.support.screens import pictures
from tests.support.synthetic import SyntheticEngine, no_gpu
from ui.panes.history import FrameHistory

__all__ = ["history", "pictures"]


def made_history(engine: SyntheticEngine | None = None, tokens: int = 120) -> FrameHistory:
    """An answer, a smaller budget, and half of another answer."""
    engine = engine or SyntheticEngine(24, 60, 4, gpu=no_gpu)
    history = FrameHistory()
    for frame in engine.run(tokens):
        history.add(frame)
    engine.set_slots(engine.slots // 2, "low")
    for frame in list(engine.run(tokens))[:-1]:
        history.add(frame)
    history.add_records(record for record in engine.records(0) if record.time_s <= history.now)
    return history


@pytest.fixture(scope="session")
def history() -> FrameHistory:
    """To be drawn, not changed."""
    return made_history()
