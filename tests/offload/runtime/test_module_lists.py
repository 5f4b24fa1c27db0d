"""transformers' list of its models, read from a file instead of from thousands of sources."""

import json
import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from offload.runtime import module_lists
from offload.runtime.module_lists import from_json, to_json

NAME = st.text("abc_", min_size=1, max_size=6)
FILES = st.dictionaries(NAME, st.sets(NAME, max_size=3), max_size=3)
FOLDER = st.dictionaries(st.frozensets(NAME, max_size=2), FILES, max_size=3)
STRUCTURE = st.dictionaries(NAME, st.one_of(FOLDER, st.dictionaries(NAME, FOLDER, max_size=2)), max_size=4)

PRINT_LISTS = """
import json, runpy, sys
from contextlib import nullcontext

# Importing its package would import transformers.
kept_module_lists = runpy.run_path(sys.argv[2])["kept_module_lists"]
with kept_module_lists() if sys.argv[1] == "kept" else nullcontext():
    import transformers
    import transformers.models
for package in (transformers, transformers.models):
    print(json.dumps(sorted([name, sorted(names)] for name, names in package._import_structure.items())))
print(transformers.models.qwen2_moe.Qwen2MoeConfig.model_type)
"""


@given(STRUCTURE)
def test_a_list_comes_back_as_it_was(structure):
    assert from_json(json.loads(json.dumps(to_json(structure)))) == structure


def test_a_start_is_the_same_with_and_without_it(tmp_path):
    plain = lists("plain", tmp_path)
    assert not list(tmp_path.iterdir())
    assert lists("kept", tmp_path) == plain
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    assert lists("kept", tmp_path) == plain
    file.write_bytes(whole[: len(whole) // 2])
    assert lists("kept", tmp_path) == plain
    assert file.read_bytes() == whole


def test_what_is_kept_is_believed(tmp_path):
    lists("kept", tmp_path)
    (file,) = tmp_path.iterdir()
    only = {"qwen2_moe": {frozenset(): {"configuration_qwen2_moe": {"Qwen2MoeConfig"}}}}
    file.write_text(json.dumps(to_json(only)))
    assert json.loads(lists("kept", tmp_path)[1]) == [["qwen2_moe.configuration_qwen2_moe", ["Qwen2MoeConfig"]]]


def lists(how, folder):
    """What a fresh process says of transformers' lists."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "USE_TORCH": "0"}
    command = [sys.executable, "-c", PRINT_LISTS, how, module_lists.__file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
