"""What was learnt, kept in files by model: found again, refused where it is another's, charged to the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from offload.config import POLICIES
from offload.errors import KnowledgeError, StorageError
from offload.policy.auto import Auto
from offload.policy.knowledge import (
    AUTO_TABLES,
    PAST_FILE,
    PROBES_FILE,
    Knowledge,
    Shape,
    knowledge_folder,
    likeliest_experts,
    load_knowledge,
    load_past,
    load_probes,
    policy_bytes_of,
    save_learnt,
    save_probes,
)
from offload.policy.learnt_file import write
from offload.policy.probe_fitting import fit_probes
from offload.policy.probes import Probes
from tests.support.policies import Table
from tests.support.routing import synthetic_model, synthetic_requests

MODEL = synthetic_model(layers=3, experts=4, top_k=2, hidden=4)
SHAPE = Shape("ab" * 32, "tiny", 3, 4, 4)
OTHER = replace(SHAPE, fingerprint="cd" * 32, name="other")


@pytest.fixture(scope="module")
def probes() -> Probes:
    return fit_probes(MODEL, list(synthetic_requests(MODEL, requests=7, prompt=3, tokens=40)))


@pytest.fixture
def learnt() -> Auto:
    """A policy that has seen two experts of each layer all the time."""
    table = Table()
    policy = Auto(table.around)
    for _ in range(30):
        table.token(policy, [[3, 0], [3, 1], [3, 2]])
    return policy


def test_probes_come_back_as_they_were(tmp_path: Path, probes: Probes) -> None:
    path = knowledge_folder(tmp_path, SHAPE.fingerprint) / PROBES_FILE
    assert load_probes(path, SHAPE) is None
    save_probes(path, SHAPE, probes)
    again = load_probes(path, SHAPE)
    assert again is not None
    for name, array in probes.arrays().items():
        kept = again.arrays()[name]
        assert kept.dtype == array.dtype and np.array_equal(kept, array), name
    Auto(Table(knowledge=Knowledge(probes=again)).around)  # in a form that the kernels take


def test_the_past_comes_back_as_it_was(tmp_path: Path, learnt: Auto) -> None:
    save_learnt(tmp_path, SHAPE, learnt)
    known = load_knowledge(tmp_path, SHAPE, "auto")
    assert known.note == ""
    assert known.past is not None and np.array_equal(known.past, learnt.past)
    table = Table(knowledge=known)
    again = Auto(table.around)
    assert np.array_equal(again.past, learnt.past)
    assert sorted(likeliest_experts(again)[:6]) == [0, 3, 5, 7, 10, 11]
    assert sorted(likeliest_experts(again)) == list(range(12))


def test_nothing_known_is_nothing_to_begin_with(tmp_path: Path) -> None:
    assert load_knowledge(None, SHAPE, "auto") == load_knowledge(tmp_path, SHAPE, "auto") == Knowledge()
    assert likeliest_experts(Auto(Table().around)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_gets_what_it_builds_on(tmp_path: Path, probes: Probes, learnt: Auto, policy: str) -> None:
    save_probes(knowledge_folder(tmp_path, SHAPE.fingerprint) / PROBES_FILE, SHAPE, probes)
    save_learnt(tmp_path, SHAPE, learnt)
    known = load_knowledge(tmp_path, SHAPE, policy)
    assert (known.probes is not None) == (policy in ("auto", "promoe"))
    assert (known.past is not None) == (policy == "auto")
    assert (known.maps is not None) == (policy == "finemoe")


def spoil(path: Path, how: str, probes: Probes) -> str:
    """Spoil the probes at `path`; gives what should be said of them."""
    match how:
        case "another model's":
            save_probes(path, OTHER, probes)
            return "learnt from another model"
        case "of another shape":
            save_probes(path, SHAPE, replace(probes, down=probes.down[:, :, :-1]))
            return "learnt from another model"
        case "of another version":
            save_probes(path, SHAPE, replace(probes, weights=probes.weights[:6]))
            return "learnt by another version"
        case "incomplete":
            arrays = {name: array for name, array in probes.arrays().items() if name != "up"}
            write(path, "probes", {"fingerprint": SHAPE.fingerprint}, arrays)
            return "learnt by another version"
        case "flipped":
            save_probes(path, SHAPE, probes)
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
            return "damaged"
        case "cut off":
            save_probes(path, SHAPE, probes)
            path.write_bytes(path.read_bytes()[:-100])
            return "damaged"
        case _:
            path.parent.mkdir(parents=True)
            path.write_bytes(b"")
            return "damaged"


@pytest.mark.parametrize(
    "how",
    ["another model's", "of another shape", "of another version", "incomplete", "flipped", "cut off", "empty"],
)
def test_what_cannot_be_used_is_left_out_and_said(tmp_path: Path, probes: Probes, how: str) -> None:
    path = knowledge_folder(tmp_path, SHAPE.fingerprint) / PROBES_FILE
    says = spoil(path, how, probes)
    with pytest.raises(KnowledgeError, match=says):
        load_probes(path, SHAPE)
    known = load_knowledge(tmp_path, SHAPE, "auto")
    assert known.probes is None
    assert says in known.note and "\n" not in known.note


def test_what_a_newer_finemoe_has_learnt_is_not_replaced(tmp_path: Path, learnt: Auto, probes: Probes) -> None:
    folder = knowledge_folder(tmp_path, SHAPE.fingerprint)
    save_learnt(tmp_path, SHAPE, learnt)
    save_probes(folder / PROBES_FILE, SHAPE, probes)
    before = {}
    for name in (PAST_FILE, PROBES_FILE):
        save_file(load_file(folder / name), folder / name, {"kind": "finemoe past", "version": "2"})
        before[name] = (folder / name).read_bytes()
    with pytest.raises(KnowledgeError, match="has version 2 of the format, and this finemoe knows 1"):
        save_learnt(tmp_path, SHAPE, learnt)
    with pytest.raises(KnowledgeError, match="has version 2"):
        save_probes(folder / PROBES_FILE, SHAPE, probes)
    assert {name: (folder / name).read_bytes() for name in before} == before
    # A damaged one is worth nothing to anybody.
    (folder / PAST_FILE).write_bytes(before[PAST_FILE][:-9])
    save_learnt(tmp_path, SHAPE, learnt)
    assert load_past(folder / PAST_FILE, SHAPE) is not None


def test_a_past_of_another_shape_is_damaged(tmp_path: Path, learnt: Auto) -> None:
    save_learnt(tmp_path, SHAPE, learnt)
    path = knowledge_folder(tmp_path, SHAPE.fingerprint) / PAST_FILE
    with pytest.raises(KnowledgeError, match="damaged"):
        load_past(path, replace(SHAPE, layers=4))


def test_a_folder_that_cannot_be_looked_into_is_said(tmp_path: Path) -> None:
    """A name that no file can have stands for every way in which the system refuses."""
    known = load_knowledge(tmp_path / ("x" * 300), SHAPE, "auto")
    assert (known.probes, known.past) == (None, None)
    assert "cannot be read" in known.note


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, learnt: Auto) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        save_learnt(tmp_path / "file", SHAPE, learnt)


def test_policies_cost_what_they_have_learnt_and_their_tables(probes: Probes) -> None:
    nothing, known = Knowledge(), Knowledge(probes=probes)
    assert policy_bytes_of(SHAPE, "demand", nothing, {}) == 0
    assert policy_bytes_of(SHAPE, "auto", nothing, {}) == AUTO_TABLES * 4 * 12
    assert policy_bytes_of(SHAPE, "auto", known, {}) == AUTO_TABLES * 4 * 12 + probes.memory_bytes
    assert policy_bytes_of(SHAPE, "promoe", known, {}) == probes.memory_bytes
    assert policy_bytes_of(SHAPE, "moe-infinity", nothing, {"capacity": 10}) == 4 * 12 * 10
    assert policy_bytes_of(SHAPE, "finemoe", nothing, {"capacity": 20}) > policy_bytes_of(
        SHAPE, "finemoe", nothing, {"capacity": 10}
    )


def test_the_tables_of_auto_are_no_larger_than_is_charged() -> None:
    table = Table(layers=20, experts=60, hidden=16)
    policy = Auto(table.around)
    arrays = [array for array in vars(policy).values() if isinstance(array, np.ndarray)]
    assert 12 * 4 * 1200 < sum(array.nbytes for array in arrays) <= AUTO_TABLES * 4 * 1200
