"""Files of maps: whole or not at all, checked, and shared by processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from offload.errors import KnowledgeError, StorageError
from offload.policy import learnt_file as file
from offload.policy.maps import MapStore, StoreModel, maps_file, open_maps
from tests.offload.policy.maps.stores import MODEL, filled, ids, random_map

SLOW_SETUP = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return maps_file(tmp_path, MODEL.fingerprint)


def test_the_place_is_the_models_own(tmp_path: Path) -> None:
    assert maps_file(tmp_path, MODEL.fingerprint) == tmp_path / ("ab" * 8) / "maps.fmm"


@SLOW_SETUP
@given(seeds=st.lists(st.integers(0, 999), max_size=20, unique=True), capacity=st.integers(20, 30))
def test_what_was_saved_is_loaded(path: Path, seeds: list[int], capacity: int) -> None:
    path.unlink(missing_ok=True)
    store = filled(*seeds, capacity=capacity)
    store.save(path)
    loaded = MapStore.load(path, fingerprint=MODEL.fingerprint)
    assert (loaded.model, loaded.capacity, loaded.created) == (store.model, capacity, store.created)
    for name in ("ids", "embeddings", "maps"):
        assert np.array_equal(getattr(loaded, name), getattr(store, name))
    assert loaded.scales == pytest.approx(store.scales, rel=1e-6)


@SLOW_SETUP
@given(data=st.data())
def test_a_file_that_is_cut_off_or_changed_is_refused(path: Path, data: st.DataObject) -> None:
    if not path.exists():
        filled(1, 2, 3).save(path)
    whole = path.read_bytes()
    damaged = path.with_name("damaged")
    if data.draw(st.booleans()):
        damaged.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    try:
        loaded = MapStore.load(damaged)
    except KnowledgeError as error:
        assert str(damaged) in error.message
    else:  # Spaces that pad the header, and names in it of the same meaning, carry nothing.
        assert ids(loaded) == ids(MapStore.load(path))


def test_a_newer_version_another_kind_and_another_model_are_refused(path: Path) -> None:
    filled(1).save(path)
    arrays = load_file(path)
    with pytest.raises(KnowledgeError, match="version 2 of the format"):
        save_file(arrays, path, {"kind": "finemoe maps", "version": "2", "facts": "{}", "checksum": ""})
        MapStore.load(path)
    before = path.read_bytes()
    with pytest.raises(KnowledgeError, match="version 2"):
        filled(2).save(path)
    assert path.read_bytes() == before
    save_file(arrays, path)
    with pytest.raises(KnowledgeError, match="no file of finemoe's maps"):
        MapStore.load(path)
    path.unlink()
    filled(1).save(path)
    with pytest.raises(KnowledgeError, match=r"learnt from another model \(tiny\)"):
        MapStore.load(path, fingerprint="cd" * 32)
    with pytest.raises(KnowledgeError, match="learnt from another model"):
        filled(2, model=StoreModel(4, 6, 5, "other", "cd" * 32)).save(path)
    with pytest.raises(KnowledgeError, match="there is no file"):
        MapStore.load(path.with_name("none"))


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"model": {}},
        {"model": {"layers": 4, "experts": 6, "hidden": 0}, "capacity": 9, "created": ""},
        {"model": {"layers": 4, "experts": 7, "hidden": 5}, "capacity": 9, "created": ""},
        {"model": {"layers": 4, "experts": 6, "hidden": 5}, "capacity": 0, "created": ""},
    ],
)
def test_facts_that_cannot_be_are_refused(path: Path, facts: dict[str, object]) -> None:
    arrays = {"embeddings": np.zeros((2, 5), np.float16), "maps": np.zeros((2, 4, 6), np.float16)}
    file.write(path, "maps", facts, arrays)
    with pytest.raises(KnowledgeError, match="damaged"):
        MapStore.load(path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match="what was learnt cannot be written"):
        filled(1).save(tmp_path / "taken" / "maps.fmm")


@SLOW_SETUP
@given(
    base=st.sets(st.integers(0, 9), max_size=5),
    mine=st.sets(st.integers(10, 29), max_size=8),
    others=st.sets(st.integers(20, 39), max_size=8),
)
def test_what_two_have_learnt_is_put_together(path: Path, base: set[int], mine: set[int], others: set[int]) -> None:
    path.unlink(missing_ok=True)
    filled(*base).save(path)
    one, other = MapStore.load(path), MapStore.load(path)
    for store, seeds in ((one, mine), (other, others)):
        for seed in seeds:
            store.add(*random_map(seed))
        store.save(path)
    one.save(path)
    assert ids(MapStore.load(path)) == ids(filled(*(base | mine | others)))


def test_what_was_replaced_does_not_come_back(path: Path) -> None:
    filled(*range(5), capacity=5).save(path)
    store = MapStore.load(path)
    for seed in range(10, 40):
        store.add(*random_map(seed))
    mine = ids(store)
    store.save(path)
    assert ids(store) == ids(MapStore.load(path)) == mine


def test_a_smaller_store_takes_what_fits(path: Path) -> None:
    filled(*range(20)).save(path)
    store = MapStore.load(path, capacity=7)
    assert (len(store), store.capacity) == (7, 7)


def test_merging_counts_what_is_new(path: Path) -> None:
    store = filled(1, 2)
    assert store.merge(filled(2, 3, 4)) == 2
    assert ids(store) == ids(filled(1, 2, 3, 4))
    with pytest.raises(KnowledgeError, match="another model"):
        store.merge(filled(5, model=StoreModel(4, 6, 5)))


LEARNER = """
import sys
from pathlib import Path
from offload.policy.maps import MapStore
from tests.offload.policy.maps.stores import MODEL, random_map
path, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = MapStore.load(path)
print("ready", flush=True)
sys.stdin.readline()
for seed in range(first, first + count):
    store.add(*random_map(seed))
    store.save(path)
    print(seed, flush=True)
