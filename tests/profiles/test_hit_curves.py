"""What was measured of a model's routing is found again for that model, and only whole."""

from __future__ import annotations

import pytest

from offload.models import read_spec
from offload.store.safetensors_index import CheckpointIndex
from profiles.hit_curves import keep_curve, kept_curve
from profiles.paths import cache_dir
from tests.support.checkpoints import tiny_checkpoint

POINTS = ((0.0, 0.0), (0.5, 0.7), (1.0, 1.0))


@pytest.fixture
def model(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny", layers=1)
    return read_spec(folder), CheckpointIndex.open(folder)


def test_a_curve_is_found_again_for_its_model_only(model, tmp_path):
    assert kept_curve(*model) is None
    keep_curve(*model, POINTS, 99)
    found = kept_curve(*model)
    assert found is not None and found.points == POINTS and found.working_set == 0
    assert found.source.startswith("measured here, 99 tokens, 20")
    keep_curve(*model, (*POINTS[:1], (0.5, 0.8), POINTS[2]), 12)
    assert kept_curve(*model).at(0.5) == 0.8
    other = tiny_checkpoint(tmp_path / "other", layers=1, seed=1)
    assert kept_curve(read_spec(other), CheckpointIndex.open(other)) is None


@pytest.mark.parametrize(
    "damage",
    ["", "{", '{"format": 9}', '{"format": 1, "points": [[0, 0], [1, 1]]}', '{"format": 1, "points": []}',
     '{"format": 1, "points": [[0.5, 0.1], [1, 1]], "tokens": 1, "measured_at": "2026"}'],
)  # fmt: skip
def test_a_file_that_cannot_be_used_counts_for_nothing(model, damage):
    keep_curve(*model, POINTS, 99)
    (file,) = (cache_dir() / "hits").iterdir()
    file.write_text(damage)
    assert kept_curve(*model) is None
