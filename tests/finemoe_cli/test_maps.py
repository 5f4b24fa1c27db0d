"""``finemoe maps`` as users run it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offload.models import read_spec
from offload.policy.maps import MapStore, StoreModel, maps_file
from offload.store.fingerprint import fingerprint
from offload.store.safetensors_index import CheckpointIndex
from offload.trace.file import Trace, TraceHeader
from offload.trace.records import TraceModel
from tests.support.checkpoints import tiny_checkpoint
from tests.support.traces import random_model, random_request

FIELDS = {
    "model", "fingerprint", "layers", "experts", "hidden", "entries", "capacity", "created", "bytes",
    "path", "problem",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def model(tiny) -> TraceModel:
    """What a trace of the tiny checkpoint would say of it."""
    spec = read_spec(tiny)
    found = fingerprint(spec, CheckpointIndex.open(tiny))
    facts = spec.num_layers, spec.num_experts, spec.top_k, spec.hidden_size
    return TraceModel(spec.name, found, *facts, 4096, None)


@pytest.fixture
def trace(tmp_path, model) -> Path:
    """Three requests of one prompt and three decoded tokens each."""
    path = tmp_path / "made.trace"
    Trace.write(path, model, TraceHeader(), [random_request(model, seed) for seed in range(3)])
    return path


@pytest.fixture
def kept(finemoe, model) -> Path:
    """Where the maps of the tiny checkpoint are kept."""
    return maps_file(Path(finemoe.environment["FINEMOE_DATA_DIR"]) / "knowledge", model.fingerprint)


def test_where_nothing_was_learnt_nothing_is_made(finemoe):
    nothing = finemoe("maps", "info")
    assert (nothing.code, nothing.out) == (0, "")
    assert nothing.err.startswith("no maps yet: finemoe maps build TRACE")
    assert finemoe("maps", "info", "--json").json["models"] == []
    assert finemoe("maps", "clear", "--all", "--yes").err == "there is nothing to delete\n"
    assert not Path(finemoe.environment["FINEMOE_DATA_DIR"]).exists()


def test_build_info_export_clear_import(finemoe, tiny, model, trace, kept, tmp_path):
    built = finemoe("maps", "build", str(trace), "--capacity", "10", "--json").json["built"]
    assert [(one["iterations"], one["added"], one["entries"], one["capacity"]) for one in built] == [
        (12, 12, 10, 10)
    ]
    assert built[0]["path"] == str(kept) and kept.is_file()
    again = finemoe("maps", "build", str(trace))
    assert "recorded without --residuals: no predictors are fitted from it" in " ".join(again.err.split())
    assert (again.code, again.out) == (0, "")
    assert "10 of 10 maps of tiny" in again.err

    (shown,) = finemoe("maps", "info", "--json").json["models"]
    assert set(shown) == FIELDS
    assert (shown["model"], shown["fingerprint"]) == ("tiny", model.fingerprint)
    assert (shown["entries"], shown["capacity"], shown["problem"]) == (10, 10, None)
    assert shown["bytes"] == kept.stat().st_size
    header, row = finemoe("maps", "info").out.splitlines()
    assert header.split()[:4] == ["MODEL", "FINGERPRINT", "MAPS", "OF"]
    assert row.split()[:4] == ["tiny", model.fingerprint[:16], "10", "10"]

    out = tmp_path / "out.fmm"
    assert finemoe("maps", "export", str(out), "--model", str(tiny)).err == f"wrote 10 maps to {out}\n"
    assert finemoe("maps", "export", str(out), "--model", str(tiny)).code == 2
    assert len(MapStore.load(out)) == 10
    asked = finemoe("maps", "clear", "--model", str(tiny))
    assert (asked.code, kept.exists()) == (2, True)
    assert finemoe("maps", "clear", "--model", str(tiny), "--yes").err == f"deleted {kept}\n"
    assert not kept.exists()
    assert finemoe("maps", "export", str(out), "-f", "--model", str(tiny)).error == "there are no maps of tiny yet"

    taken = finemoe("maps", "import", str(out), "--json").json
    assert (taken["before"], taken["added"], taken["entries"], taken["capacity"]) == (0, 10, 10, 10)
    assert np.array_equal(np.sort(MapStore.load(kept).ids), np.sort(MapStore.load(out).ids))


def test_a_file_of_another_model_is_refused(finemoe, tiny, tmp_path):
    path = tmp_path / "other.fmm"
    MapStore(StoreModel(2, 3, 4, "other", "cd" * 32)).export(path)
    refused = finemoe("maps", "import", str(path), "--model", str(tiny))
    assert (refused.code, refused.error) == (1, f"{path} was learnt from another model (other)")


def test_import_of_the_papers_files(finemoe, tiny, model, kept, tmp_path):
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(5, model.hidden)).astype(np.float16)
    maps = draw.dirichlet(np.ones(model.experts), (5, model.layers)).astype(np.float32)
    np.save(tmp_path / "embeddings.npy", vectors[:, None])
    np.save(tmp_path / "maps.npy", maps)
    files = str(tmp_path / "embeddings.npy"), str(tmp_path / "maps.npy")
    done = finemoe("maps", "import", *files, "--model", str(tiny), "--json").json
    assert (done["before"], done["added"], done["entries"]) == (0, 5, 5)
    store = MapStore.load(kept)
    assert store.maps[:, :5].transpose(1, 0, 2) == pytest.approx(maps, abs=1e-3)


def test_pickled_objects_are_refused(finemoe, tiny, model, kept, tmp_path):
    np.save(tmp_path / "embeddings.npy", np.ones((2, model.hidden), np.float32))
    np.save(tmp_path / "objects.npy", np.array([print, "x"], object), allow_pickle=True)
    files = str(tmp_path / "embeddings.npy"), str(tmp_path / "objects.npy")
    refused = finemoe("maps", "import", *files, "--model", str(tiny))
    assert (refused.code, "holds pickled objects" in refused.error) == (1, True)
    assert not kept.exists()
    assert finemoe("maps", "import", str(tmp_path / "embeddings.npy")).code == 2


def test_damaged_files_are_told_and_can_be_cleared(finemoe, tiny, model, trace, kept):
    kept.parent.mkdir(parents=True)
    kept.with_name("past.safetensors").write_bytes(b"nothing")
    kept.write_bytes(b"nothing")
    (shown,) = finemoe("maps", "info", "--json").json["models"]
    assert (shown["entries"], "is damaged" in shown["problem"]) == (None, True)
    assert "is damaged" in finemoe("maps", "build", str(trace)).error
    assert kept.read_bytes() == b"nothing"
    cleared = finemoe("maps", "clear", "--all", "--yes")
    assert len(cleared.err.splitlines()) == 2
    assert finemoe("maps", "build", str(trace)).code == 0


def test_a_trace_without_a_fingerprint_teaches_nothing(finemoe, tmp_path):
    model = random_model()
    unknown = TraceModel("x", "", model.layers, model.experts, model.top_k, model.hidden, 4096, None)
    path = tmp_path / "unknown.trace"
    Trace.write(path, unknown, TraceHeader(), [random_request(unknown)])
    assert finemoe("maps", "build", str(path)).error == f"{path} does not say of which model it is"
