"""The embedder in its own process: a real, tiny sentence-transformers model of a few words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from offload.errors import ModelError
from profiles.embedder import EMBEDDER_VARIABLE, HOW_TO_GET, find_embedder
from tests.ui.sessions.conftest import ROOT
from ui.sessions.embed_worker import embedder_name
from ui.sessions.meaning import ChildEmbedder, open_embedder

WORDS = {"[UNK]": (0, 0, 0), "sky": (1, 0, 0), "heavens": (0.9, 0.1, 0), "bread": (0, 0, 1)}


def make_embedder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embedding.weight": np.array(list(WORDS.values()), np.float32)}, folder / "model.safetensors")
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.StaticEmbedding"}
    (folder / "modules.json").write_text(json.dumps([module]))
    return folder


def test_messages_are_found_by_meaning(store, tmp_path, monkeypatch):
    """One test for all of it: starting the process takes seconds."""
    folder = make_embedder(tmp_path / "model")
    # What lies in the user's folder is not imported.
    (tmp_path / "here" / "ui").mkdir(parents=True)
    (tmp_path / "here" / "ui" / "__init__.py").write_text("raise SystemExit('the wrong ui')")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv(EMBEDDER_VARIABLE, str(folder))
    session = store.create()
    bread = store.add(session.id, None, "user", "bread")
    heavens = store.add(session.id, None, "user", "heavens")
    embed = open_embedder()
    try:
        assert embed.name == embedder_name(folder)
        hits = store.search_by_meaning("sky", embed)
        assert [hit.message for hit in hits] == [heavens, bread]
        assert hits[0].score == pytest.approx(0.9 / np.hypot(0.9, 0.1), abs=1e-6)
        vectors = embed(["sky\nsky", "none", "naïve \ud800 bread"])
        assert vectors.dtype == np.float32
        assert vectors.tolist() == [[1, 0, 0], [0, 0, 0], pytest.approx([0, 0, 1 / 3], abs=0.2)]
        assert embed([]).shape == (0, 3)
        embed._child.kill()
        with pytest.raises(ModelError, match="it ended"):
            embed(["sky"])
    finally:
        embed.close()
        embed.close()
    assert embed._child.returncode is not None


def test_a_model_that_cannot_be_loaded_is_said_to_be(tmp_path):
    with ChildEmbedder(tmp_path) as embed, pytest.raises(ModelError, match=r"failed: .*modules\.json") as caught:
        embed(["sky"])
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message


def test_the_name_is_that_of_the_contents(tmp_path):
    one = make_embedder(tmp_path / "one")
    two = make_embedder(tmp_path / "two")
    assert embedder_name(one) == embedder_name(two)
    (two / "modules.json").write_text("[]")
    assert embedder_name(one) != embedder_name(two)


def test_without_a_model_there_is_no_embedder(tmp_path, monkeypatch):
    monkeypatch.setattr("ui.sessions.meaning.find_embedder", lambda: None)
    assert open_embedder() is None


def test_the_process_that_asks_imports_no_torch():
    script = "import ui.sessions.meaning, profiles.embedder, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "sentence_transformers", "transformers", "numpy"} & set(done.stdout.split())


def test_the_real_model_knows_what_words_mean(store):
    if find_embedder() is None:
        pytest.skip(f"no all-MiniLM-L6-v2 here: {HOW_TO_GET}")
    session = store.create()
    texts = ("How do I bake a loaf of sourdough?", "Why is the sky blue?", "The shares fell again today.")
    messages = [store.add(session.id, None, "user", text).content for text in texts]
    embed = open_embedder()
    try:
        for query, text in zip(("bread recipe", "colour of the heavens", "stock market"), messages, strict=True):
            assert store.search_by_meaning(query, embed, limit=1)[0].message.content == text
    finally:
        embed.close()
