"""One tiny checkpoint of each layout, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.checkpoints import tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """``checkpoint(layout="fused", ...)``: the folder of a tiny checkpoint; shared, so never change it."""
    made: dict[tuple[object, ...], Path] = {}

    def get(**options) -> Path:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", **options)
        return made[key]

    return get
