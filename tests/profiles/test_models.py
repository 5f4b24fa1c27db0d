from __future__ import annotations

import pytest

from offload.errors import ModelNotFound
from profiles import paths
from profiles.models import find_model, pulled_models


@pytest.fixture
def tiny():
    folder = paths.models_dir() / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (paths.models_dir() / "half-made").mkdir()
    return folder


def test_by_name_by_path_and_the_demo(tiny, tmp_path):
    assert pulled_models() == ["tiny"]
    assert find_model("tiny") == tiny
    assert find_model(str(tiny)) == tiny
    assert find_model("demo").parent == paths.models_dir()


def test_a_name_that_is_nothing_names_what_there_is(tiny):
    with pytest.raises(ModelNotFound) as caught:
        find_model("huge")
    assert "demo, tiny" in caught.value.hint
    with pytest.raises(ModelNotFound, match="not a folder"):
        find_model(str(tiny / "config.json"))