"""


def learner(path: Path, first: int, count: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LEARNER, str(path), str(first), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[4],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_lose_nothing(path: Path) -> None:
    MapStore(MODEL, 100).save(path)
    processes = [learner(path, 0, 20), learner(path, 100, 20)]
    for process in processes:
        go(process)
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert ids(MapStore.load(path)) == ids(filled(*range(20), *range(100, 120)))


def test_killed_at_any_moment_the_file_is_whole(path: Path) -> None:
    MapStore(MODEL, 3000).save(path)
    written: set[int] = set()
    for number in range(4):
        first = 1000 * number
        process = learner(path, first, 900)
        go(process)
        assert process.stdout is not None
        for _ in range(3 + number):
            written.add(int(process.stdout.readline()))
        time.sleep(0.003 * number)
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        written |= {int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")}
        there = MapStore.load(path)
        assert ids(filled(*written, capacity=3000)) <= ids(there)
    there.save(path)
    assert sorted(each.name for each in path.parent.iterdir()) == ["maps.fmm", "maps.fmm.lock"]


def test_any_reader_of_safetensors_can_read_it(path: Path) -> None:
    filled(1, 2).save(path)
    arrays = load_file(path)
    assert arrays["maps"].shape == (2, 4, 6) and arrays["embeddings"].shape == (2, 5)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    metadata = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    assert json.loads(metadata["facts"])["model"]["name"] == "tiny"


def test_an_engine_goes_on_without_what_cannot_be_read(tmp_path: Path, path: Path) -> None:
    store, note = open_maps(tmp_path, MODEL)
    assert (len(store), store.model, note) == (0, MODEL, "")
    filled(1, 2, capacity=7).save(path)
    store, note = open_maps(tmp_path, MODEL)
    assert (len(store), store.capacity, note) == (2, 7, "")
    path.write_bytes(path.read_bytes()[:-1])
    store, note = open_maps(tmp_path, MODEL)
    assert (len(store), store.model) == (0, MODEL)
    assert note.startswith(f"begun without the expert maps: {path} is damaged")
    before = path.read_bytes()
    with pytest.raises(KnowledgeError, match="damaged"):
        store.save(path)
    assert path.read_bytes() == before
